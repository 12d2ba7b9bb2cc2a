"""TIFF files read by windows, with tifffile: tiles and strips of any compression, GeoTIFF and BigTIFF among them."""

from __future__ import annotations

import logging
import struct
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dpseg.errors import ImageError, MissingExtraError
from dpseg.images import TURNS, load_image
from dpseg.large.windows import Tag

if TYPE_CHECKING:
    import tifffile

CACHE_BYTES = 128_000_000
"""Tiles and strips of the file that were decoded are kept up to so many bytes: the next window needs some of them."""

MOST_BYTES = 512_000_000
"""A single tile or strip of a file takes at most so many bytes once it is decoded."""

GEO_TAGS = (33550, 33922, 34264, 34735, 34736, 34737)
"""GeoTIFF: pixel scale, tie points, transformation, directory of keys, and their numbers and texts (OGC 19-008r4)."""

_ORIENTATION = 274
_GREY, _RGB, _PALETTE, _YCBCR = (0, 1), 2, 3, 6  # photometric interpretations
_JPEG = (6, 7, 34892, 33007)  # compressions whose pictures are decoded as RGB
_PREMULTIPLIED, _ALPHA = 1, 2  # kinds of extra samples


class TiffPicture:
    """The first page of a TIFF; see `Windows`. Colours, 16 bits and transparency are read as `load_image` reads them.

    Attributes:
        width: in pixels, the right way up.
        height: in pixels, the right way up.
        georeference: GeoTIFF's tags.
    """

    def __init__(self, path: Path) -> None:
        """Reads the file's directory, none of its pixels.

        Raises:
            ImageError: it is no TIFF, damaged, or of a kind that is not read by windows.
            MissingExtraError: tifffile is missing.
        """
        library = tiff_library()
        self._path = path
        try:
            self._file = library.TiffFile(path)
            self._page: tifffile.TiffPage = self._file.pages.first
            self._segments = _Segments(path, self._file, self._page)
            _check_kind(path, self._page)
            tag = self._page.tags.get(_ORIENTATION)
            self._turn = int(tag.value) if tag is not None and tag.value in TURNS else 1
            self.georeference = _geo_tags(self._page)
        except ImageError:
            raise
        except OSError as error:
            raise ImageError(f"{path}: cannot be opened ({error.strerror or error}); check its permissions") from error
        except Exception as error:  # tifffile raises some ten kinds for a damaged file
            raise ImageError(f"{path}: no TIFF that can be read ({_one_line(error)}); save it again") from error
        size = self._page.imagewidth, self._page.imagelength
        self.width, self.height = size if self._turn < 5 else size[::-1]

    def read(self, left: int, top: int, right: int, bottom: int) -> Image.Image:
        """See `Windows.read`."""
        page = self._page
        across, down = ((left, right), (top, bottom)) if self._turn < 5 else ((top, bottom), (left, right))
        if self._turn in (2, 3, 7, 8):
            across = page.imagewidth - across[1], page.imagewidth - across[0]
        if self._turn in (3, 4, 6, 7):
            down = page.imagelength - down[1], page.imagelength - down[0]
        values = self._segments.read(down, across)
        try:
            image = load_image(_colours(page, values))
        except ImageError as error:
            raise ImageError(f"{self._path}: {str(error).removeprefix('the array: ')}") from error
        return image if self._turn == 1 else image.transpose(TURNS[self._turn])

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class _Segments:
    """A page's tiles or strips, decoded when they are needed."""

    def __init__(self, path: Path, file: tifffile.TiffFile, page: tifffile.TiffPage) -> None:
        self._path, self._file, self._page = path, file, page
        tiled = bool(page.is_tiled)
        self.rows = page.tilelength if tiled else min(page.rowsperstrip, page.imagelength)
        self.columns = page.tilewidth if tiled else page.imagewidth
        self._across, self._down = -(-page.imagewidth // self.columns), -(-page.imagelength // self.rows)
        self._separate = page.planarconfig == 2 and page.samplesperpixel > 1
        self._cache: OrderedDict[int, NDArray[Any]] = OrderedDict()
        self._bytes = 0
        samples = 1 if self._separate else page.samplesperpixel
        size = self.rows * self.columns * samples * (0 if page.dtype is None else page.dtype.itemsize)
        if size > MOST_BYTES and not page.is_final:
            kind = f"{self.columns} x {self.rows} pixels in one {'tile' if tiled else 'strip'}"
            raise ImageError(f"{path}: {kind}, compressed, are too much at a time; save it as a TIFF with tiles")

    def read(self, down: tuple[int, int], across: tuple[int, int]) -> NDArray[Any]:
        """Returns the stored samples of some rows and columns, from and to: (h, w, samples)."""
        page = self._page
        if page.is_final:
            return self._plain(down, across)
        planes = page.samplesperpixel if self._separate else 1
        values = np.full(
            (down[1] - down[0], across[1] - across[0], page.samplesperpixel), page.nodata, dtype=page.dtype
        )
        for plane in range(planes):
            samples = slice(plane, plane + 1) if self._separate else slice(None)
            for i in range(down[0] // self.rows, -(-down[1] // self.rows)):
                for j in range(across[0] // self.columns, -(-across[1] // self.columns)):
                    segment = self._decoded((plane * self._down + i) * self._across + j)
                    if segment is None:
                        continue
                    top, left = i * self.rows, j * self.columns
                    first, before = max(down[0], top), max(across[0], left)
                    part = segment[first - top : down[1] - top, before - left : across[1] - left]
                    y, x = first - down[0], before - across[0]
                    values[y : y + part.shape[0], x : x + part.shape[1], samples] = part
        return values

    def _plain(self, down: tuple[int, int], across: tuple[int, int]) -> NDArray[Any]:
        """Reads samples that lie in the file as they are; the file is mapped anew each time, so memory stays small."""
        page = self._page
        shape = (page.imagelength, page.imagewidth, page.samplesperpixel)
        shape = (shape[2], *shape[:2]) if self._separate else shape
        kind = np.dtype(page.dtype).newbyteorder(self._file.byteorder)
        try:
            stored = np.memmap(self._path, kind, "r", page.dataoffsets[0], shape)
        except (OSError, ValueError) as error:
            raise ImageError(f"{self._path}: truncated; copy or save it again") from error
        rows, columns = slice(*down), slice(*across)
        part = stored[:, rows, columns].transpose(1, 2, 0) if self._separate else stored[rows, columns]
        values: NDArray[Any] = np.array(part, dtype=page.dtype)
        return values

    def _decoded(self, index: int) -> NDArray[Any] | None:
        """Returns a tile or strip, (h, w, samples); None: the file says that it is empty."""
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        segment = self._decode(index)
        if segment is None:
            return None
        self._cache[index] = segment
        self._bytes += segment.nbytes
        while self._bytes > CACHE_BYTES and len(self._cache) > 1:
            self._bytes -= self._cache.popitem(last=False)[1].nbytes
        return segment

    def _decode(self, index: int) -> NDArray[Any] | None:
        page = self._page
        try:
            offset, count = page.dataoffsets[index], page.databytecounts[index]
            if not count:
                return None
            self._file.filehandle.seek(offset)
            data = self._file.filehandle.read(count)
            if len(data) < count:
                raise ImageError(f"{self._path}: truncated; copy or save it again")
            tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader} if page.compression in _JPEG else {}
            values: NDArray[Any] | None = page.decode(data, index, **tables)[0]
        except ImageError:
            raise
        except (ImportError, OSError, ValueError, IndexError, RuntimeError, struct.error, zlib.error) as error:
            if "requires the 'imagecodecs' package" in str(error):
                raise _missing("imagecodecs") from error
            what = _one_line(error)
            raise ImageError(f"{self._path}: damaged, or stored in a way that is unknown ({what})") from error
        return None if values is None else values[0]


def georeference(path: Path) -> tuple[Tag, ...]:
    """Returns GeoTIFF's tags of a file that was read as a picture; none where it has none or is no TIFF.

    Raises:
        MissingExtraError: tifffile is missing.
    """
    try:
        with tiff_library().TiffFile(path) as file:
            return _geo_tags(file.pages.first)
    except MissingExtraError:
        raise
    except Exception:  # of another kind, or damaged in what is no part of the picture: tifffile raises some ten kinds
        return ()


def _geo_tags(page: tifffile.TiffPage) -> tuple[Tag, ...]:
    """Returns them; none of a picture that its orientation turns, for they say where its stored rows lie."""
    turn = page.tags.get(_ORIENTATION)
    if turn is not None and turn.value != 1 and turn.value in TURNS:
        return ()
    tags = [page.tags.get(code) for code in GEO_TAGS]
    return tuple((tag.code, int(tag.dtype), tag.count, tag.value, True) for tag in tags if tag is not None)


def tiff_library() -> Any:
    """Returns the module tifffile.

    Raises:
        MissingExtraError: it is missing.
    """
    try:
        import tifffile
    except ImportError as error:
        raise _missing("tifffile") from error
    log = logging.getLogger("tifffile")
    if not log.handlers:
        log.addHandler(logging.NullHandler())  # what it has to say of damaged files ends as an error of ours
    return tifffile


def _missing(package: str) -> MissingExtraError:
    return MissingExtraError(f"large TIFF files need the package {package}; pip install 'dpseg[tiff]'")


def _check_kind(path: Path, page: tifffile.TiffPage) -> None:
    """Refuses pages that are no colour or grey picture.

    Raises:
        ImageError: it is one.
    """
    samples, kind = page.samplesperpixel, int(page.photometric)
    if min(page.imagewidth, page.imagelength) < 1 or page.imagedepth > 1 or page.dtype is None:
        shape = " x ".join(str(side) for side in page.shape)
        raise ImageError(f"{path}: {shape} values of {page.bitspersample} bits are no picture; save it as 8-bit RGB")
    readable = (
        (kind in _GREY and samples <= 2)
        or (kind == _PALETTE and samples == 1 and page.colormap is not None)
        or (kind == _RGB and samples >= 3)
        or (kind == _YCBCR and samples == 3 and page.compression in _JPEG)
    )
    if not readable:
        name = getattr(page.photometric, "name", str(kind)).lower()
        raise ImageError(f"{path}: {samples} channels of kind {name} are no RGB or grey picture; save it as RGB")


def _colours(page: tifffile.TiffPage, values: NDArray[Any]) -> NDArray[Any]:
    """Turns stored samples (h, w, samples) into what `load_image` takes: grey, RGB or RGBA, (h, w, 1, 3 or 4)."""
    kind, bits = int(page.photometric), page.bitspersample
    if kind == _PALETTE:
        return _lookup(np.asarray(page.colormap), values[..., 0])
    if values.dtype == np.bool_ or (values.dtype.kind == "u" and bits < 8 * values.dtype.itemsize):
        values = (values.astype(np.float32) * (255 / (2**bits - 1)) + 0.5).astype(np.uint8)
    top = values.dtype.type(1 if values.dtype.kind == "f" else np.iinfo(values.dtype).max)
    count = 1 if kind in _GREY else 3
    colour: NDArray[Any] = values[..., :count]
    extra = page.extrasamples
    if kind == 0:  # white is 0
        colour = top - colour
    if values.shape[2] == count or not extra or extra[0] not in (_PREMULTIPLIED, _ALPHA):
        return colour
    alpha = values[..., count : count + 1]
    if extra[0] == _PREMULTIPLIED:  # laid over white
        colour += np.minimum(top - alpha, top - colour)
        return colour
    return np.concatenate([colour if count == 3 else colour.repeat(3, axis=2), alpha], axis=2)


def _lookup(colormap: NDArray[Any], indices: NDArray[Any]) -> NDArray[np.uint8]:
    """Returns the colours (h, w, 3) of a palette, whose values have 16 bits, (3, n)."""
    colours: NDArray[np.uint8] = np.take((colormap.T >> 8).astype(np.uint8), indices, axis=0)
    return colours


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
