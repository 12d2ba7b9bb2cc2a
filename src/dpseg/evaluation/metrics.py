"""The field's mIoU: one confusion matrix over the whole set, averaged over the classes that occur in the truth.

Averaging the scores of single images, as some libraries' MeanIoU does, gives another number: a class that covers one
pixel of one photo would weigh as much there as one that fills it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpseg.errors import DataError

Labels = NDArray[np.integer[Any]]


class ConfusionMatrix:
    """Counts of (truth, prediction) pairs of pixels, gathered over any number of images.

    Attributes:
        names: K class names; a label is an index into them.
        ignore_index: truth value of pixels that nobody labelled; they are not counted.
        ignore: further truth values that are not counted, e.g. {0} where line 0 is background.
        counts: (K, K + 1) int64, truth x prediction; the last column counts the prediction -1, "none of the classes".
    """

    def __init__(self, names: Sequence[str], ignore_index: int = 255, ignore: Collection[int] = ()) -> None:
        """Starts with no pixel counted.

        Raises:
            DataError: there is no class, or an ignored value is not a class.
        """
        if not names:
            raise DataError("no class to evaluate; give at least one name")
        wrong = [value for value in ignore if not 0 <= value < len(names)]
        if wrong:
            raise DataError(f"cannot ignore class {wrong[0]}: there are {len(names)} classes, 0 to {len(names) - 1}")
        self.names = tuple(names)
        self.ignore_index = ignore_index
        self.ignore = frozenset(ignore)
        self.counts: NDArray[np.int64] = np.zeros((len(names), len(names) + 1), dtype=np.int64)

    def update(self, truth: Labels, prediction: Labels) -> None:
        """Counts one image, or any number of pixels.

        Args:
            truth: labels in [0, K) or `ignore_index`, any shape.
            prediction: labels in [0, K), or -1 for none, of the same shape; anything where the truth is ignored.

        Raises:
            DataError: the shapes differ, or a value that counts is out of range.
        """
        if truth.shape != prediction.shape:
            raise DataError(f"truth has the shape {truth.shape} but the prediction {prediction.shape}; resize it first")
        size = len(self.names)
        counted = (truth != self.ignore_index) & ~np.isin(truth, list(self.ignore))
        rows = truth[counted].astype(np.int64)
        columns = prediction[counted].astype(np.int64)
        for what, values, low in (("truth", rows, 0), ("prediction", columns, -1)):
            if values.size and not (low <= values.min() and values.max() < size):
                raise DataError(
                    f"{what} holds values from {values.min()} to {values.max()}, outside {low} to {size - 1}"
                    f" ({self.ignore_index} = ignored)"
                )
        columns[columns == -1] = size
        self.counts += np.bincount(rows * (size + 1) + columns, minlength=size * (size + 1)).reshape(size, size + 1)

    def merge(self, other: ConfusionMatrix) -> ConfusionMatrix:
        """Returns the counts of both, e.g. of two halves of a set.

        Raises:
            DataError: they count other classes or ignore other values.
        """
        if (self.names, self.ignore_index, self.ignore) != (other.names, other.ignore_index, other.ignore):
            raise DataError(
                "the two confusion matrices count other classes or ignore other values; merge like with like"
            )
        merged = ConfusionMatrix(self.names, self.ignore_index, self.ignore)
        merged.counts = self.counts + other.counts
        return merged

    @property
    def matrix(self) -> NDArray[np.int64]:
        """(K, K) counts, truth x prediction, without the pixels that were predicted as none."""
        return self.counts[:, :-1]

    @property
    def pixels(self) -> int:
        """How many pixels were counted."""
        return int(self.counts.sum())

    @property
    def occurs(self) -> NDArray[np.bool_]:
        """(K,) which classes occur in the truth: those that mIoU averages over."""
        return np.asarray(self.counts.sum(axis=1) > 0)

    @property
    def iou(self) -> NDArray[np.float64]:
        """(K,) intersection over union of each class in [0, 1]; NaN where neither truth nor prediction has it."""
        hits = np.diagonal(self.matrix).astype(np.float64)
        union = self.counts.sum(axis=1) + self.matrix.sum(axis=0) - hits
        return np.asarray(np.divide(hits, union, out=np.full(len(self.names), np.nan), where=union > 0))

    @property
    def recall(self) -> NDArray[np.float64]:
        """(K,) fraction of each class's truth that was found, in [0, 1]; NaN for a class without truth."""
        hits = np.diagonal(self.matrix).astype(np.float64)
        truth = self.counts.sum(axis=1)
        return np.asarray(np.divide(hits, truth, out=np.full(len(self.names), np.nan), where=truth > 0))

    @property
    def mean_iou(self) -> float:
        """MIoU in [0, 1]: the mean of `iou` over the classes that occur in the truth.

        Raises:
            DataError: nothing was counted.
        """
        self._check_counted()
        return float(self.iou[self.occurs].mean())

    @property
    def mean_accuracy(self) -> float:
        """The mean of `recall` over the classes that occur in the truth, in [0, 1].

        Raises:
            DataError: nothing was counted.
        """
        self._check_counted()
        return float(self.recall[self.occurs].mean())

    @property
    def pixel_accuracy(self) -> float:
        """Fraction of the counted pixels that are right, in [0, 1].

        Raises:
            DataError: nothing was counted.
        """
        self._check_counted()
        return float(np.trace(self.matrix) / self.pixels)

    @property
    def frequency_weighted_iou(self) -> float:
        """The mean of `iou` weighted by each class's share of the truth, in [0, 1].

        Raises:
            DataError: nothing was counted.
        """
        self._check_counted()
        share = self.counts.sum(axis=1) / self.pixels
        return float((share[self.occurs] * self.iou[self.occurs]).sum())

    def to_json(self) -> dict[str, Any]:
        """Returns every figure as plain values, per class only for the classes that occur in the truth.

        Raises:
            DataError: nothing was counted.
        """
        truth = self.counts.sum(axis=1)
        return {
            "miou": self.mean_iou,
            "pixel_accuracy": self.pixel_accuracy,
            "mean_accuracy": self.mean_accuracy,
            "frequency_weighted_iou": self.frequency_weighted_iou,
            "pixels": self.pixels,
            "classes": len(self.names),
            "classes_in_truth": int(self.occurs.sum()),
            "ignored": [self.names[index] for index in sorted(self.ignore)],
            "per_class": {
                self.names[index]: {
                    "iou": float(self.iou[index]),
                    "recall": float(self.recall[index]),
                    "pixels": int(truth[index]),
                }
                for index in np.flatnonzero(self.occurs)
            },
        }

    def _check_counted(self) -> None:
        if not self.counts.any():
            raise DataError(
                "no pixel was counted: the masks hold only ignored values; check the classes and the background"
            )
