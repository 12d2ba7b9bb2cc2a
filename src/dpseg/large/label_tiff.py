"""A label map written by windows: a TIFF with compressed tiles and a palette."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpseg import __version__
from dpseg.files import make_folder, written_beside
from dpseg.large.strips import label_type, none_value
from dpseg.large.tiff import tiff_library
from dpseg.large.windows import Tag
from dpseg.palette import palette

SIDE = 256
"""Of the file's tiles, in pixels."""

_BIG = 3_900_000_000  # bytes above which offsets of 32 bits may not do
_NODATA = 42113  # GDAL's tag for the value of pixels that say nothing
_ASCII = 2  # TIFF's type of texts


def write_labels(
    path: Path,
    rows: Iterable[NDArray[np.unsignedinteger[Any]]],
    size: tuple[int, int],
    classes: int,
    georeference: tuple[Tag, ...],
) -> Path:
    """Writes a label map in the memory of some rows, beside its place; it is renamed when it is whole.

    Args:
        path: where to.
        rows: the labels from the top, any number of rows at a time, (n, W) of `label_type`.
        size: width and height in pixels.
        classes: K; the file has 8 bits a pixel and a palette up to 255 of them, else 16 bits.
        georeference: GeoTIFF's tags of the picture.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
        MissingExtraError: tifffile is missing.
    """
    library = tiff_library()
    width, height = size
    kind = np.dtype(label_type(classes))
    colours = np.zeros((256, 3), dtype=np.uint16)
    if classes <= 255:
        colours[:classes] = palette(max(1, classes))[:classes].astype(np.uint16) * 257
    text = str(none_value(classes))
    nodata = [(_NODATA, _ASCII, len(text) + 1, text, True)] if georeference else []
    with (
        written_beside(path) as temporary,
        library.TiffWriter(temporary, bigtiff=width * height * kind.itemsize > _BIG) as file,
    ):
        file.write(
            _tiles(rows, width, kind),
            shape=(height, width),
            dtype=kind,
            tile=(SIDE, SIDE),
            compression="zlib",
            photometric="palette" if classes <= 255 else "minisblack",
            colormap=colours.T if classes <= 255 else None,
            extratags=[*georeference, *nodata],
            software=f"dpseg {__version__}",
            metadata=None,
        )
    return path


def write_photo_labels(path: Path, labels: NDArray[np.int32], classes: int, georeference: tuple[Tag, ...] = ()) -> Path:
    """Writes the labels of a photo that is in memory; otherwise as `write_labels`.

    Args:
        path: where to; its folder is made if need be.
        labels: (H, W), index of a class, or -1 where there is none.
        classes: K.
        georeference: GeoTIFF's tags of the photo.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
        MissingExtraError: tifffile is missing.
    """
    make_folder(path.parent)
    stored = np.where(labels < 0, none_value(classes), labels).astype(label_type(classes))
    return write_labels(path, [stored], (labels.shape[1], labels.shape[0]), classes, georeference)


def _tiles(rows: Iterable[NDArray[Any]], width: int, kind: np.dtype[Any]) -> Iterator[bytes]:
    """Yields the file's tiles, compressed, row by row and from left to right."""
    waiting = np.zeros((0, width), dtype=kind)
    for part in rows:
        first = min(len(part), -len(waiting) % SIDE)
        waiting = np.concatenate([waiting, part[:first]])
        if len(waiting) % SIDE:
            continue
        yield from _compressed(waiting)
        whole = first + (len(part) - first) // SIDE * SIDE
        yield from _compressed(part[first:whole])
        waiting = part[whole:].copy()
    yield from _compressed(waiting)


def _compressed(labels: NDArray[Any]) -> Iterator[bytes]:
    for top in range(0, labels.shape[0], SIDE):
        for left in range(0, labels.shape[1], SIDE):
            part = labels[top : top + SIDE, left : left + SIDE]
            tile = np.pad(part, ((0, SIDE - part.shape[0]), (0, SIDE - part.shape[1])))
            yield zlib.compress(tile.tobytes(), 6)
