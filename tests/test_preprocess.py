"""Encoder sizes: proportions, strides, limits."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from dpseg.errors import ConfigError
from dpseg.model.preprocess import encoder_size, prepare


@pytest.mark.parametrize(
    ("photo", "expected"),
    [
        ((640, 480), (512, 384)),
        ((480, 640), (384, 512)),
        ((100, 100), (384, 384)),
        ((1200, 400), (1152, 384)),  # 3 : 1, the limit
        ((4000, 1000), (1152, 288)),  # a panorama keeps its proportions
        ((10_000, 10), (1152, 32)),  # and has one position at least
        ((1, 1), (384, 384)),
    ],
)
def test_shorter_side_with_proportions(photo: tuple[int, int], expected: tuple[int, int]) -> None:
    assert encoder_size(*photo, image_size=384, keep_aspect=True, stride=32) == expected


def test_square_without_proportions() -> None:
    assert encoder_size(640, 480, image_size=768, keep_aspect=False, stride=32) == (768, 768)
    assert encoder_size(640, 480, image_size=100, keep_aspect=False, stride=32) == (96, 96)


@pytest.mark.parametrize("size", [0, -5, 31, 4097])
def test_sizes_out_of_range_are_refused(size: int) -> None:
    with pytest.raises(ConfigError, match=f"size {size} is out of range"):
        encoder_size(640, 480, image_size=size, keep_aspect=True, stride=32)


def test_prepare_averages_what_it_reduces() -> None:
    stripes = Image.new("RGB", (640, 480))
    stripes.paste((255, 255, 255), (0, 0, 640, 480))
    for x in range(0, 640, 2):
        stripes.paste((0, 0, 0), (x, 0, x + 1, 480))
    tensor = prepare(stripes, image_size=64, keep_aspect=True, stride=32)
    assert tensor.shape == (3, 64, 96)
    assert torch.allclose(tensor, torch.full_like(tensor, 0.5), atol=0.08)


def test_prepare_leaves_a_fitting_photo_alone() -> None:
    photo = Image.new("RGB", (96, 64), (10, 20, 30))
    tensor = prepare(photo, image_size=64, keep_aspect=True, stride=32)
    assert tensor[:, 5, 7].mul(255).round().tolist() == [10, 20, 30]
