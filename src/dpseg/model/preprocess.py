"""Photos of any size -> what the encoder takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from dpseg.errors import ConfigError
from dpseg.images import to_tensor

if TYPE_CHECKING:  # the sizes are needed without torch too, where exported models run
    from torch import Tensor

MAX_ASPECT = 3
"""A photo that keeps its proportions is at most so many times `image_size` long; a longer panorama is made smaller."""

MAX_EDGE = 2560
"""The longer side in pixels of a photo that is brought to a shortest edge is no longer than this (SED's protocol)."""

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


def prepare(
    image: Image.Image, image_size: int, keep_aspect: bool, stride: int, shortest_edge: int | None = None
) -> Tensor:
    """Resizes an RGB photo for the encoder, bilinearly: (3, h, w), RGB in [0, 1].

    Args:
        image: an RGB photo.
        image_size: as `encoder_size`.
        keep_aspect: as `encoder_size`.
        stride: as `encoder_size`.
        shortest_edge: None: the photo is resized at once, antialiased. Else it is brought so to a shorter side of so
            many pixels, and then stretched to the encoder's size without antialiasing (SED's protocol).

    Raises:
        ConfigError: `image_size` is outside the limits.
    """
    size = encoder_size(image.width, image.height, image_size, keep_aspect, stride)
    first = size if shortest_edge is None else edge_size(image.width, image.height, shortest_edge)
    tensor = to_tensor(image if image.size == first else image.resize(first, Image.Resampling.BILINEAR))
    if first == size:
        return tensor
    from torch.nn import functional as F

    return F.interpolate(tensor[None], size=(size[1], size[0]), mode="bilinear", align_corners=False)[0]


def edge_size(width: int, height: int, shortest_edge: int) -> tuple[int, int]:
    """Returns the width and height in pixels with that shorter side, and a longer one of `MAX_EDGE` at most."""
    scale = shortest_edge / min(width, height)
    scale *= min(1.0, MAX_EDGE / (scale * max(width, height)))
    return max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))


def _round_to(pixels: float, stride: int) -> int:
    return max(1, round(pixels / stride)) * stride


def scaled_size(size: Sequence[int], scale: float, stride: int) -> tuple[int, int]:
    """Returns (height, width) times a scale, rounded to multiples of the stride, at least one of it."""
    height, width = (stride * max(1, round(side * scale / stride)) for side in size)
    return height, width


def mirror(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Mirrors images (B, 3, H, W) left-right and resizes them, bilinearly and antialiased, to (height, width)."""
    from torch.nn import functional as F

    return F.interpolate(images.flip(-1), size, mode="bilinear", antialias=True)
