"""Objects of labelled photos: which are found, and how they are cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dpseg.data.folder import FolderDataset
from dpseg.data.objects import cut_objects, find_candidates, largest_region
from dpseg.errors import DPSegError
from dpseg.prompts.visual import Reference

SIDES = (4, 9, 6, 9)
"""Of the square of class 1 in each photo; beside it is a smaller one, and a strip of class 2."""


@pytest.fixture
def dataset(tmp_path: Path) -> FolderDataset:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number, side in enumerate(SIDES):
        values = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        mask = np.zeros((20, 24), np.uint8)
        mask[:side, :side] = 1
        mask[12:15, 12:15] = 1
        mask[19] = 2
        mask[18] = 255
        Image.fromarray(values).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{number}.png")
    (tmp_path / "classes.txt").write_text("none\nmug, cup\ntable\n")
    return FolderDataset(tmp_path)


def test_the_largest_regions_are_found(dataset: FolderDataset) -> None:
    failed: list[DPSegError] = []
    steps: list[int] = []
    found = find_candidates(dataset, 3, failed, lambda: steps.append(1))
    assert found == {1: [(81, 1), (81, 3), (36, 2)], 2: [(24, 0), (24, 1), (24, 2)]}
    assert len(steps) == len(dataset)
    assert failed == []
    assert find_candidates(dataset, 1, failed, lambda: None, wanted={1}) == {1: [(81, 1)]}


def test_a_mask_that_cannot_be_read_is_noted(dataset: FolderDataset) -> None:
    dataset.mask_paths[1].write_bytes(b"no picture")
    failed: list[DPSegError] = []
    assert find_candidates(dataset, 1, failed, lambda: None, wanted={1}) == {1: [(81, 3)]}
    assert [str(dataset.mask_paths[1]) in str(error) for error in failed] == [True]


def test_an_object_is_the_reference_of_its_photo_and_mask(dataset: FolderDataset) -> None:
    pictures = cut_objects(dataset, 1, [(81, 3), (36, 2)], "mean")
    assert [(one.name, one.source) for one in pictures] == [
        ("mug", str(dataset.image_paths[3])),
        ("mug", str(dataset.image_paths[2])),
    ]
    mask = np.zeros((20, 24), bool)
    mask[:6, :6] = True
    expected = Reference(dataset.image_paths[2], mask=mask, context="mean").crop(32)
    for one, other in zip(pictures[1].reference.crop(32), expected, strict=True):
        assert torch.equal(one, other)


def test_of_regions_of_one_size_the_first_counts() -> None:
    mask = np.zeros((3, 7), bool)
    mask[:, 1] = mask[:, 5] = True
    assert largest_region(mask)[0].tolist() == [False, True] + [False] * 5
