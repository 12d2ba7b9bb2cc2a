"""Reference pictures for an evaluation: objects cut out of labelled photos that are not evaluated."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from scipy import ndimage

from dpseg.data.folder import FolderDataset
from dpseg.errors import DataError
from dpseg.prompts.visual import Reference


def sample_references(
    dataset: FolderDataset, excluded: Collection[str], count: int, seed: int
) -> dict[int, list[Reference]]:
    """Draws reference pictures for every class of a data set.

    A class's objects are compared by area; the draw is among the larger half of those, so that the pictures show
    something, and each comes from another photo. The largest connected region is the mask.

    Args:
        dataset: labelled photos.
        excluded: stems of photos that are evaluated: none of them becomes a reference.
        count: so many a class at most, 1 or more.
        seed: of the draw.

    Returns:
        Class index -> references; classes that no photo shows are missing.

    Raises:
        DataError: no photo is left, or a mask is not usable.
    """
    usable = [index for index, stem in enumerate(dataset.stems) if stem not in excluded]
    if not usable:
        raise DataError(
            f"{str(dataset.root)!r} has no photos for reference pictures besides the evaluated ones; evaluate a split,"
            " or use --prompts text"
        )
    areas: dict[int, list[tuple[int, int]]] = {}  # class -> (area in pixels, photo)
    for index in usable:
        values, counts = np.unique(dataset.mask(index), return_counts=True)
        for value, area in zip(values.tolist(), counts.tolist(), strict=True):
            if value != dataset.ignore_index and not (value == 0 and dataset.background_line0):
                areas.setdefault(value, []).append((area, index))
    random = np.random.default_rng(seed)
    references: dict[int, list[Reference]] = {}
    for value in sorted(areas):
        largest = sorted(areas[value], reverse=True)
        half = largest[: max(count, (len(largest) + 1) // 2)]
        chosen = random.choice(len(half), size=min(count, len(half)), replace=False)
        references[value] = [_cut_out(dataset, half[number][1], value) for number in chosen.tolist()]
    return references


def _cut_out(dataset: FolderDataset, index: int, value: int) -> Reference:
    components, number = ndimage.label(dataset.mask(index) == value)
    sizes = np.bincount(components.ravel(), minlength=number + 1)[1:]
    return Reference(dataset.image_paths[index], mask=components == 1 + int(sizes.argmax()))
