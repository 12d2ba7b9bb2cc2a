"""Photos of any size -> what the encoder takes."""

from __future__ import annotations

from PIL import Image
from torch import Tensor

from dpseg.errors import ConfigError
from dpseg.images import to_tensor

MAX_ASPECT = 3
"""A photo that keeps its proportions is at most so many times `image_size` long; a longer panorama is made smaller."""

MIN_SIZE, MAX_SIZE = 32, 4096
"""Limits in pixels of the encoder's input size."""


def encoder_size(width: int, height: int, image_size: int, keep_aspect: bool, stride: int) -> tuple[int, int]:
    """Returns the width and height in pixels at which a photo is encoded: multiples of the coarsest stride.

    Args:
        width: the photo's, in pixels.
        height: the photo's, in pixels.
        image_size: side of the square, or of the shorter side when `keep_aspect`.
        keep_aspect: keep the proportions, up to rounding; a panorama of more than 3 : 1 is fitted to 3 times
            `image_size` by its longer side.
        stride: pixels a position of the encoder's coarsest features.

    Raises:
        ConfigError: `image_size` is outside the limits.
    """
    if not MIN_SIZE <= image_size <= MAX_SIZE:
        raise ConfigError(f"size {image_size} is out of range; give {MIN_SIZE} to {MAX_SIZE} pixels")
    if not keep_aspect:
        side = _round_to(image_size, stride)
        return side, side
    scale = min(image_size / min(width, height), MAX_ASPECT * image_size / max(width, height))
    return _round_to(width * scale, stride), _round_to(height * scale, stride)


def prepare(image: Image.Image, image_size: int, keep_aspect: bool, stride: int) -> Tensor:
    """Resizes an RGB photo for the encoder, bilinearly and antialiased: (3, h, w), RGB in [0, 1].

    Args:
        image: an RGB photo.
        image_size: as `encoder_size`.
        keep_aspect: as `encoder_size`.
        stride: as `encoder_size`.

    Raises:
        ConfigError: `image_size` is outside the limits.
    """
    size = encoder_size(image.width, image.height, image_size, keep_aspect, stride)
    return to_tensor(image if image.size == size else image.resize(size, Image.Resampling.BILINEAR))


def _round_to(pixels: float, stride: int) -> int:
    return max(1, round(pixels / stride)) * stride
