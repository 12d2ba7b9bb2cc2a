"""PASCAL VOC 2012 and PASCAL-Context as they are distributed.

ROOT/VOCdevkit/VOC2012/JPEGImages/X.jpg                       VOCtrainval_11-May-2012.tar
ROOT/VOCdevkit/VOC2012/SegmentationClass/X.png                0 = background, 1 to 20, 255 = border
ROOT/VOCdevkit/VOC2012/ImageSets/Segmentation/{train,val}.txt

ROOT/VOCdevkit/VOC2010/JPEGImages/X.jpg                       VOCtrainval_03-May-2010.tar
ROOT/VOCdevkit/VOC2010/ImageSets/Main/{train,val}.txt         4998 and 5105 photos
ROOT/VOCdevkit/VOC2010/trainval/X.mat                         trainval.tar.gz (PASCAL-Context): LabelMap, 1 to 459
ROOT/VOCdevkit/VOC2010/labels.txt                             their names, read only to compare them

Other code takes PASCAL-Context's splits from trainval_merged.json, which lists 4996 and 5104 photos. Lists made from
it, `ImageSets/SegmentationContext/SPLIT.txt` or `pascalcontext_SPLIT.txt`, are used where they are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpseg.data.downloads import check_split, find_part, first_folder, listed_pairs, read_stems
from dpseg.data.labelled import MappedSet, MaskFormat, class_table, shipped_names
from dpseg.errors import DataError, ImageError

VOC2010, VOC2012 = "VOCtrainval_03-May-2010.tar", "VOCtrainval_11-May-2012.tar"
CONTEXT = "trainval.tar.gz (PASCAL-Context)"

CONTEXT_59 = (
    *(2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158, 159),
    *(162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368),
    *(397, 415, 416, 420, 424, 427, 440, 445, 454, 458),
)
"""The values of the 59 classes among PASCAL-Context's 459, in the order of `names/pc59.txt`."""

_SAME_IN_VOC = {"table": "dining table"}  # PASCAL-Context's name -> VOC's


def open_voc20(root: Path, split: str) -> MappedSet:
    """Opens PASCAL VOC 2012 with 20 classes; its background counts as not labelled.

    Args:
        root: the folder with `VOCdevkit`, or one inside it.
        split: "train", "val" or "trainval".

    Raises:
        DataError: a part of the download is missing.
    """
    return _open_voc("pas20", root, split, MaskFormat(shipped_names("voc20"), _voc_table(background=255), 255))


def open_voc20_background(root: Path, split: str) -> MappedSet:
    """Opens PASCAL VOC 2012 with 20 classes and, as class 20, its background.

    The background is decoded as in CAT-Seg and SED: as those 39 of PASCAL-Context's 59 classes that are not VOC's.

    Args:
        root: as `open_voc20`.
        split: as `open_voc20`.

    Raises:
        DataError: a part of the download is missing.
    """
    classes = shipped_names("voc20")
    own = {name.split(",")[0] for name in classes}
    context = (name.split(",")[0] for name in shipped_names("pc59"))
    others = [number for number, name in enumerate(context) if _SAME_IN_VOC.get(name, name) not in own]
    prompts = classes + tuple(shipped_names("pc59")[number] for number in others)
    counted_as = (*range(len(classes)), *(len(classes) for _ in others))
    table = _voc_table(background=len(classes))
    mask_format = MaskFormat((*classes, "background"), table, 255, prompt_names=prompts, prompt_classes=counted_as)
    return _open_voc("pas20b", root, split, mask_format)


def open_context59(root: Path, split: str) -> MappedSet:
    """Opens PASCAL-Context with its 59 most frequent classes; the others count as not labelled.

    Args:
        root: the folder with `VOCdevkit`, or one inside it.
        split: "train" or "val".

    Raises:
        DataError: a part of the download is missing, or its labels.txt has other classes.
    """
    table = class_table(CONTEXT_59, 460, (), 255)
    table[table < 0] = 255
    return _open_context("pc59", root, split, MaskFormat(shipped_names("pc59"), table, 255, read_label_map))


def open_context459(root: Path, split: str) -> MappedSet:
    """Opens PASCAL-Context with all its classes.

    Args:
        root: as `open_context59`.
        split: as `open_context59`.

    Raises:
        DataError: a part of the download is missing, or its labels.txt has other classes.
    """
    table = class_table(range(1, 460), 460, (0,), 65535)
    return _open_context("pc459", root, split, MaskFormat(shipped_names("pc459"), table, 65535, read_label_map))


def read_label_map(path: Path) -> NDArray[np.int32]:
    """Reads the values of a PASCAL-Context file, (H, W).

    Raises:
        ImageError: the file cannot be read, or holds no label map.
    """
    from scipy.io import loadmat

    try:
        values = loadmat(str(path), variable_names=["LabelMap"]).get("LabelMap")
    except Exception as error:  # a damaged file makes scipy raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{path}: cannot be read as a MATLAB file ({reason}); unpack {CONTEXT} again") from error
    if not isinstance(values, np.ndarray) or values.ndim != 2 or not np.issubdtype(values.dtype, np.number):
        raise ImageError(f"{path}: holds no LabelMap with one value a pixel; unpack {CONTEXT} again")
    return values.astype(np.int32)


def _voc_table(background: int) -> NDArray[np.int32]:
    table = class_table(range(1, 21), 256, (255,), 255)
    table[0] = background
    return table


def _open_voc(name: str, root: Path, split: str, mask_format: MaskFormat) -> MappedSet:
    check_split(name, split, ("train", "val", "trainval"))
    home = find_part(root, "VOCdevkit/VOC2012", f"{VOC2012} (PASCAL VOC 2012)")
    images, masks = (first_folder((home / part,), VOC2012) for part in ("JPEGImages", "SegmentationClass"))
    stems = read_stems(home / "ImageSets" / "Segmentation" / f"{split}.txt", VOC2012)
    return MappedSet(name, home, listed_pairs(stems, images, masks, ".png", VOC2012, VOC2012), mask_format)


def _open_context(name: str, root: Path, split: str, mask_format: MaskFormat) -> MappedSet:
    check_split(name, split, ("train", "val"))
    home = find_part(root, "VOCdevkit/VOC2010", f"{VOC2010} (PASCAL VOC 2010)")
    images = first_folder((home / "JPEGImages",), VOC2010)
    maps = first_folder((home / "trainval", root / "trainval"), CONTEXT)
    _compare_names(home / "labels.txt")
    lists = (home / "ImageSets" / "SegmentationContext" / f"{split}.txt", home / f"pascalcontext_{split}.txt")
    official = home / "ImageSets" / "Main" / f"{split}.txt"
    stems = read_stems(next((path for path in lists if path.is_file()), official), VOC2010)
    return MappedSet(name, home, listed_pairs(stems, images, maps, ".mat", VOC2010, CONTEXT), mask_format)


def _compare_names(path: Path) -> None:
    """Compares 59 of the 459 names with labels.txt, "2: aeroplane", where the user has it."""
    if not path.is_file():
        return
    lines = (line.split(":", 1) for line in path.read_text(encoding="utf-8-sig").splitlines() if ":" in line)
    theirs = {number.strip(): name.replace(" ", "") for number, name in lines}
    for value, name in zip(CONTEXT_59, shipped_names("pc59"), strict=True):
        ours = name.split(",")[0]
        found = theirs.get(str(value), "nothing")
        if found != ours.replace(" ", ""):
            raise DataError(
                f"{str(path)!r} calls value {value} {found!r}, not {ours!r}; take the labels.txt of {CONTEXT}"
            )
