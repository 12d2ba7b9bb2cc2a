"""Pictures of which a part can be read, whatever their size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from dpseg.images import ImageLike, load_image, open_image

WHOLE_PIXELS = 400_000_000
"""A picture that can only be read as a whole, such as JPEG or PNG, has so many pixels at most: RGB takes 1.6 GB."""

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # of both byte orders, and of BigTIFF

Tag = tuple[int, int, int, Any, bool]
"""Of a TIFF: code, type, count, value, and that it goes with the first page."""


class Windows(Protocol):
    """A picture, the right way up, that is read by windows."""

    @property
    def width(self) -> int:
        """In pixels."""
        ...

    @property
    def height(self) -> int:
        """In pixels."""
        ...

    @property
    def georeference(self) -> tuple[Tag, ...]:
        """GeoTIFF's tags, which say where on earth the picture lies; none where nobody knows."""
        ...

    def read(self, left: int, top: int, right: int, bottom: int) -> Image.Image:
        """Returns a part of it, RGB.

        Args:
            left: first column, 0 or more.
            top: first row, 0 or more.
            right: column after the last one.
            bottom: row after the last one.

        Raises:
            ImageError: the file is damaged there.
        """
        ...

    def close(self) -> None:
        """Closes the file, if there is one."""
        ...


class WholePicture:
    """A picture that is in memory as a whole, read by windows all the same; see `Windows`."""

    georeference: tuple[Tag, ...] = ()

    def __init__(self, source: ImageLike) -> None:
        """Reads it.

        Args:
            source: as `load_image`; a file may have up to `WHOLE_PIXELS`.

        Raises:
            ImageError: as `load_image`.
        """
        if isinstance(source, str | Path):
            with _pillow_limit(WHOLE_PIXELS):
                self._image = open_image(source, WHOLE_PIXELS)
        else:
            self._image = load_image(source)
        self.width, self.height = self._image.size

    def read(self, left: int, top: int, right: int, bottom: int) -> Image.Image:
        """See `Windows.read`."""
        return load_image(self._image.crop((left, top, right, bottom)))

    def close(self) -> None:
        """Frees the memory."""
        self._image.close()


@contextmanager
def open_windows(source: ImageLike) -> Iterator[Windows]:
    """Opens a picture for reading by windows: a TIFF without reading it, any other as a whole.

    Args:
        source: as `load_image`.

    Raises:
        ImageError: it cannot be read, or is too large to be read as a whole.
        MissingExtraError: it is a TIFF, and the extra "tiff" is missing.
    """
    picture: Windows
    if isinstance(source, str | Path) and _is_tiff(Path(source)):
        from dpseg.large.tiff import TiffPicture

        picture = TiffPicture(Path(source))
    else:
        picture = WholePicture(source)
    try:
        yield picture
    finally:
        picture.close()


def _is_tiff(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) in _TIFF
    except OSError:  # which reading it as a whole explains
        return False


@contextmanager
def _pillow_limit(pixels: int) -> Iterator[None]:
    """Lets Pillow open files of so many pixels: it has a limit of its own, one for all threads."""
    before = Image.MAX_IMAGE_PIXELS
    if before is not None:
        Image.MAX_IMAGE_PIXELS = max(before, pixels)
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before
