"""Small objects apart: how much was found of the truth's connected regions, by their area.

The ranges are those of COCO's detection metrics. A region is a connected part of a class in the truth, so objects of
one class that touch are one. Wrong pixels belong to no region; hence recall, and no IoU.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dpseg.errors import DataError
from dpseg.evaluation.metrics import Labels

SIZES = ("small", "medium", "large")
"""Area below 32 x 32 pixels, below 96 x 96, and above."""

_LIMITS = (32**2, 96**2)
OBJECTS, FOUND, PIXELS, RIGHT = range(4)
"""Last axis of the counts."""

_NEIGHBOURS = np.ones((3, 3), dtype=int)  # 8, as in COCO output


class SizeCounts:
    """Counts of the truth's regions and of their pixels, and of what was found of them.

    Attributes:
        names: K class names; a label is an index into them.
        ignore_index: truth value of pixels that nobody labelled; they belong to no region.
        ignore: further truth values that are not counted.
        counts: (K, 3, 4) int64, class x size: regions, those of which more than half was found, pixels, right pixels.
    """

    def __init__(self, names: Sequence[str], ignore_index: int = 255, ignore: Collection[int] = ()) -> None:
        self.names = tuple(names)
        self.ignore_index = ignore_index
        self.ignore = frozenset(ignore)
        self.counts: NDArray[np.int64] = np.zeros((len(names), len(SIZES), 4), dtype=np.int64)

    def update(self, truth: Labels, prediction: Labels) -> None:
        """Counts one photo.

        Args:
            truth: (H, W) labels in [0, K) or `ignore_index`.
            prediction: (H, W) labels in [0, K), or -1 for none.
        """
        counted = (truth != self.ignore_index) & ~np.isin(truth, list(self.ignore))
        boxes = ndimage.find_objects(np.where(counted, truth + 1, 0), max_label=len(self.names))
        for value, box in enumerate(boxes):
            if box is None:
                continue
            mask = (truth[box] == value) & counted[box]
            regions, number = ndimage.label(mask, structure=_NEIGHBOURS)
            area = np.bincount(regions.ravel(), minlength=number + 1)[1:]
            right = np.bincount(regions[mask & (prediction[box] == value)], minlength=number + 1)[1:]
            rows = np.stack([np.ones_like(area), 2 * right > area, area, right], axis=1).astype(np.int64)
            np.add.at(self.counts[value], np.digitize(area, _LIMITS), rows)

    def merge(self, other: SizeCounts) -> SizeCounts:
        """Returns the counts of both.

        Raises:
            DataError: they count other classes or ignore other values.
        """
        if (self.names, self.ignore_index, self.ignore) != (other.names, other.ignore_index, other.ignore):
            raise DataError("the two size counts are of other classes or ignore other values; merge like with like")
        merged = SizeCounts(self.names, self.ignore_index, self.ignore)
        merged.counts = self.counts + other.counts
        return merged

    @property
    def found(self) -> NDArray[np.float64]:
        """(3,) fraction of all regions of a size of which more than half was found, in [0, 1]; NaN without any."""
        total = self.counts.sum(axis=0)
        return _ratio(total[:, FOUND], total[:, OBJECTS])

    @property
    def recall(self) -> NDArray[np.float64]:
        """(3,) fraction of a class's pixels in regions of a size that were found, averaged over the classes, in [0, 1].

        NaN without any.
        """
        recall = _ratio(self.counts[..., RIGHT], self.counts[..., PIXELS])
        occurs = self.counts[..., PIXELS] > 0
        return _ratio(np.where(occurs, recall, 0).sum(axis=0), occurs.sum(axis=0))

    def to_json(self) -> dict[str, Any]:
        """Returns the figures of each size that occurs as plain values."""
        total = self.counts.sum(axis=0)
        return {
            name: {
                "recall": float(self.recall[index]),
                "found": float(self.found[index]),
                "objects": int(total[index, OBJECTS]),
                "pixels": int(total[index, PIXELS]),
                "classes": int((self.counts[:, index, OBJECTS] > 0).sum()),
            }
            for index, name in enumerate(SIZES)
            if total[index, OBJECTS]
        }


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0))
