"""Where tiles of a large picture lie, and how their logits become labels: held against whole tensors."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dpseg.errors import ConfigError
from dpseg.large.blend import TILE_CLASSES, Blender, TileLogits
from dpseg.large.grid import Axis, Tiling
from dpseg.model.class_logits import ClassLogits

Tiles = dict[tuple[int, int], ClassLogits]


@pytest.mark.parametrize("length", [1, 63, 64, 65, 100, 128, 129, 257, 1000])
@pytest.mark.parametrize("tiling", [Tiling(64, 0), Tiling(64, 0.25), Tiling(100, 0.5), Tiling(128, 0.33)])
def test_every_pixel_is_finished_once_and_its_weights_add_up_to_1(length: int, tiling: Tiling) -> None:
    axis = Axis.cut(length, tiling)
    total, finished = np.zeros(length), np.zeros(length, dtype=int)
    for number, start in enumerate(axis.starts):
        assert 0 <= start <= length - axis.size
        weights = axis.weights(number)
        assert weights.min() > 0
        total[start : start + axis.size] += weights
        first, last = axis.own(number)
        finished[first:last] += 1
        assert all(after >= last for after in axis.starts[number + 1 :])
    np.testing.assert_allclose(total, 1, atol=1e-6, rtol=0)
    assert (finished == 1).all()
    if len(axis.starts) > 1:
        assert axis.size == tiling.pixels
        assert np.diff(axis.starts).max() <= np.ceil(tiling.pixels * (1 - tiling.overlap))


def test_the_weights_are_smooth_and_least_at_inner_ends() -> None:
    axis = Axis.cut(1000, Tiling(200, 0.25))
    middle = axis.weights(3)
    assert middle[0] < 0.01
    assert middle[-1] < 0.01
    assert np.abs(np.diff(middle)).max() < 0.05
    assert axis.weights(0)[:100] == pytest.approx(1)


@pytest.mark.parametrize(("pixels", "overlap"), [(63, 0.25), (8193, 0.25), (1024, -0.1), (1024, 0.51)])
def test_tilings_out_of_range_are_refused(pixels: int, overlap: float) -> None:
    with pytest.raises(ConfigError, match="is out of range; give"):
        Tiling(pixels, overlap)


def tiles_of(down: Axis, across: Axis, classes: int, known: int) -> Tiles:
    """Random logits of each tile for `known` of the classes, at a seventh of its size."""
    random = torch.Generator().manual_seed(0)
    tiles = {}
    for place in product(range(len(down.starts)), range(len(across.starts))):
        chosen = torch.randperm(classes, generator=random)[:known]
        size = (known, max(1, down.size // 7), max(1, across.size // 7))
        tiles[place] = ClassLogits(chosen, torch.randn(size, generator=random) * 3)
    return tiles


def blended_whole(down: Axis, across: Axis, tiles: Tiles, classes: int, scores: bool) -> Tensor:
    """What `Blender` describes, in the plainest way: all classes, the whole picture, (K, H, W)."""
    total = torch.zeros(classes, down.length, across.length)
    for (row, column), tile in tiles.items():
        values = tile.logits.sigmoid() if scores else tile.logits
        every = values.amin(dim=0).expand(classes, -1, -1).clone()
        every[tile.classes] = values
        every = F.interpolate(every[None], (down.size, across.size), mode="bilinear", align_corners=False)[0]
        weights = torch.from_numpy(down.weights(row))[:, None] * torch.from_numpy(across.weights(column))
        top, left = down.starts[row], across.starts[column]
        total[:, top : top + down.size, left : left + across.size] += every * weights
    return total


@pytest.mark.numeric
@pytest.mark.parametrize(
    ("size", "tiling"), [((300, 410), Tiling(128, 0.25)), ((90, 331), Tiling(100, 0.5)), ((200, 140), Tiling(64, 0))]
)
@pytest.mark.parametrize(
    ("classes", "known", "what"),
    [(1, 1, "logits"), (9, 9, "logits"), (20, 8, "logits"), (1, 1, "scores"), (9, 9, "scores"), (20, 8, "scores"),
     (9, 9, "adjusted")],
)  # fmt: skip
def test_the_labels_are_those_of_whole_tensors(
    size: tuple[int, int], tiling: Tiling, classes: int, known: int, what: str
) -> None:
    scores, adjustment = what == "scores", torch.linspace(-2, 2, classes) if what == "adjusted" else None
    background = None if what == "adjusted" else 0.9
    down, across = (Axis.cut(side, tiling) for side in size)
    tiles = tiles_of(down, across, classes, known)
    whole = blended_whole(down, across, tiles, classes, scores)
    expected = (whole if adjustment is None else whole + adjustment[:, None, None]).argmax(dim=0)
    if adjustment is not None:
        assert (expected != whole.argmax(dim=0)).float().mean() > 0.1
    expected_scores = whole.gather(0, expected[None])[0]  # which an adjustment is no part of
    expected_scores = expected_scores if scores else expected_scores.sigmoid()
    blender = Blender(down, across, background, scores, adjustment)
    labels, best = np.full(size, -7), np.zeros(size)
    for (row, column), tile in tiles.items():
        place = slice(*down.own(row)), slice(*across.own(column))
        labels[place], best[place] = blender.add(row, column, TileLogits.of([tile], scores, adjustment))
    if background is not None:
        expected[expected_scores < background] = -1
    assert (labels == expected.numpy()).mean() > 0.9999  # rounding decides at a tie
    np.testing.assert_allclose(best, expected_scores.numpy(), atol=1e-5, rtol=0)
    assert not blender._tiles


def test_only_rows_that_are_still_needed_are_kept() -> None:
    down, across = Axis.cut(1000, Tiling(200, 0.25)), Axis.cut(2000, Tiling(200, 0.25))
    blender = Blender(down, across, None, False)
    kept = []
    for (row, column), tile in tiles_of(down, across, 4, 4).items():
        blender.add(row, column, TileLogits.of([tile], False))
        if column == len(across.starts) - 1:
            kept.append(sum(tile.values.numel() for tile in blender._tiles.values()))
    whole_row = len(across.starts) * 5 * (200 // 7) ** 2
    assert max(kept) < 0.4 * whole_row  # a quarter, and what bilinear resizing needs besides
    assert len(set(kept[1:-1])) == 1
    assert kept[-1] == 0


def test_of_many_classes_those_that_lead_are_kept() -> None:
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(1000, 6, 6, generator=random)
    blocks = [ClassLogits(part, logits[part]) for part in torch.randperm(1000, generator=random).split(70)]
    tile = TileLogits.of(blocks, False)
    assert len(tile.classes) == TILE_CLASSES
    assert set(logits.argmax(dim=0).flatten().tolist()) <= set(tile.classes.tolist())
    assert torch.equal(tile.values[:-1], logits[tile.classes])
    assert torch.equal(tile.values[-1], tile.values[:-1].amin(dim=0))
