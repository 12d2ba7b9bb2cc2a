"""Encoder sizes: proportions, strides, limits; and how photos are resized to them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

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


@pytest.mark.parametrize(("size", "side"), [(768, 768), (100, 96)])
def test_square_without_proportions(size: int, side: int) -> None:
    assert encoder_size(640, 480, image_size=size, keep_aspect=False, stride=32) == (side, side)


@pytest.mark.parametrize("size", [0, -5, 31, 4097])
def test_sizes_out_of_range_are_refused(size: int) -> None:
    with pytest.raises(ConfigError, match=f"size {size} is out of range"):
        encoder_size(640, 480, image_size=size, keep_aspect=True, stride=32)


def test_a_photo_that_is_reduced_is_averaged_and_one_that_fits_is_left_alone() -> None:
    stripes = np.zeros((480, 640, 3), dtype=np.uint8)
    stripes[:, 1::2] = 255
    tensor = prepare(Image.fromarray(stripes), image_size=64, keep_aspect=True, stride=32)
    assert tensor.shape == (3, 64, 96)
    assert torch.allclose(tensor, torch.full_like(tensor, 0.5), atol=0.08)
    tensor = prepare(Image.new("RGB", (96, 64), (10, 20, 30)), image_size=64, keep_aspect=True, stride=32)
    assert tensor[:, 5, 7].mul(255).round().tolist() == [10, 20, 30]


@pytest.mark.numeric
@pytest.mark.parametrize(
    ("photo", "edge"), [((500, 375), (853, 640)), ((300, 900), (640, 1920)), ((100, 500), (512, 2560))]
)
def test_with_seds_protocol_photos_are_resized_in_two_steps(photo: tuple[int, int], edge: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (photo[1], photo[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    first = torch.from_numpy(np.array(image.resize(edge, Image.Resampling.BILINEAR))).permute(2, 0, 1)[None].float()
    expected = F.interpolate(first, size=(96, 96), mode="bilinear", align_corners=False)[0] / 255
    tensor = prepare(image, image_size=96, keep_aspect=False, stride=32, shortest_edge=640)
    torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=0)
