"""Pictures that strangers sent -> PIL images: few formats, and sizes that are checked before anything is decoded."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dpseg.errors import ImageError
from dpseg.images import MAX_PIXELS, read_mask
from dpseg.serving.problems import RequestError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""Pillow's readers that are used, where it has them. Others start programs (EPS) or are little tested."""

_KNOWN = "JPEG, PNG, WebP, GIF, BMP, TIFF, PPM or AVIF"
_LOSSY = ("JPEG", "MPO", "WEBP", "AVIF")  # MPO: a JPEG file with several pictures


def open_picture(data: bytes, name: str, max_pixels: int) -> Image.Image:
    """Opens a picture; its pixels are decoded when they are first used.

    Args:
        data: the file.
        name: what to call it in an error.
        max_pixels: more are refused.

    Raises:
        ImageError: it is no picture of a known format.
        RequestError: it has too many pixels.
    """
    if not data:
        raise ImageError(f"{name}: the file is empty; send a picture")
    try:
        image = Image.open(io.BytesIO(data), formats=_installed())
    except Image.DecompressionBombError as error:
        raise _too_large(name, "far more pixels", max_pixels) from error
    except Exception as error:  # Pillow's readers raise some ten kinds for a damaged file
        raise ImageError(f"{name}: not a picture, or damaged from its start; send {_KNOWN}") from error
    width, height = image.size
    if width * height > max_pixels:
        raise _too_large(name, f"{width} x {height} = {width * height:,} pixels", max_pixels)
    image.filename = name  # what `load_image` calls it
    return image


def open_mask(data: bytes, name: str, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Reads a mask: (H, W), True on the thing. Files of lossy formats count from half of their range on.

    Args:
        data: the file.
        name: what to call it in an error.
        size: width and height of the picture that it belongs to.

    Raises:
        ImageError: it is no picture, or it has colours.
        RequestError: it has another size.
    """
    image = open_picture(data, name, MAX_PIXELS)
    if image.size != size:
        have, want = (f"{width} x {height}" for width, height in (image.size, size))
        raise RequestError(422, f"{name} is {have}, but its picture is {want}; make them the same size")
    values: npt.NDArray[Any] = read_mask(image)
    return np.asarray(values > 127 if image.format in _LOSSY else values != 0)


@lru_cache(maxsize=1)
def _installed() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _too_large(name: str, have: str, limit: int) -> RequestError:
    return RequestError(413, f"{name}: {have}, the limit is {limit:,}; make it smaller first")
