"""Objects of labelled photos: the largest of each class, to be cut out by their masks as reference pictures."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from dpseg.config import Context
from dpseg.data.labelled import LabelledSet
from dpseg.data.pictures import NamedPicture
from dpseg.errors import DPSegError
from dpseg.prompts.text import parse_class
from dpseg.prompts.visual import Mask, Reference

Candidates = Mapping[int, list[tuple[int, int]]]
"""Class -> (area in pixels, index of the photo) of its largest objects, the largest first."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ObjectReference(Reference):
    """The largest connected region of a class in a labelled photo; pixels are read when asked for, and not kept.

    Attributes:
        dataset: the labelled photos.
        index: of the photo.
        value: the class, which the photo shows.
    """

    dataset: LabelledSet
    index: int
    value: int

    def read(self) -> tuple[Image.Image, Mask]:
        """Returns the photo, RGB, and where in it the object is, (H, W) bool.

        Raises:
            ImageError: The photo or the mask cannot be read.
            DataError: The two do not go together.
        """
        sample = self.dataset[self.index]
        return sample.image, largest_region(sample.mask == self.value)


def find_candidates(
    dataset: LabelledSet,
    pool: int,
    failed: list[DPSegError],
    step: Callable[[], None],
    wanted: Collection[int] | None = None,
) -> Candidates:
    """Looks for the largest connected region of each class in each photo.

    Args:
        dataset: labelled photos; only their masks are read.
        pool: so many regions a class at most.
        failed: takes the errors of masks that cannot be read.
        step: called after each photo.
        wanted: classes that are looked for; None: all.
    """
    heaps: dict[int, list[tuple[int, int]]] = {}
    for index in range(len(dataset)):
        try:
            mask = dataset.mask(index)
        except DPSegError as error:
            failed.append(error)
            mask = np.zeros((0, 0), dtype=np.int32)
        for value in np.unique(mask).tolist():
            nothing = value == dataset.ignore_index or (value == 0 and dataset.background_line0)
            if not nothing and (wanted is None or value in wanted):
                heap = heaps.setdefault(value, [])
                heapq.heappush(heap, (int(largest_region(mask == value).sum()), -index))
                if len(heap) > pool:
                    heapq.heappop(heap)
        step()
    return {value: [(area, -index) for area, index in sorted(heap, reverse=True)] for value, heap in heaps.items()}


def cut_objects(
    dataset: LabelledSet, value: int, found: Sequence[tuple[int, int]], context: Context = "keep"
) -> list[NamedPicture]:
    """Returns the candidates of a class as pictures of it, in their order; nothing is read yet.

    Args:
        dataset: labelled photos.
        value: the class.
        found: its candidates.
        context: what surrounds the object in the crops.
    """
    name = parse_class(dataset.class_names[value]).name
    paths = [(index, dataset.image_paths[index]) for _, index in found]
    return [
        NamedPicture(
            name, ObjectReference(image=path, context=context, dataset=dataset, index=index, value=value), str(path)
        )
        for index, path in paths
    ]


def largest_region(mask: NDArray[np.bool_]) -> Mask:
    """Returns the largest connected region of a mask (H, W) that is not empty."""
    components, _ = ndimage.label(mask)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    return np.asarray(components == int(sizes.argmax()))
