"""Photos on their way to the encoder: read ahead of it, gathered in batches, and kept for cropping and drawing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from PIL import Image
from torch import Tensor

from dpseg.config import ModelConfig
from dpseg.errors import ImageError
from dpseg.images import ImageLike, load_image, to_tensor
from dpseg.lookahead import look_ahead
from dpseg.model.encoders import Pyramid
from dpseg.model.preprocess import prepare

CROP_SOURCE = 1280
"""Refinement cuts its crops from the photo at this longer side in pixels, or its own where that is smaller."""

BATCH_PIXELS = 48_000_000
"""A batch ends early when its photos have so many pixels together, so that large ones fit in memory."""


@dataclass(frozen=True)
class Photo:
    """A photo that is ready for the encoder.

    Attributes:
        image: RGB, at its own size.
        tensor: what the encoder takes of it, (3, h, w), RGB in [0, 1].
        source: its path; None where it does not come from a file.
    """

    image: Image.Image
    tensor: Tensor
    source: str | None

    def crop_source(self) -> Tensor:
        """Returns the photo, (3, H, W) in [0, 1], made smaller where it is larger than the crops need."""
        scale = CROP_SOURCE / max(self.image.size)
        if scale >= 1:
            return to_tensor(self.image)
        size = max(1, round(self.image.width * scale)), max(1, round(self.image.height * scale))
        return to_tensor(self.image.resize(size, Image.Resampling.BILINEAR))


@dataclass(frozen=True)
class Encoded:
    """Photos of one encoder size, encoded: B of them."""

    photos: tuple[Photo, ...]
    pyramid: Pyramid

    def __getitem__(self, index: int) -> Encoded:
        """Returns one of the photos."""
        return Encoded((self.photos[index],), self.pyramid.image(index))

    def __iter__(self) -> Iterator[Encoded]:
        """Returns the photos one by one."""
        return (self[index] for index in range(len(self.photos)))

    def inputs(self) -> Tensor:
        """Returns what was encoded, (B, 3, h, w), where the pyramid is."""
        return torch.stack([photo.tensor for photo in self.photos]).to(self.pyramid.dense.device)


Loaded: TypeAlias = "tuple[ImageLike, Photo | ImageError]"
"""An image as it was given, and what it was read as, or why it was not."""


def load_photo(image: ImageLike, config: ModelConfig, stride: int, size: int | None = None) -> Photo:
    """Reads an image for a model.

    Args:
        image: anything that `load_image` takes.
        config: the model's: input size and proportions.
        stride: of the encoder's coarsest features, in pixels.
        size: another input size than the model's own, in pixels.

    Raises:
        ImageError: it cannot be read.
        ConfigError: the size is out of range.
    """
    photo = load_image(image)
    source = str(image) if isinstance(image, str | Path) else None
    tensor = prepare(photo, size or config.image_size, config.keep_aspect, stride, config.shortest_edge)
    return Photo(photo, tensor, source)


def photo_batches(
    images: Iterable[ImageLike], config: ModelConfig, stride: int, size: int | None, batch_size: int
) -> Iterator[list[Loaded]]:
    """Reads images in their order, up to `batch_size` or `BATCH_PIXELS` at a time, the next two in a thread meanwhile.

    Args:
        images: taken as they are needed.
        config: as for `load_photo`.
        stride: as for `load_photo`.
        size: as for `load_photo`.
        batch_size: 1 or more.
    """

    def load(image: ImageLike) -> Photo | ImageError:
        try:
            return load_photo(image, config, stride, size)
        except ImageError as error:
            return error

    batch: list[Loaded] = []
    pixels = 0
    for image, photo in look_ahead(images, load, count=2):
        batch.append((image, photo))
        pixels += photo.image.width * photo.image.height if isinstance(photo, Photo) else 0
        if len(batch) == batch_size or pixels >= BATCH_PIXELS:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


def by_size(batch: Iterable[Loaded]) -> list[list[Photo]]:
    """Returns the photos of a batch in groups of one encoder size; those that could not be read are in none."""
    groups: dict[torch.Size, list[Photo]] = {}
    for _, photo in batch:
        if isinstance(photo, Photo):
            groups.setdefault(photo.tensor.shape, []).append(photo)
    return list(groups.values())
