"""Masks that are slow to read, kept once as PNG files of classes beside the download.

HOME/dpseg-masks/NAME-SPLIT-FINGERPRINT/STEM.png   a class a pixel, 16 bits where there are more than 255 classes
HOME/dpseg-masks/NAME-SPLIT-FINGERPRINT/index.json  what it is; written last, so a folder without it is not complete

The fingerprint stands for the classes and their values, so that a folder of other classes is never taken for this one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dpseg.data.labelled import MappedSet, MaskFormat, class_table
from dpseg.errors import DataError, ImageError
from dpseg.files import make_folder, write_atomically

FOLDER = "dpseg-masks"


@dataclass(frozen=True)
class Prepared:
    """What `prepare` did.

    Attributes:
        folder: where the masks are.
        written: so many masks are new.
        kept: so many were there.
        problems: what is wrong with the others, a line each; the masks are not used while there are any.
    """

    folder: Path
    written: int
    kept: int
    problems: tuple[str, ...]


def cache_folder(dataset: MappedSet, split: str) -> Path:
    """Returns the folder of a data set's prepared masks, which need not exist."""
    mask_format = dataset.format
    content = repr((mask_format.class_names, mask_format.ignore_index, mask_format.short_side)).encode()
    fingerprint = hashlib.sha256(content + mask_format.table.tobytes()).hexdigest()[:8]
    return dataset.root / FOLDER / f"{dataset.name}-{split}-{fingerprint}"


def with_prepared(dataset: MappedSet, split: str) -> MappedSet:
    """Returns the same data set with its prepared masks, or as it is where there are none or some are missing."""
    folder = cache_folder(dataset, split)
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return dataset
    if not isinstance(index, dict) or index.get("masks") != len(dataset):
        return dataset
    old, classes = dataset.format, len(dataset.class_names)
    table = class_table(range(classes), old.ignore_index + 1, (old.ignore_index,), old.ignore_index)
    mask_format = MaskFormat(old.class_names, table, old.ignore_index, short_side=old.short_side)
    pairs = dataclasses.replace(
        dataset.pairs,
        mask_paths=tuple(folder / f"{stem}.png" for stem in dataset.stems),
        mask_hint=f"run dpseg data prepare {dataset.name} again",
    )
    return MappedSet(dataset.name, dataset.root, pairs, mask_format, dataset.background_line0)


def prepare(dataset: MappedSet, split: str, step: Callable[[], None] = lambda: None) -> Prepared:
    """Writes the masks that are missing, or older than what they were made of.

    Args:
        dataset: as downloaded.
        split: which photos it holds, for the folder's name.
        step: called after each mask.

    Raises:
        OutputError: a file cannot be written.
    """
    folder = make_folder(cache_folder(dataset, split))
    written = kept = 0
    problems: list[str] = []
    for index, stem in enumerate(dataset.stems):
        target = folder / f"{stem}.png"
        try:
            if _is_newer(target, dataset.pairs.mask_paths[index]):
                kept += 1
            else:
                mask = dataset.mask(index)
                make_folder(target.parent)
                write_atomically(target, _png(mask, dataset.ignore_index))
                written += 1
        except (DataError, ImageError) as error:
            problems.append(str(error))
        step()
    if not problems:
        about = {
            "data": dataset.name,
            "split": split,
            "masks": len(dataset),
            "classes": list(dataset.class_names),
            "ignore_index": dataset.ignore_index,
            "short_side": dataset.format.short_side,
        }
        write_atomically(folder / "index.json", (json.dumps(about, ensure_ascii=False, indent=1) + "\n").encode())
    return Prepared(folder, written, kept, tuple(problems))


def _is_newer(target: Path, source: Path) -> bool:
    return target.is_file() and source.is_file() and target.stat().st_mtime >= source.stat().st_mtime


def _png(mask: NDArray[np.int32], ignore_index: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8 if ignore_index == 255 else np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()
