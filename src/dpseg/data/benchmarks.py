"""Labelled data sets by name or place: the field's six benchmarks, COCO-Stuff, folders and COCO files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dpseg.data.ade20k import open_ade150, open_ade847
from dpseg.data.coco import CocoSet
from dpseg.data.coco_stuff import open_coco_stuff
from dpseg.data.folder import FolderDataset
from dpseg.data.labelled import LabelledSet, MappedSet
from dpseg.data.mask_cache import with_prepared
from dpseg.data.pascal import open_context59, open_context459, open_voc20, open_voc20_background
from dpseg.errors import DataError, ModelNotFoundError, did_you_mean


@dataclass(frozen=True)
class Benchmark:
    """A data set that the field measures on.

    Attributes:
        about: what it is.
        open: opens the official download: root and split -> data set.
        photos: how many each split has, officially.
        slow: its masks take long to read, so that `dpseg data prepare` is worth its while.
    """

    about: str
    open: Callable[[Path, str], MappedSet]
    photos: Mapping[str, int]
    slow: bool = False


_CONTEXT = {"train": 4998, "val": 5105}
_VOC = {"train": 1464, "val": 1449, "trainval": 2913}

BENCHMARKS = {
    "cocostuff": Benchmark("COCO-Stuff, 171 classes", open_coco_stuff, {"train": 118287, "val": 5000}),
    "a150": Benchmark("ADE20K, 150 classes (A-150)", open_ade150, {"train": 20210, "val": 2000}),
    "a847": Benchmark("ADE20K, 847 classes (A-847)", open_ade847, {"train": 25574, "val": 2000}, slow=True),
    "pc59": Benchmark("PASCAL-Context, 59 classes (PC-59)", open_context59, _CONTEXT, slow=True),
    "pc459": Benchmark("PASCAL-Context, 459 classes (PC-459)", open_context459, _CONTEXT, slow=True),
    "pas20": Benchmark("PASCAL VOC 2012, 20 classes, background ignored (PAS-20)", open_voc20, _VOC),
    "pas20b": Benchmark("PASCAL VOC 2012, 20 classes and background (PAS-20b)", open_voc20_background, _VOC),
}
"""Name -> how it is read."""

_EXPORTS = ("_annotations.coco.json", "result.json", "annotations/instances_default.json")
"""Where Roboflow, Label Studio and CVAT put the COCO file of an export."""

_SPLIT_FOLDERS = {"val": ("val", "valid", "validation"), "train": ("train", "training"), "test": ("test",)}


def open_dataset(name_or_place: str | Path, root: str | Path | None = None, split: str | None = "val") -> LabelledSet:
    """Opens any labelled data set.

    Args:
        name_or_place: a key of `BENCHMARKS`; a folder in the layout of `dpseg.data.folder`; a COCO file; or a folder
            that a label tool exported as COCO.
        root: of a benchmark, the folder in which its download was unpacked; of a COCO file, that of its photos; of a
            folder, where it is. None: this folder, or that of the COCO file.
        split: "val", "train", ...; a COCO file is one already. None: all photos of a folder.

    Raises:
        ModelNotFoundError: nothing goes by that name.
        DataError: a part of it is missing or damaged.
    """
    name = str(name_or_place).strip()
    if name.lower() in BENCHMARKS:
        return with_prepared(*open_benchmark(name, root, split))
    place = find_place(name, root)
    if place.is_file():
        return CocoSet(place, None if root is None else Path(root).expanduser())
    export = None if (place / "classes.txt").is_file() else _find_export(place, split)
    splits = [] if export or (place / "classes.txt").is_file() else _exported_splits(place)
    if splits:
        wanted = "no split is named" if split is None else f"there is no split {split!r}"
        raise DataError(f"{str(place)!r}: {wanted}; {did_you_mean(split or '', splits)}")
    return FolderDataset(place, split) if export is None else CocoSet(export, _photos_of(export, place))


def is_labelled(place: Path) -> bool:
    """Tells a labelled set, as `open_dataset` opens it, from a folder of pictures by name.

    Args:
        place: a COCO file, or a folder.
    """
    if place.is_file() or (place / "classes.txt").is_file() or _find_export(place, None) is not None:
        return True
    return all((place / part).is_dir() for part in ("images", "masks")) or bool(_exported_splits(place))


def open_benchmark(name: str, root: str | Path | None, split: str | None) -> tuple[MappedSet, str]:
    """Opens a benchmark as it was downloaded, without prepared masks; returns it and its split.

    Args:
        name: a key of `BENCHMARKS`, in any case.
        root: the folder in which its download was unpacked; None: this one.
        split: one of its splits.

    Raises:
        ModelNotFoundError: there is no such benchmark.
        DataError: there is no such split, or a part of the download is missing.
    """
    benchmark = BENCHMARKS.get(name.strip().lower())
    if benchmark is None:
        raise ModelNotFoundError(f"no benchmark is called {name!r}; {did_you_mean(name, BENCHMARKS)}")
    if split is None:
        raise DataError(f"{name} has the splits {', '.join(benchmark.photos)}; name one of them")
    return benchmark.open(Path(root or ".").expanduser(), split), split


def find_place(name: str, root: str | Path | None) -> Path:
    """Returns the folder or file that somebody named, below `root` or as it is.

    Raises:
        ModelNotFoundError: there is none.
    """
    named = Path(name).expanduser()
    for place in (named,) if root is None else (Path(root).expanduser() / named, named):
        if place.exists():
            return place
    raise ModelNotFoundError(f"no data set, folder or COCO file is called {name!r}; {did_you_mean(name, BENCHMARKS)}")


def _find_export(folder: Path, split: str | None) -> Path | None:
    """Returns the COCO file of a label tool's export, that of the split where there are several."""
    parts = _SPLIT_FOLDERS.get(split, (split,)) if split else ()
    for place in (*(folder / part for part in parts), folder):
        for export in _EXPORTS:
            if (place / export).is_file():
                return place / export
    return None


def _exported_splits(folder: Path) -> list[str]:
    """Returns the folders of a label tool's export that have a COCO file each."""
    parts = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return [part.name for part in parts if any((part / export).is_file() for export in _EXPORTS)]


def _photos_of(export: Path, folder: Path) -> Path:
    """Returns where an export has its photos: Roboflow beside the file, the others below `images`."""
    home = export.parent.parent if export.parent.name == "annotations" else export.parent
    return home if home != folder or not (folder / "images").is_dir() else folder / "images"
