"""Regions of the truth by area: which are counted as small, and what counts as found."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dpseg.errors import DataError
from dpseg.evaluation.sizes import SizeCounts


def test_areas_are_sorted_into_the_ranges_of_coco() -> None:
    truth = np.zeros((200, 400), dtype=np.int32)
    truth[0:31, 0:33] = 1  # 1023 pixels: small
    truth[0:32, 100:132] = 1  # 1024: medium
    truth[50:145, 0:97] = 1  # 9215: medium
    truth[50:146, 100:196] = 1  # 9216: large
    counts = SizeCounts(["background", "a"], ignore={0})
    counts.update(truth, np.ones_like(truth))
    assert counts.counts[1, :, 0].tolist() == [1, 2, 1]
    assert counts.counts[1, :, 2].tolist() == [1023, 1024 + 9215, 9216]
    assert not counts.counts[0].any()
    assert counts.found.tolist() == [1, 1, 1]


def test_more_than_half_is_found_and_half_is_not() -> None:
    truth = np.zeros((30, 60), dtype=np.int32)
    truth[5:15, 5:15] = truth[5:15, 25:35] = truth[5:15, 45:55] = 1
    guess = np.zeros_like(truth)
    guess[5:15, 5:10] = 1  # half
    guess[5:15, 25:31] = 1  # six tenths
    guess[0:20, 45:60] = 1  # all, and more
    counts = SizeCounts(["a", "b"])
    counts.update(truth, guess)
    assert counts.counts[1, 0].tolist() == [3, 2, 300, 210]
    assert counts.counts[0, 1].tolist() == [1, 1, 1500, 1500 - 20 * 15 + 100]
    assert counts.recall[:2].tolist() == pytest.approx([0.7, 1300 / 1500])
    assert counts.found[:2].tolist() == pytest.approx([2 / 3, 1])


def test_regions_touch_at_corners_and_end_at_unlabelled_pixels() -> None:
    truth = np.full((10, 10), 255, dtype=np.int32)
    truth[0:3, 0:3] = truth[3:6, 3:6] = 0
    truth[8:, 8:] = 0
    counts = SizeCounts(["a"])
    counts.update(truth, np.zeros_like(truth))
    assert counts.counts[0, 0].tolist() == [2, 2, 22, 22]


def test_the_recall_is_a_mean_over_classes() -> None:
    truth = np.array([[0] * 9 + [1]], dtype=np.int32)
    counts = SizeCounts(["a", "b", "c"])
    counts.update(truth, np.zeros_like(truth))
    assert counts.recall[0] == pytest.approx((1 + 0) / 2)
    assert counts.found[0] == pytest.approx(1 / 2)


def test_merge_and_json() -> None:
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 3, (2, 50, 70)) for _ in range(3)]
    parts, whole = [SizeCounts("abc") for _ in photos], SizeCounts("abc")
    for part, (truth, guess) in zip(parts, photos, strict=True):
        part.update(truth, guess)
        whole.update(truth, guess)
    assert np.array_equal(parts[2].merge(parts[0]).merge(parts[1]).counts, whole.counts)
    written = json.loads(json.dumps(whole.to_json(), allow_nan=False))
    assert "small" in written
    assert sum(size["pixels"] for size in written.values()) == 3 * 50 * 70
    with pytest.raises(DataError, match="like with like"):
        whole.merge(SizeCounts("abc", ignore={0}))
