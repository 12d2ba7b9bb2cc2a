"""A segmentation as a picture: colours, names on their regions, and the legend."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from dpseg import draw
from dpseg.draw import found_entries, overlay
from dpseg.palette import contrast, palette, text_colour
from support.results import NAMES, sofa_labels
from support.strategies import class_names

Labels = npt.NDArray[np.int32]


def placed(labels: Labels, names: tuple[str, ...], size: int = 14) -> dict[str, tuple[int, int, int, int]]:
    return {entry.name: box for entry, _, box in draw._placed_names(labels, found_entries(labels, names), size)}


def test_colours_are_distinct_stable_and_carry_readable_text() -> None:
    colours = palette(300)
    assert len(np.unique(colours, axis=0)) == 300
    assert np.array_equal(palette(12), colours[:12])
    assert min(contrast(colour, text_colour(colour)) for colour in colours) >= 4.5
    first = colours[:12].astype(int)
    apart = np.abs(first[:, None] - first[None]).sum(-1) + 999 * np.eye(12, dtype=int)
    assert apart.min() > 90
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((9, 9, 9), (9, 9, 9)) == 1


def test_overlay_tints_regions_and_leaves_unnamed_pixels_alone() -> None:
    drawn = np.asarray(overlay(Image.new("RGB", (120, 80), (100, 100, 100)), sofa_labels(), NAMES)).astype(int)
    assert (drawn[:80, 118] == 100).all()
    assert np.abs(drawn[35, 100] - (100 + palette(4)[2].astype(int)) / 2).max() <= 1
    assert (drawn[39, 60] == palette(4)[2]).all()
    assert (drawn[40, 60] == palette(4)[1]).all()


def test_the_legend_lies_below_the_photo_and_names_only_what_was_found() -> None:
    labels = sofa_labels()
    drawn = np.asarray(overlay(None, labels, NAMES))
    assert drawn.shape[1] == 200
    assert drawn.shape[0] > 80
    assert drawn[40, 118].tolist() == [128, 128, 128]  # without a photo it is drawn on grey
    patches = {tuple(pixel) for pixel in drawn[80:].reshape(-1, 3).tolist()}
    assert {tuple(palette(4)[index].tolist()) for index in (0, 1, 2)} <= patches
    assert tuple(palette(4)[3].tolist()) not in patches
    assert [entry.name for entry in found_entries(labels, NAMES)] == ["couch", "wall", "cat", "none"]
    assert [entry.name for entry in found_entries(np.zeros((2, 2), np.int32), NAMES)] == ["cat"]


def test_names_lie_inside_their_region_where_they_fit() -> None:
    labels = np.zeros((300, 400), np.int32)
    labels[150:] = 1
    labels[20:120, 20:180] = 2
    boxes = placed(labels, NAMES)
    assert set(boxes) == {"cat", "couch", "wall"}
    for name, (left, top, right, bottom) in boxes.items():
        assert (labels[top:bottom, left:right] == NAMES.index(name)).all()


def test_names_never_overlap_and_stay_on_the_photo() -> None:
    coarse = np.random.default_rng(0).integers(0, 30, (12, 16))
    labels = np.kron(coarse, np.ones((40, 40), int)).astype(np.int32)
    boxes = list(placed(labels, tuple(f"class {i}" for i in range(30))).values())
    assert len(boxes) > 20
    covered = np.zeros(labels.shape, int)
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= 640
        assert 0 <= top < bottom <= 480
        covered[top:bottom, left:right] += 1
    assert covered.max() == 1


def test_a_small_objects_name_stands_beside_it() -> None:
    labels = np.zeros((480, 640), np.int32)
    labels[200:220, 300:340] = 1
    left, top, right, bottom = placed(labels, ("wall", "refrigerator"), 17)["refrigerator"]
    assert (labels[top:bottom, left:right] == 1).sum() < 0.2 * 20 * 40
    assert abs((left + right) / 2 - 320) < 60
    assert abs((top + bottom) / 2 - 210) < 50


@given(names=class_names(1, 4), width=st.integers(1, 500), height=st.integers(1, 300))
@example(names=("a class with quite a long name, far longer than the photo is wide",), width=40, height=60)
@example(names=("Тигр 猫 é",), width=300, height=200)
@settings(max_examples=25)
def test_any_names_and_sizes_are_drawn(names: tuple[str, ...], width: int, height: int) -> None:
    labels = np.resize(np.arange(len(names), dtype=np.int32).repeat(-(-height // len(names)) * width), (height, width))
    drawn = overlay(Image.new("RGB", (width, height)), labels, names)
    assert drawn.width == max(200, width)
    assert drawn.height > height
    assert len(np.unique(np.asarray(drawn).reshape(-1, 3), axis=0)) > 3


def test_names_of_a_large_photo_are_placed_on_a_coarse_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[tuple[int, ...]] = []
    original = draw._box_sums
    monkeypatch.setattr(draw, "_box_sums", lambda mask, *box: (searched.append(mask.shape), original(mask, *box))[1])
    labels = np.kron(np.arange(20).reshape(4, 5), np.ones((400, 400), int)).astype(np.int32)
    assert len(placed(labels, tuple(f"class {i}" for i in range(20)), 57)) == 20
    assert max(max(shape) for shape in searched) <= 160
    assert len(searched) <= 20 * 8  # six sizes of free room, and twice where none is free
