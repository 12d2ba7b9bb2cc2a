"""Where the parts of an official download lie, and which files in them belong together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from dpseg.data.labelled import Pairs
from dpseg.errors import DataError, did_you_mean


def find_part(root: Path, part: str, archive: str) -> Path:
    """Returns a folder of a download.

    Args:
        root: what the user gave: the folder in which the download was unpacked, or one inside it.
        part: the folder's official place, e.g. "VOCdevkit/VOC2012".
        archive: the official name of what holds it, for the error.

    Raises:
        DataError: it is not there.
    """
    parts = PurePosixPath(part).parts
    for skipped in range(len(parts)):
        place = root.joinpath(*parts[skipped:])
        if place.is_dir():
            return place
    if root.is_dir() and root.resolve().name == parts[-1]:
        return root
    raise DataError(f"folder {str(root / part)!r} is missing; unpack {archive} in {str(root)!r}")


def first_folder(places: Sequence[Path], archive: str) -> Path:
    """Returns the first of several possible folders that exists.

    Raises:
        DataError: none does; the error names the first.
    """
    for place in places:
        if place.is_dir():
            return place
    raise DataError(f"folder {str(places[0])!r} is missing; unpack {archive} there")


def check_split(name: str, split: str, splits: Sequence[str]) -> None:
    """Refuses a split that a data set does not have.

    Raises:
        DataError: with the nearest one.
    """
    if split not in splits:
        raise DataError(f"{name} has no split {split!r}; {did_you_mean(split, splits)}")


def read_stems(path: Path, archive: str) -> tuple[str, ...]:
    """Reads an official list: one photo a line, and perhaps more after a space.

    Raises:
        DataError: the file is missing or empty.
    """
    if not path.is_file():
        raise DataError(f"list {str(path)!r} is missing; unpack {archive} again")
    stems = tuple(line.split()[0] for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    if not stems:
        raise DataError(f"list {str(path)!r} is empty; unpack {archive} again")
    return stems


def listed_pairs(
    stems: Sequence[str], images: Path, masks: Path, mask_suffix: str, images_from: str, masks_from: str
) -> Pairs:
    """Pairs the photos `images/STEM.jpg` of a list with the masks `masks/STEM` + `mask_suffix`."""
    return Pairs(
        tuple(stems),
        tuple(images / f"{stem}.jpg" for stem in stems),
        tuple(masks / f"{stem}{mask_suffix}" for stem in stems),
        f"unpack {images_from} again",
        f"unpack {masks_from} again",
    )


def found_pairs(images: Path, masks: Path, mask_suffix: str, images_from: str, masks_from: str) -> Pairs:
    """Pairs all photos `STEM.jpg` below a folder, sorted, with the masks `STEM` + `mask_suffix` below another."""
    stems = sorted(_stems_below(images, ".jpg"))
    pairs = listed_pairs(stems, images, masks, mask_suffix, images_from, masks_from)
    unpaired = tuple(sorted(_stems_below(masks, mask_suffix) - set(stems)))
    return dataclasses.replace(pairs, unpaired=unpaired)


def _stems_below(folder: Path, suffix: str) -> set[str]:
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob(f"*{suffix}") if path.name[0] != ".")
    return {path.removesuffix(suffix) for path in paths}
