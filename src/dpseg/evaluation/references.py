"""Reference pictures for an evaluation: objects cut out of labelled photos that are not evaluated."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from dpseg.config import Context
from dpseg.data.labelled import LabelledSet
from dpseg.data.objects import largest_region
from dpseg.errors import DataError
from dpseg.prompts.visual import Reference


def sample_references(
    dataset: LabelledSet, excluded: Collection[str], count: int, seed: int
) -> dict[int, list[Reference]]:
    """Draws reference pictures for every class of a data set, and cuts them out.

    The arguments, the result and the errors are those of `draw_references` and `cut_references`.
    """
    return cut_references(dataset, draw_references(dataset, excluded, count, seed))


def draw_references(
    dataset: LabelledSet, excluded: Collection[str], count: int, seed: int
) -> dict[int, tuple[int, ...]]:
    """Draws the photos from which reference pictures of every class are cut.

    A class's objects are compared by area; the draw is among the larger half of those, so that the pictures show
    something, and each comes from another photo.

    Args:
        dataset: labelled photos.
        excluded: stems of photos that are evaluated: none of them becomes a reference.
        count: so many a class at most, 1 or more.
        seed: of the draw.

    Returns:
        Class index -> indices of photos; classes that no photo shows are missing.

    Raises:
        DataError: no photo is left, or a mask is not usable.
    """
    left_out = set(excluded)
    usable = [index for index, stem in enumerate(dataset.stems) if stem not in left_out]
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
    drawn: dict[int, tuple[int, ...]] = {}
    for value in sorted(areas):
        largest = sorted(areas[value], reverse=True)
        half = largest[: max(count, (len(largest) + 1) // 2)]
        chosen = random.choice(len(half), size=min(count, len(half)), replace=False)
        drawn[value] = tuple(half[number][1] for number in chosen.tolist())
    return drawn


def cut_references(
    dataset: LabelledSet, drawn: Mapping[int, Sequence[int]], context: Context = "keep"
) -> dict[int, list[Reference]]:
    """Cuts reference pictures out of photos; the largest connected region of the class is the mask.

    Args:
        dataset: labelled photos.
        drawn: class index -> indices of photos that show it.
        context: what surrounds the thing.

    Returns:
        Class index -> references.

    Raises:
        DataError: a mask is not usable.
    """
    return {value: [_cut_out(dataset, index, value, context) for index in photos] for value, photos in drawn.items()}


def _cut_out(dataset: LabelledSet, index: int, value: int, context: Context) -> Reference:
    region = largest_region(dataset.mask(index) == value)
    return Reference(dataset.image_paths[index], mask=region, context=context)
