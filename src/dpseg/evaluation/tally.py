"""All that is counted for one kind of prompts and inference, as integers, so that parts of a set merge exactly."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dpseg.evaluation.boundary import BoundaryCounts
from dpseg.evaluation.metrics import ConfusionMatrix, Labels
from dpseg.evaluation.sizes import SizeCounts

Counts = NDArray[np.int64]


class Tally:
    """The counts of any number of photos.

    Attributes:
        matrix: pixels, truth x prediction.
        boundary: pixels on outlines.
        sizes: regions of the truth by area.
        photos: (N, 3) int64: a photo's index in the data set, its counted pixels, and how many of them are right.
    """

    def __init__(self, names: Sequence[str], ignore_index: int = 255, ignore: Collection[int] = ()) -> None:
        """Starts with nothing counted; the arguments are those of `ConfusionMatrix`."""
        self.matrix = ConfusionMatrix(names, ignore_index, ignore)
        self.boundary = BoundaryCounts(names, ignore_index, ignore)
        self.sizes = SizeCounts(names, ignore_index, ignore)
        self.photos: Counts = np.zeros((0, 3), dtype=np.int64)

    def update(self, index: int, truth: Labels, prediction: Labels) -> None:
        """Counts one photo.

        Args:
            index: of the photo in the data set.
            truth: (H, W) labels in [0, K) or the ignored value.
            prediction: (H, W) labels in [0, K), or -1 for none.

        Raises:
            DataError: the shapes differ, or a value is out of range.
        """
        before = self.matrix.counts.copy()
        self.matrix.update(truth, prediction)
        new = self.matrix.counts - before
        self.boundary.update(truth, prediction)
        self.sizes.update(truth, prediction)
        self.photos = np.append(self.photos, [[index, int(new.sum()), int(np.trace(new))]], axis=0)

    def merge(self, other: Tally) -> Tally:
        """Returns the counts of both, photos by their index.

        Raises:
            DataError: they count other classes or ignore other values.
        """
        merged = Tally(self.matrix.names, self.matrix.ignore_index, self.matrix.ignore)
        merged.matrix = self.matrix.merge(other.matrix)
        merged.boundary = self.boundary.merge(other.boundary)
        merged.sizes = self.sizes.merge(other.sizes)
        photos = np.concatenate([self.photos, other.photos])
        merged.photos = photos[np.argsort(photos[:, 0], kind="stable")]
        return merged

    def to_arrays(self) -> dict[str, Counts]:
        """Returns all counts by name."""
        return {
            "matrix": self.matrix.counts,
            "boundary": self.boundary.counts,
            "sizes": self.sizes.counts,
            "photos": self.photos,
        }

    def load_arrays(self, arrays: Mapping[str, Counts]) -> None:
        """Takes the counts that `to_arrays` of an equal tally returned.

        Raises:
            KeyError: one is missing.
            ValueError: one has another shape.
        """
        for name, own in self.to_arrays().items():
            same = arrays[name].shape[1:] == own.shape[1:] and (name == "photos" or len(arrays[name]) == len(own))
            if not same or arrays[name].dtype != np.int64:
                raise ValueError(f"{name} has the shape {arrays[name].shape}")
        self.matrix.counts, self.boundary.counts = arrays["matrix"], arrays["boundary"]
        self.sizes.counts, self.photos = arrays["sizes"], arrays["photos"]
