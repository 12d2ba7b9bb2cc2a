"""ADE20K as it is distributed: the scene parsing challenge (A-150) and the whole data set (A-847).

ROOT/ADEChallengeData2016/images/{training,validation}/X.jpg          ADEChallengeData2016.zip
ROOT/ADEChallengeData2016/annotations/{training,validation}/X.png     0 = no label, 1 to 150

ROOT/ADE20K_2021_17_01/images/ADE/{training,validation}/**/X.jpg      ADE20K_2021_17_01.zip, after registration
ROOT/ADE20K_2021_17_01/images/ADE/{training,validation}/**/X_seg.png  an object's index is R // 10 * 256 + G

The index file of the latter, index_ade20k.pkl, is a pickle, which could run any code, and is not read: the indices of
the 847 objects are in `names/ade847_objects.txt`. All other objects count as not labelled. As in the field, the photos
of A-847 are reduced to a shorter side of 512 pixels; those of the challenge come like that.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpseg.data.downloads import check_split, find_part, first_folder, found_pairs
from dpseg.data.labelled import MappedSet, MaskFormat, class_table, shipped_names
from dpseg.images import load_image

FOLDERS = {"train": "training", "val": "validation"}
SHORT_SIDE = 512
_OBJECTS = 26 * 256  # R // 10 is at most 25


def open_ade150(root: Path, split: str) -> MappedSet:
    """Opens ADE20K's scene parsing challenge, 150 classes.

    Args:
        root: the folder with `ADEChallengeData2016`, or that folder.
        split: "train" or "val".

    Raises:
        DataError: a part of the download is missing.
    """
    check_split("a150", split, tuple(FOLDERS))
    archive = "ADEChallengeData2016.zip"
    home = find_part(root, "ADEChallengeData2016", f"{archive} (ADE20K scene parsing)")
    images = first_folder((home / "images" / FOLDERS[split],), archive)
    masks = first_folder((home / "annotations" / FOLDERS[split],), archive)
    pairs = found_pairs(images, masks, ".png", archive, archive)
    table = class_table(range(1, 151), 151, (0,), 255)
    return MappedSet("a150", home, pairs, MaskFormat(shipped_names("ade150"), table, 255))


def open_ade847(root: Path, split: str) -> MappedSet:
    """Opens the whole of ADE20K, 847 classes, photos and masks reduced.

    Args:
        root: the folder with `ADE20K_2021_17_01`, or that folder.
        split: "train" or "val".

    Raises:
        DataError: a part of the download is missing.
    """
    check_split("a847", split, tuple(FOLDERS))
    archive = "ADE20K_2021_17_01.zip"
    home = find_part(root, "ADE20K_2021_17_01", f"{archive} (ADE20K, full)")
    folder = first_folder((home / "images" / "ADE" / FOLDERS[split],), archive)
    pairs = found_pairs(folder, folder, "_seg.png", archive, archive)
    table = class_table(object_indices(), _OBJECTS, (), 65535)
    table[table < 0] = 65535  # the other 2000 and more objects
    return MappedSet("a847", home, pairs, MaskFormat(shipped_names("ade847"), table, 65535, read_objects, SHORT_SIDE))


def object_indices() -> tuple[int, ...]:
    """Returns the index of the object that each of the 847 classes is."""
    return tuple(int(line.split(" ", 1)[0]) for line in shipped_names("ade847_objects"))


def read_objects(path: Path) -> NDArray[np.int32]:
    """Reads the objects' indices, (H, W), from `X_seg.png`.

    Raises:
        ImageError: the file cannot be decoded.
    """
    channels = np.asarray(load_image(path)).astype(np.int32)
    return channels[..., 0] // 10 * 256 + channels[..., 1]
