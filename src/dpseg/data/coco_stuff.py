"""COCO-Stuff as it is distributed: the photos of COCO 2017 and the maps of things and stuff.

ROOT/{train2017,val2017}/X.jpg                               train2017.zip, val2017.zip
ROOT/stuffthingmaps_trainval2017/{train2017,val2017}/X.png   stuffthingmaps_trainval2017.zip

The photos may also be below ROOT/images, the maps below ROOT/annotations, or, where all was unpacked in one folder,
beside the photos.

A pixel holds a category's id less one: 0 to 181 with gaps, for COCO left out eleven of its 91 things; 255 = no label.
"""

from __future__ import annotations

from pathlib import Path

from dpseg.data.downloads import check_split, first_folder, found_pairs
from dpseg.data.labelled import MappedSet, MaskFormat, class_table, shipped_names

MAPS = "stuffthingmaps_trainval2017"
LEFT_OUT = frozenset((12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91))
"""Ids of COCO's things that no annotation uses, such as hat, shoe and eye glasses."""

VALUES = tuple(category - 1 for category in range(1, 183) if category not in LEFT_OUT)
"""The stored value of each of the 171 classes."""


def open_coco_stuff(root: Path, split: str) -> MappedSet:
    """Opens COCO-Stuff.

    Args:
        root: the folder with `train2017` or `val2017`.
        split: "train" or "val".

    Raises:
        DataError: a part of the download is missing.
    """
    check_split("cocostuff", split, ("train", "val"))
    part = f"{split}2017"
    images = first_folder((root / part, root / "images" / part), f"{part}.zip (COCO 2017)")
    places: tuple[Path, ...] = (root / MAPS / part, root / "stuffthingmaps" / part, root / "annotations" / part)
    if not any(place.is_dir() for place in places) and next(images.glob("*.png"), None):
        places = (images,)
    masks = first_folder(places, f"{MAPS}.zip (COCO-Stuff)")
    pairs = found_pairs(images, masks, ".png", f"{part}.zip", f"{MAPS}.zip")
    table = class_table(VALUES, 256, (255,), 255)
    return MappedSet("cocostuff", root, pairs, MaskFormat(shipped_names("cocostuff171"), table, 255))
