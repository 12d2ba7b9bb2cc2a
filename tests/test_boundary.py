"""The boundary F-score against hand-computed cases and a slow formulation with distances."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import ndimage

from dpseg.errors import DataError
from dpseg.evaluation.boundary import BoundaryCounts, boundary_labels, close_rims, match, tolerance


def halves(width: int, left: int) -> np.ndarray:
    """A photo of 40 rows, class 0 in so many columns on the left, class 1 in the others."""
    labels = np.ones((40, width), dtype=np.int32)
    labels[:, :left] = 0
    return labels


def test_an_outline_within_the_tolerance_is_right_and_one_beyond_it_is_wrong() -> None:
    assert tolerance(40, 40) == 1  # 0.75 % of 56.6 pixels, rounded up
    for shift, expected in ((0, 1.0), (1, 1.0), (2, 0.0)):
        counts = BoundaryCounts(["a", "b"])
        counts.update(halves(40, 20), halves(40, 20 + shift))
        assert counts.f_score.tolist() == [expected, expected]
        assert counts.counts[:, 0].tolist() == [40, 40]  # one pixel a row on each side


def test_precision_and_recall_differ_where_there_is_too_much_outline() -> None:
    truth = halves(40, 20)
    guess = halves(40, 20)
    guess[:, 35:] = 0  # a second outline, 40 pixels of each class
    counts = BoundaryCounts(["a", "b"])
    counts.update(truth, guess)
    assert counts.recall.tolist() == [1.0, 1.0]
    assert counts.precision.tolist() == [0.5, 0.5]
    assert counts.mean_f_score == pytest.approx(2 * 0.5 / 1.5)


def test_the_tolerance_follows_the_diagonal() -> None:
    assert [tolerance(*size) for size in ((480, 640), (300, 400), (1, 1))] == [6, 4, 1]


def test_outlines_towards_uncounted_pixels_are_none() -> None:
    truth = halves(40, 20)
    truth[:, 20:] = 255
    counts = BoundaryCounts(["a", "b"])
    counts.update(truth, halves(40, 20))
    assert not counts.counts.any()
    assert counts.mean_f_score is None
    background = BoundaryCounts(["a", "b"], ignore={1})
    background.update(halves(40, 20), halves(40, 30))
    assert not background.counts.any()


def test_narrow_unlabelled_rims_are_closed_and_wide_ones_are_not() -> None:
    truth = np.zeros((60, 200), dtype=np.int32)
    truth[:, 100:] = 1
    narrow, wide = truth.copy(), truth.copy()
    narrow[:, 98:102] = 255
    wide[:, 80:120] = 255
    assert np.array_equal(close_rims(narrow, 255, 2), truth)
    assert np.array_equal(close_rims(wide, 255, 2), wide)
    counts = BoundaryCounts(["a", "b"])
    counts.update(narrow, truth)
    assert counts.f_score.tolist() == [1.0, 1.0]


def test_none_is_no_class_but_ends_one() -> None:
    guess = halves(40, 20)
    guess[guess == 1] = -1
    counts = BoundaryCounts(["a", "b"])
    counts.update(halves(40, 20), guess)
    assert counts.counts.tolist() == [[40, 40, 40, 40], [40, 0, 0, 0]]
    assert counts.f_score.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("reach", [1, 3])
def test_against_distances_on_random_regions(reach: int) -> None:
    rng = np.random.default_rng(reach)
    truth, guess = (
        ndimage.zoom(rng.integers(0, 4, (8, 10)), 6, order=0).astype(np.int32) for _ in range(2)
    )  # blocks of 6 x 6 pixels
    guess = np.where(rng.random(guess.shape) < 0.7, np.roll(truth, 1, axis=0), guess)
    everywhere = np.ones(truth.shape, dtype=bool)
    one, other = boundary_labels(truth, everywhere), boundary_labels(guess, everywhere)
    values, met = match(one, other, reach)
    for value in range(4):
        distance = ndimage.distance_transform_edt(other != value)
        assert (values == value).sum() == (one == value).sum()
        assert met[values == value].sum() == (distance[one == value] <= reach).sum()


def test_merge_equals_counting_everything_and_json_is_plain() -> None:
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 3, (2, 20, 30)) for _ in range(4)]
    parts = [BoundaryCounts("abc") for _ in photos]
    whole = BoundaryCounts("abc")
    for part, (truth, guess) in zip(parts, photos, strict=True):
        part.update(truth, guess)
        whole.update(truth, guess)
    merged = parts[3].merge(parts[1]).merge(parts[0].merge(parts[2]))
    assert np.array_equal(merged.counts, whole.counts)
    written = json.loads(json.dumps(whole.to_json(), allow_nan=False))
    assert set(written["per_class"]) == {"a", "b", "c"}
    assert written["f_score"] == whole.mean_f_score
    with pytest.raises(DataError, match="like with like"):
        whole.merge(BoundaryCounts("ab"))
