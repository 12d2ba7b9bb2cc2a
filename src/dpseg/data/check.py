"""Reads a whole data set and says what is wrong with it, and how often each class occurs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpseg.data.benchmarks import BENCHMARKS, find_place, open_dataset
from dpseg.data.folder import (
    BACKGROUND_NAMES,
    MASK_SUFFIXES,
    files_by_stem,
    merge_repeated,
    read_class_lines,
    read_split,
)
from dpseg.data.labelled import LabelledSet, MappedSet, MaskFormat, Pairs, ignore_index_for
from dpseg.errors import DataError, ImageError
from dpseg.images import SUFFIXES


@dataclass(frozen=True)
class Finding:
    """What `check_dataset` found.

    Attributes:
        photos: so many there are.
        class_names: K names.
        problems: what is broken, a line each.
        warnings: what may be wrong, a line each.
        pixels: (K,) pixels of each class.
        photos_with: (K,) photos that show each class.
        unlabelled: pixels without a label.
    """

    photos: int
    class_names: tuple[str, ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    pixels: NDArray[np.int64]
    photos_with: NDArray[np.int64]
    unlabelled: int


def open_leniently(name_or_place: str | Path, root: str | Path | None = None, split: str | None = "val") -> LabelledSet:
    """Opens a data set as `open_dataset` does, but one with missing photos or masks too, so that all can be listed.

    Args:
        name_or_place: as for `open_dataset`.
        root: as for `open_dataset`.
        split: as for `open_dataset`.

    Raises:
        ModelNotFoundError: nothing goes by that name.
        DataError: so much is missing that no photo can be looked for.
    """
    name = str(name_or_place).strip()
    if name.lower() not in BENCHMARKS:
        place = find_place(name, root)
        if all((place / part).exists() for part in ("images", "masks", "classes.txt")):
            return _open_folder(place, split)
    return open_dataset(name_or_place, root, split)


def check_dataset(
    dataset: LabelledSet, official: int | None = None, step: Callable[[], None] = lambda: None
) -> Finding:
    """Reads every photo and mask.

    Args:
        dataset: what to check.
        official: so many photos it should have; None: nobody knows.
        step: called after each photo.
    """
    count = len(dataset.class_names)
    pixels = np.zeros(count, dtype=np.int64)
    photos_with = np.zeros(count, dtype=np.int64)
    unlabelled = 0
    problems: list[str] = []
    if isinstance(dataset, MappedSet):
        problems += [f"mask {stem!r} has no photo; add it or remove the mask" for stem in dataset.pairs.unpaired]
    for index in range(len(dataset)):
        try:
            mask = dataset[index].mask
        except (DataError, ImageError) as error:
            problems.append(str(error))
        else:
            counts = np.bincount(mask[mask != dataset.ignore_index], minlength=count)
            unlabelled += int(mask.size - counts.sum())
            pixels += counts
            photos_with += counts > 0
        step()
    warnings: list[str] = []
    if official is not None and len(dataset) != official:
        warnings.append(f"{len(dataset)} photos are there, officially there are {official}")
    absent = [name for name, number in zip(dataset.class_names, photos_with, strict=True) if not number]
    if absent:
        shown = ", ".join(name.split(",")[0] for name in absent[:5]) + (", ..." if len(absent) > 5 else "")
        warnings.append(f"{len(absent)} of {count} classes do not occur: {shown}")
    return Finding(len(dataset), dataset.class_names, tuple(problems), tuple(warnings), pixels, photos_with, unlabelled)


def official_count(name_or_place: str | Path, split: str | None) -> int | None:
    """Returns how many photos a benchmark's split has, officially; None for other data sets."""
    benchmark = BENCHMARKS.get(str(name_or_place).strip().lower())
    return None if benchmark is None or split is None else benchmark.photos.get(split)


def _open_folder(root: Path, split: str | None) -> MappedSet:
    """Opens a folder as `FolderDataset` does, but keeps photos without masks and the other way round."""
    lines = read_class_lines(root / "classes.txt")
    names, class_of_line = merge_repeated(lines)
    ignore_index = ignore_index_for(len(lines))
    table = np.full(ignore_index + 1, -1, dtype=np.int32)
    table[: len(lines)] = class_of_line
    table[ignore_index] = ignore_index
    photos = files_by_stem(root / "images", SUFFIXES)
    masks = files_by_stem(root / "masks", MASK_SUFFIXES)
    stems = tuple(sorted(photos)) if split is None else read_split(root, split)
    pairs = Pairs(
        stems,
        tuple(photos.get(stem, root / "images" / f"{stem}.jpg") for stem in stems),
        tuple(masks.get(stem, root / "masks" / f"{stem}.png") for stem in stems),
        "add it or take it off the list",
        "add it or take the photo away",
        tuple(sorted(set(masks) - set(photos))) if split is None else (),
    )
    background = names[0].lower() in BACKGROUND_NAMES
    return MappedSet(root.resolve().name, root, pairs, MaskFormat(names, table, ignore_index), background)
