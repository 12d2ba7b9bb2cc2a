"""The confusion matrix against hand-computed cases and scikit-learn."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, jaccard_score

from dpseg.errors import DataError
from dpseg.evaluation.metrics import ConfusionMatrix


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


def test_one_matrix_over_the_set_and_not_the_mean_of_images() -> None:
    """Class b has one wrong pixel in the first image and 99 right ones in the second."""
    matrix = ConfusionMatrix(["a", "b"])
    matrix.update(np.array([0, 0, 0, 1]), np.array([0, 0, 0, 0]))
    matrix.update(np.full(99, 1), np.full(99, 1))
    assert matrix.mean_iou == pytest.approx((3 / 4 + 99 / 100) / 2)
    mean_of_images = ((3 / 4 + 0) / 2 + 1) / 2
    assert abs(matrix.mean_iou - mean_of_images) > 0.1


def test_only_classes_of_the_truth_are_averaged() -> None:
    matrix = ConfusionMatrix(["a", "b", "never", "only guessed"])
    matrix.update(np.array([0, 0, 1, 1]), np.array([0, 3, 1, 1]))
    assert matrix.mean_iou == pytest.approx((1 / 2 + 1) / 2)
    assert math.isnan(matrix.iou[2])
    assert matrix.iou[3] == 0
    assert set(matrix.to_json()["per_class"]) == {"a", "b"}


def test_none_counts_against_the_truth_and_for_no_class() -> None:
    matrix = ConfusionMatrix(["a", "b"])
    matrix.update(np.array([0, 0, 1, 1]), np.array([0, -1, 1, 1]))
    assert matrix.iou.tolist() == [0.5, 1.0]
    assert matrix.pixel_accuracy == 0.75
    assert matrix.matrix.sum() == 3
    assert matrix.pixels == 4


def test_ignored_truth_is_not_counted() -> None:
    truth = np.array([0, 0, 1, 2, 255])
    guess = np.array([1, 2, 1, 0, 77])
    counted = ConfusionMatrix(["background", "a", "b"], ignore={0})
    counted.update(truth, guess)
    assert counted.pixels == 2
    assert counted.mean_iou == pytest.approx((1 + 0) / 2)  # a: right; b: taken for background
    assert counted.to_json()["ignored"] == ["background"]


def test_against_scikit_learn_on_random_labels() -> None:
    rng = np.random.default_rng(0)
    matrix = ConfusionMatrix([f"c{k}" for k in range(7)])
    truths, guesses = [], []
    for _ in range(5):
        truth = rng.integers(0, 7, (30, 41)).astype(np.uint8)
        truth[rng.random((30, 41)) < 0.1] = 255
        guess = np.where(rng.random((30, 41)) < 0.6, truth, rng.integers(0, 7, (30, 41))).astype(np.int32)
        guess[guess == 255] = 3
        matrix.update(truth, guess)
        truths.append(truth[truth != 255])
        guesses.append(guess[truth != 255])
    truth, guess = np.concatenate(truths), np.concatenate(guesses)
    assert np.array_equal(matrix.matrix, confusion_matrix(truth, guess, labels=range(7)))
    assert matrix.mean_iou == pytest.approx(jaccard_score(truth, guess, average="macro"))
    assert matrix.frequency_weighted_iou == pytest.approx(jaccard_score(truth, guess, average="weighted"))


def test_merge_equals_counting_everything_at_once() -> None:
    rng = np.random.default_rng(1)
    truth, guess = rng.integers(0, 4, (2, 200))
    halves = [ConfusionMatrix("abcd", ignore={2}) for _ in range(2)]
    whole = ConfusionMatrix("abcd", ignore={2})
    whole.update(truth, guess)
    for half, part in zip(halves, (slice(0, 90), slice(90, None)), strict=True):
        half.update(truth[part], guess[part])
    assert np.array_equal(halves[0].merge(halves[1]).counts, whole.counts)
    with pytest.raises(DataError, match="like with like"):
        whole.merge(ConfusionMatrix("abcd"))


def test_json_is_plain_and_complete() -> None:
    matrix = ConfusionMatrix(["a", "b"])
    matrix.update(np.array([0, 1, 1]), np.array([0, 1, 0]))
    data = json.loads(json.dumps(matrix.to_json(), allow_nan=False))
    assert data["miou"] == pytest.approx(0.5)
    assert data["per_class"]["b"] == {"iou": 0.5, "recall": 0.5, "pixels": 2}
    assert data["classes_in_truth"] == 2


def test_wrong_input_is_refused() -> None:
    matrix = ConfusionMatrix(["a", "b"])
    with pytest.raises(DataError, match="shape"):
        matrix.update(np.zeros((2, 3), int), np.zeros((3, 2), int))
    with pytest.raises(DataError, match="prediction holds values from 0 to 2"):
        matrix.update(np.array([0, 1]), np.array([0, 2]))
    with pytest.raises(DataError, match="truth holds values from 0 to 9"):
        matrix.update(np.array([0, 9]), np.array([0, 1]))
    assert matrix.pixels == 0
    with pytest.raises(DataError, match="no pixel was counted"):
        _ = matrix.mean_iou
    with pytest.raises(DataError, match="cannot ignore class 2"):
        ConfusionMatrix(["a", "b"], ignore={2})
    with pytest.raises(DataError, match="at least one name"):
        ConfusionMatrix([])
