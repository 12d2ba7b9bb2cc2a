"""What is counted of labels: pixels, outlines, regions by size, and the classes that training had."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from dpseg.config import ModelConfig
from dpseg.data.vocabularies import load_vocabulary
from dpseg.errors import DataError
from dpseg.evaluation.boundary import BoundaryCounts, boundary_labels, close_rims, match, tolerance
from dpseg.evaluation.metrics import ConfusionMatrix
from dpseg.evaluation.seen import NAMES_FILE, by_seen, seen_classes, training_names
from dpseg.evaluation.sizes import SizeCounts


def test_hand_computed_case() -> None:
    matrix = ConfusionMatrix(["a", "b", "c"])
    truth = np.array([[0, 0, 1, 1], [1, 255, 2, 2]])
    guess = np.array([[0, 1, 1, 1], [2, 0, 2, 0]])
    matrix.update(truth, guess)
    assert matrix.matrix.tolist() == [[1, 1, 0], [0, 2, 1], [1, 0, 1]]
    # a: 1 / (2 + 2 - 1), b: 2 / (3 + 3 - 2), c: 1 / (2 + 2 - 1)
    assert matrix.iou.tolist() == pytest.approx([1 / 3, 1 / 2, 1 / 3])
    assert matrix.mean_iou == pytest.approx(7 / 18)
    assert matrix.pixel_accuracy == pytest.approx(4 / 7)
    assert matrix.mean_accuracy == pytest.approx((1 / 2 + 2 / 3 + 1 / 2) / 3)
    assert matrix.frequency_weighted_iou == pytest.approx((2 / 3 + 3 / 2 + 2 / 3) / 7)


CLASSES = "abcd"
PIXELS = st.lists(st.tuples(st.sampled_from([*range(4), 255]), st.integers(-1, 3)), min_size=1, max_size=30)


@given(st.lists(PIXELS, min_size=1, max_size=4), st.sets(st.integers(0, 3), max_size=3), st.integers(0, 4))
def test_every_figure_is_that_of_a_plain_count_over_all_images_however_they_are_shared(
    images: list[list[tuple[int, int]]], ignore: set[int], first: int
) -> None:
    whole, left, right = (ConfusionMatrix(CLASSES, ignore=ignore) for _ in range(3))
    for number, image in enumerate(images):
        truth, guess = np.array(image).T
        whole.update(truth.astype(np.uint8), guess)
        (left if number < first else right).update(truth.astype(np.uint8), guess)
    counts = Counter(pair for image in images for pair in image if pair[0] != 255 and pair[0] not in ignore)
    assert whole.counts.tolist() == [[counts[k, guess] for guess in (0, 1, 2, 3, -1)] for k in range(4)]
    assert np.array_equal(left.merge(right).counts, whole.counts)
    assert whole.pixels == counts.total()
    if not counts:
        with pytest.raises(DataError, match="no pixel was counted"):
            _ = whole.mean_iou
        return
    ours, theirs = Counter(k for k, _ in counts.elements()), Counter(guess for _, guess in counts.elements())
    iou = {k: counts[k, k] / (ours[k] + theirs[k] - counts[k, k]) for k in range(4) if ours[k] or theirs[k]}
    assert {k: value for k, value in enumerate(whole.iou.tolist()) if not math.isnan(value)} == pytest.approx(iou)
    figures = json.loads(json.dumps(whole.to_json(), allow_nan=False))
    assert figures == {
        "miou": pytest.approx(sum(iou[k] for k in ours) / len(ours)),
        "pixel_accuracy": pytest.approx(sum(counts[k, k] for k in range(4)) / counts.total()),
        "mean_accuracy": pytest.approx(sum(counts[k, k] / ours[k] for k in ours) / len(ours)),
        "frequency_weighted_iou": pytest.approx(sum(ours[k] * iou[k] for k in ours) / counts.total()),
        "pixels": counts.total(),
        "classes": 4,
        "classes_in_truth": len(ours),
        "ignored": [CLASSES[k] for k in sorted(ignore)],
        "per_class": {
            CLASSES[k]: {
                "iou": pytest.approx(iou[k]),
                "recall": pytest.approx(counts[k, k] / ours[k]),
                "pixels": ours[k],
            }
            for k in ours
        },
    }


def test_labels_and_classes_that_cannot_be_are_refused() -> None:
    matrix = ConfusionMatrix(["a", "b"])
    for truth, guess, message in (
        (np.zeros((2, 3), int), np.zeros((3, 2), int), "shape"),
        (np.array([0, 1]), np.array([0, 2]), "prediction holds values from 0 to 2"),
        (np.array([0, 9]), np.array([0, 1]), "truth holds values from 0 to 9"),
    ):
        with pytest.raises(DataError, match=message):
            matrix.update(truth, guess)
    matrix.update(np.array([255]), np.array([77]))  # where the truth is ignored, anything may be
    assert matrix.pixels == 0
    with pytest.raises(DataError, match="cannot ignore class 2"):
        ConfusionMatrix(["a", "b"], ignore={2})
    with pytest.raises(DataError, match="at least one name"):
        ConfusionMatrix([])


@pytest.mark.parametrize("kind", [ConfusionMatrix, BoundaryCounts, SizeCounts])
def test_counts_of_parts_merge_to_those_of_the_whole_and_only_like_with_like(kind: Any) -> None:
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 3, (2, 50, 70)) for _ in range(4)]
    parts, whole = [kind("abc") for _ in photos], kind("abc")
    for part, (truth, guess) in zip(parts, photos, strict=True):
        part.update(truth, guess)
        whole.update(truth, guess)
    assert np.array_equal(parts[3].merge(parts[1]).merge(parts[0].merge(parts[2])).counts, whole.counts)
    for other in (kind("ab"), kind("abc", ignore={0}), kind("abc", 254)):
        with pytest.raises(DataError, match="like with like"):
            whole.merge(other)
    written = json.loads(json.dumps(whole.to_json(), allow_nan=False))
    if kind is BoundaryCounts:
        assert set(written["per_class"]) == {"a", "b", "c"}
        assert written["f_score"] == whole.mean_f_score
    if kind is SizeCounts:
        assert "small" in written
        assert sum(size["pixels"] for size in written.values()) == 4 * 50 * 70


def halves(width: int, left: int) -> NDArray[np.int32]:
    """A photo of 40 rows, class 0 in so many columns on the left, class 1 in the others."""
    labels = np.ones((40, width), dtype=np.int32)
    labels[:, :left] = 0
    return labels


def boundaries(truth: NDArray[np.int32], guess: NDArray[np.int32], **options: Any) -> BoundaryCounts:
    counts = BoundaryCounts(["a", "b"], **options)
    counts.update(truth, guess)
    return counts


def test_an_outline_within_the_tolerance_is_right_and_one_beyond_it_is_wrong() -> None:
    assert tolerance(40, 40) == 1  # 0.75 % of 56.6 pixels, rounded up
    assert [tolerance(*size) for size in ((480, 640), (300, 400), (1, 1))] == [6, 4, 1]
    for shift, expected in ((0, 1.0), (1, 1.0), (2, 0.0)):
        counts = boundaries(halves(40, 20), halves(40, 20 + shift))
        assert counts.f_score.tolist() == [expected, expected]
        assert counts.counts[:, 0].tolist() == [40, 40]  # one pixel a row on each side
    guess = halves(40, 20)
    guess[:, 35:] = 0  # a second outline, 40 pixels of each class
    counts = boundaries(halves(40, 20), guess)
    assert counts.recall.tolist() == [1.0, 1.0]
    assert counts.precision.tolist() == [0.5, 0.5]
    assert counts.mean_f_score == pytest.approx(2 * 0.5 / 1.5)


def test_outlines_towards_uncounted_pixels_are_none_and_none_is_no_class_but_ends_one() -> None:
    truth = halves(40, 20)
    truth[:, 20:] = 255
    counts = boundaries(truth, halves(40, 20))
    assert not counts.counts.any()
    assert counts.mean_f_score is None
    assert not boundaries(halves(40, 20), halves(40, 30), ignore={1}).counts.any()
    guess = halves(40, 20)
    guess[guess == 1] = -1
    counts = boundaries(halves(40, 20), guess)
    assert counts.counts.tolist() == [[40, 40, 40, 40], [40, 0, 0, 0]]
    assert counts.f_score.tolist() == [1.0, 0.0]


def test_narrow_unlabelled_rims_are_closed_and_wide_ones_are_not() -> None:
    truth = np.zeros((60, 200), dtype=np.int32)
    truth[:, 100:] = 1
    narrow, wide = truth.copy(), truth.copy()
    narrow[:, 98:102] = 255
    wide[:, 80:120] = 255
    assert np.array_equal(close_rims(narrow, 255, 2), truth)
    assert np.array_equal(close_rims(wide, 255, 2), wide)
    assert boundaries(narrow, truth).f_score.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("reach", [1, 3])
def test_outlines_are_matched_as_distances_on_random_regions_say(reach: int) -> None:
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


def test_regions_touch_at_corners_and_end_at_unlabelled_pixels_and_recall_is_a_mean_over_classes() -> None:
    truth = np.full((10, 10), 255, dtype=np.int32)
    truth[0:3, 0:3] = truth[3:6, 3:6] = 0
    truth[8:, 8:] = 0
    counts = SizeCounts(["a"])
    counts.update(truth, np.zeros_like(truth))
    assert counts.counts[0, 0].tolist() == [2, 2, 22, 22]
    counts = SizeCounts(["a", "b", "c"])
    counts.update(np.array([[0] * 9 + [1]]), np.zeros((1, 10), int))
    assert counts.recall[0] == pytest.approx((1 + 0) / 2)
    assert counts.found[0] == pytest.approx(1 / 2)


def test_a_name_or_a_synonym_makes_a_class_seen_whatever_its_case() -> None:
    seen = seen_classes(["Couch, sofa", "sofa bed", "mug", "TV, television"], ["sofa", "cup, mug", "tv"])
    assert seen.tolist() == [True, False, True, True]
    training = load_vocabulary("cocostuff171")
    assert seen_classes(load_vocabulary("voc20"), training).all()
    assert 0.2 < seen_classes(load_vocabulary("ade150"), training).mean() < 0.8
    matrix = ConfusionMatrix(["a", "b", "c", "never"])
    matrix.update(np.array([0, 0, 1, 1, 2, 2]), np.array([0, 0, 1, 2, 2, 1]))
    split = by_seen(matrix, np.array([True, False, False, True]))
    assert split["seen"] == {"miou": 1.0, "classes": 1}
    assert split["unseen"] == {"miou": pytest.approx(1 / 3), "classes": 2}
    assert by_seen(matrix, np.ones(4, bool))["unseen"] == {"miou": None, "classes": 0}


def test_clip_models_saw_coco_stuff_and_lite_what_its_folder_says(tmp_path: Path) -> None:
    assert training_names(ModelConfig(encoder="base"), None) == load_vocabulary("cocostuff171")
    lite = ModelConfig(encoder="lite")
    assert training_names(lite, None) is None
    assert training_names(lite, tmp_path) is None
    (tmp_path / NAMES_FILE).write_text("# names\ncat\ncouch, sofa\n")
    assert training_names(lite, tmp_path) == ["cat", "couch, sofa"]
