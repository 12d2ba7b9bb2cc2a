"""Objects of training photos as visual prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dpseg.model.encoders import Encoder
from dpseg.prompts.visual import crop_region
from dpseg.training.corpus import NONE, Corpus, LabelledPhoto
from dpseg.training.regions import encode_regions
from support.tiny import tiny_model

SIDE = 100


@pytest.fixture
def encoder() -> Encoder:
    return tiny_model().encoder


def corpus(*squares: tuple[int, int, int]) -> Corpus:
    """One random photo with squares (top, left, side) of one name."""
    labels = torch.full((SIDE, SIDE), NONE, dtype=torch.int16)
    for top, left, side in squares:
        labels[top : top + side, left : left + side] = 0
    image = torch.randint(0, 256, (3, SIDE, SIDE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Corpus(("square",), ((0,),), ((0,),), (1.0,), (LabelledPhoto(image, labels, 0, "photo"),), (0,))


def test_the_two_largest_connected_regions_are_encoded_apart(encoder: Encoder, tmp_path: Path) -> None:
    squares = [(0, 0, 20), (50, 50, 30), (80, 0, 10), (0, 60, 2)]
    photos = corpus(*squares)
    regions = encode_regions(photos, encoder, tmp_path / "regions.safetensors")
    assert regions.names.tolist() == [0, 0]
    for row, (top, left, side) in enumerate([squares[1], squares[0]]):
        alone = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        alone[top : top + side, left : left + side] = True
        crop, mask = crop_region(photos.photos[0].image.float() / 255, alone, encoder.crop_size)
        expected = encoder.visual_features(crop[None], mask[None]).dense[0]
        torch.testing.assert_close(regions.dense[row].float(), expected, atol=2e-3, rtol=2e-3)


def test_regions_of_nothing_but_crumbs_are_none(encoder: Encoder, tmp_path: Path) -> None:
    photos = corpus((0, 0, 20), (60, 60, 4))  # 16 of 10,000 pixels
    assert len(encode_regions(photos, encoder, tmp_path / "regions.safetensors").names) == 1


def test_encoded_regions_are_read_again_for_the_same_photos_only(encoder: Encoder, tmp_path: Path) -> None:
    cache = tmp_path / "regions.safetensors"
    first = encode_regions(corpus((0, 0, 20)), encoder, cache)
    written = cache.stat().st_mtime_ns
    again = encode_regions(corpus((0, 0, 20)), encoder, cache)
    assert cache.stat().st_mtime_ns == written
    torch.testing.assert_close(again.dense, first.dense, atol=2e-3, rtol=2e-3)
    assert len(encode_regions(corpus((0, 0, 20), (50, 50, 20)), encoder, cache).names) == 2
