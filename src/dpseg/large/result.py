"""What was found in a large picture: counted, and written by windows."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dpseg import __version__
from dpseg.draw import overlay
from dpseg.errors import ConfigError, did_you_mean
from dpseg.files import make_folder, write_atomically
from dpseg.large.grid import Tiling
from dpseg.large.label_tiff import write_labels
from dpseg.large.strips import StripStore, none_value
from dpseg.large.windows import Tag
from dpseg.palette import palette
from dpseg.result import FORMATS

LARGE_FORMATS = {"png": "_labels.tif", "json": FORMATS["json"], "overlay": FORMATS["overlay"]}
"""The formats that large pictures are written in, and their endings: the label map is a TIFF in place of a PNG."""

OVERLAY_SIDE = 2048
"""The overlay's longer side in pixels at most, its legend apart."""


@dataclass(frozen=True)
class LargeSegmentation:
    """What was found in a large picture; its labels are in a file.

    Attributes:
        width: in pixels.
        height: in pixels.
        names: K.
        counts: pixels of none, and of each class: K + 1.
        sums: the sum of each class's scores over its own pixels: K.
        tiling: how it was cut.
        source: its path; None where it does not come from a file.
        prompts: for each class where its prompts came from.
        files: what was written.
    """

    width: int
    height: int
    names: tuple[str, ...]
    counts: tuple[int, ...]
    sums: tuple[float, ...]
    tiling: Tiling
    source: str | None = None
    prompts: tuple[tuple[str, ...], ...] = ()
    files: tuple[Path, ...] = ()

    @property
    def areas(self) -> dict[str, float]:
        """Share of the picture, in (0, 1], of each class that was found, largest first."""
        return {self.names[index]: self.counts[index + 1] / (self.width * self.height) for index in self._found()}

    @property
    def confidences(self) -> dict[str, float]:
        """Mean score, in [0, 1], of each class that was found over its own pixels, in the order of `areas`."""
        return {self.names[index]: self.sums[index] / self.counts[index + 1] for index in self._found()}

    def to_dict(self) -> dict[str, Any]:
        """Returns what was found as JSON values: those of `Segmentation.to_dict`, and the tiles."""
        colours = palette(max(1, len(self.names)))
        areas, confidences = self.areas, self.confidences
        classes = [
            {
                "name": self.names[index],
                "index": index,
                "area": round(areas[self.names[index]], 6),
                "confidence": round(confidences[self.names[index]], 4),
                "color": [int(value) for value in colours[index]],
                "prompts": list(self.prompts[index]) if self.prompts else [],
            }
            for index in self._found()
        ]
        return {
            "source": self.source,
            "width": self.width,
            "height": self.height,
            "classes": classes,
            "none": round(self.counts[0] / (self.width * self.height), 6),
            "names": list(self.names),
            "tile": self.tiling.pixels,
            "tile_overlap": self.tiling.overlap,
            "dpseg": __version__,
        }

    def _found(self) -> list[int]:
        found = [index for index in range(len(self.names)) if self.counts[index + 1]]
        return sorted(found, key=lambda index: -self.counts[index + 1])


def check_formats(formats: Sequence[str]) -> None:
    """Checks what is to be written.

    Raises:
        ConfigError: a format is unknown, or is none of large pictures.
    """
    for name in formats:
        if name == "tiff":
            raise ConfigError("of tiles, the labels are a TIFF already; give the format 'png' in place of 'tiff'")
        if name not in FORMATS:
            raise ConfigError(f"format {name!r} is unknown; {did_you_mean(name, LARGE_FORMATS)}")
        if name not in LARGE_FORMATS:
            raise ConfigError(f"format {name!r} does not go with tiles; choose of {', '.join(LARGE_FORMATS)}")


def overlay_step(width: int, height: int) -> int:
    """Returns so many pixels of the picture, along both sides, are one of the overlay."""
    return -(-max(width, height) // OVERLAY_SIDE)


def write_large(
    found: LargeSegmentation,
    strips: StripStore,
    georeference: tuple[Tag, ...],
    folder: Path,
    stem: str,
    formats: Sequence[str],
) -> LargeSegmentation:
    """Writes the files of a large picture, each beside its place and renamed, in the memory of a strip.

    Args:
        found: what was counted.
        strips: all of them.
        georeference: GeoTIFF's tags of the picture, which the label map gets too.
        folder: where to; made if need be.
        stem: beginning of the files' names.
        formats: any of `LARGE_FORMATS`.

    Returns:
        `found` with its files.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    make_folder(folder)
    files = []
    for name in formats:
        path = folder / (stem + LARGE_FORMATS[name])
        if name == "png":
            write_labels(path, strips.each("labels"), (found.width, found.height), len(found.names), georeference)
        elif name == "json":
            write_atomically(path, (json.dumps(found.to_dict(), ensure_ascii=False, indent=1) + "\n").encode())
        else:
            buffer = io.BytesIO()
            _overlay(found, strips).save(buffer, "PNG", compress_level=4)
            write_atomically(path, buffer.getvalue())
        files.append(path)
    return replace(found, files=tuple(files))


def _overlay(found: LargeSegmentation, strips: StripStore) -> Image.Image:
    """Draws the small picture of all strips, each pixel with the label in its middle."""
    step = overlay_step(found.width, found.height)
    photo = np.concatenate(list(strips.each("photo")))
    labels = np.concatenate(list(_thinned(found, strips, step))).astype(np.int32)
    labels[labels == none_value(len(found.names))] = -1
    return overlay(Image.fromarray(photo), labels, found.names)


def _thinned(found: LargeSegmentation, strips: StripStore, step: int) -> Iterator[NDArray[Any]]:
    """Yields the labels of those pixels, strip by strip."""
    rows, columns = (np.minimum(np.arange(0, side, step) + step // 2, side - 1) for side in (found.height, found.width))
    top = 0
    for labels in strips.each("labels"):
        bottom = top + len(labels)
        yield labels[rows[(rows >= top) & (rows < bottom)] - top][:, columns]
        top = bottom
