"""The boundary F-score: how well outlines are met, class by class.

A pixel is on the boundary of its class where one of its four neighbours has another label. It is matched where the
other label map has a boundary pixel of the same class within a tolerance of 0.75 % of the photo's diagonal (Csurka et
al., "What is a good evaluation measure for semantic segmentation?", BMVC 2013), rounded up to pixels as in DAVIS
(Perazzi et al., CVPR 2016). Pixels are counted over the whole set, so that parts of it merge exactly.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dpseg.errors import DataError
from dpseg.evaluation.metrics import Labels

TOLERANCE = 0.0075
"""Distance within which boundary pixels match, as a fraction of the photo's diagonal."""

_NONE = -1
TRUTH, TRUTH_MET, PREDICTED, PREDICTED_MET = range(4)
"""Columns of the counts."""


class BoundaryCounts:
    """Counts of boundary pixels of truth and prediction, and of those that are matched.

    Outlines towards pixels that are not counted are unknown, and no boundary. Unlabelled rims that are narrower than
    twice the tolerance, as those around the objects of PASCAL VOC, are closed first with the nearest label.

    Attributes:
        names: K class names; a label is an index into them.
        ignore_index: truth value of pixels that nobody labelled.
        ignore: further truth values that are not counted.
        counts: (K, 4) int64 pixels: boundary of the truth, of those matched, boundary of the prediction, of those
            matched.
    """

    def __init__(self, names: Sequence[str], ignore_index: int = 255, ignore: Collection[int] = ()) -> None:
        self.names = tuple(names)
        self.ignore_index = ignore_index
        self.ignore = frozenset(ignore)
        self.counts: NDArray[np.int64] = np.zeros((len(names), 4), dtype=np.int64)

    def update(self, truth: Labels, prediction: Labels) -> None:
        """Counts one photo.

        Args:
            truth: (H, W) labels in [0, K) or `ignore_index`.
            prediction: (H, W) labels in [0, K), or -1 for none.
        """
        reach = tolerance(truth.shape[0], truth.shape[1])
        closed = close_rims(truth, self.ignore_index, reach)
        counted = (closed != self.ignore_index) & ~np.isin(closed, list(self.ignore))
        ours, theirs = boundary_labels(closed, counted), boundary_labels(prediction, counted)
        for column, one, other in ((TRUTH, ours, theirs), (PREDICTED, theirs, ours)):
            values, met = match(one, other, reach)
            self.counts[:, column] += np.bincount(values, minlength=len(self.names))
            self.counts[:, column + 1] += np.bincount(values[met], minlength=len(self.names))

    def merge(self, other: BoundaryCounts) -> BoundaryCounts:
        """Returns the counts of both.

        Raises:
            DataError: they count other classes or ignore other values.
        """
        if (self.names, self.ignore_index, self.ignore) != (other.names, other.ignore_index, other.ignore):
            raise DataError("the two boundary counts are of other classes or ignore other values; merge like with like")
        merged = BoundaryCounts(self.names, self.ignore_index, self.ignore)
        merged.counts = self.counts + other.counts
        return merged

    @property
    def precision(self) -> NDArray[np.float64]:
        """(K,) fraction of the predicted boundary that the truth has too, in [0, 1]; NaN where none is predicted."""
        return _ratio(self.counts[:, PREDICTED_MET], self.counts[:, PREDICTED])

    @property
    def recall(self) -> NDArray[np.float64]:
        """(K,) fraction of the true boundary that was met, in [0, 1]; NaN where the truth has none."""
        return _ratio(self.counts[:, TRUTH_MET], self.counts[:, TRUTH])

    @property
    def f_score(self) -> NDArray[np.float64]:
        """(K,) harmonic mean of precision and recall in [0, 1]; NaN where the truth has no boundary."""
        precision, recall = np.nan_to_num(self.precision), self.recall
        return np.where(np.isnan(recall), np.nan, _ratio(2 * precision * recall, precision + recall, empty=0.0))

    @property
    def mean_f_score(self) -> float | None:
        """The mean of `f_score` over the classes whose boundary the truth shows; None where it shows none."""
        occurs = self.counts[:, TRUTH] > 0
        return float(self.f_score[occurs].mean()) if occurs.any() else None

    def to_json(self) -> dict[str, Any]:
        """Returns every figure as plain values, per class only for classes whose boundary the truth shows."""
        precision = np.nan_to_num(self.precision)
        return {
            "f_score": self.mean_f_score,
            "tolerance": TOLERANCE,
            "per_class": {
                self.names[index]: {
                    "f_score": float(self.f_score[index]),
                    "precision": float(precision[index]),
                    "recall": float(self.recall[index]),
                    "pixels": int(self.counts[index, TRUTH]),
                }
                for index in np.flatnonzero(self.counts[:, TRUTH])
            },
        }


def tolerance(height: int, width: int) -> int:
    """Returns the distance in pixels within which boundary pixels of a photo match, 1 or more."""
    return math.ceil(TOLERANCE * math.hypot(height, width))


def close_rims(truth: Labels, ignore_index: int, reach: int) -> NDArray[np.int64]:
    """Gives unlabelled rims and gaps narrower than about twice `reach` pixels the nearest label.

    Args:
        truth: (H, W) labels or `ignore_index`.
        ignore_index: value of the pixels without a label.
        reach: in pixels.

    Returns:
        (H, W); larger unlabelled regions keep `ignore_index`.
    """
    unlabelled = truth == ignore_index
    closed = truth.astype(np.int64)
    if not unlabelled.any() or unlabelled.all():
        return closed
    distance, nearest = ndimage.distance_transform_edt(unlabelled, return_indices=True)
    near = distance <= reach
    far = np.ones_like(near) if near.all() else ndimage.distance_transform_edt(near) > reach
    rim = unlabelled & far
    closed[rim] = truth[nearest[0][rim], nearest[1][rim]]
    return closed


def boundary_labels(labels: Labels, counted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Returns the labels of the pixels on a boundary, (H, W), and -1 elsewhere.

    Args:
        labels: (H, W), -1 for none.
        counted: (H, W); other pixels are on no boundary, and make none.
    """
    edges = np.zeros(labels.shape, dtype=bool)
    across = (labels[:, 1:] != labels[:, :-1]) & counted[:, 1:] & counted[:, :-1]
    down = (labels[1:] != labels[:-1]) & counted[1:] & counted[:-1]
    edges[:, 1:] |= across
    edges[:, :-1] |= across
    edges[1:] |= down
    edges[:-1] |= down
    return np.where(edges, labels, _NONE).astype(np.int64)


def match(
    boundary: NDArray[np.int64], other: NDArray[np.int64], reach: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Looks for each boundary pixel whether another boundary has one of the same class near it.

    Args:
        boundary: (H, W) labels, -1 where there is no boundary.
        other: (H, W) likewise.
        reach: so many pixels away at most.

    Returns:
        For the N boundary pixels: their labels, and whether they are matched.
    """
    rows, columns = np.nonzero(boundary >= 0)
    values = boundary[rows, columns]
    padded = np.pad(other, reach, constant_values=_NONE)
    places = (rows + reach) * padded.shape[1] + columns + reach
    flat = padded.ravel()
    met = np.zeros(len(values), dtype=bool)
    left = np.arange(len(values))
    for down, across in _disk(reach):
        hit = flat[places[left] + down * padded.shape[1] + across] == values[left]
        met[left[hit]] = True
        left = left[~hit]
        if not left.size:
            break
    return values, met


@lru_cache(maxsize=64)
def _disk(reach: int) -> tuple[tuple[int, int], ...]:
    """Returns the offsets (down, across) of at most `reach` pixels, nearest first."""
    span = range(-reach, reach + 1)
    inside = [(down, across) for down in span for across in span if down**2 + across**2 <= reach**2]
    return tuple(sorted(inside, key=lambda offset: offset[0] ** 2 + offset[1] ** 2))


def _ratio(part: NDArray[Any], whole: NDArray[Any], empty: float = math.nan) -> NDArray[np.float64]:
    return np.asarray(np.divide(part, whole, out=np.full(len(whole), empty), where=whole > 0))
