"""PASCAL VOC and PASCAL-Context as they are distributed, in miniature, and commands that print to two consoles."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image
from rich.console import Console
from scipy.io import savemat

from support.labelled_set import paint, save

PALETTE = [value for colour in range(256) for value in (colour, 255 - colour, 7)]
CONTEXT_STEMS = ("2008_000002", "2008_000003")
CONTEXT_MAPS = "VOCdevkit/VOC2010/trainval"


def write_voc(root: Path, masks: Mapping[str, ArrayLike], splits: Mapping[str, Iterable[str]]) -> None:
    """Writes photos in colours with their masks, which have a palette, and the lists of splits."""
    home = root / "VOCdevkit" / "VOC2012"
    for folder in ("SegmentationClass", "ImageSets/Segmentation"):
        (home / folder).mkdir(parents=True)
    for stem, values in masks.items():
        save(home / "JPEGImages" / f"{stem}.jpg", paint(np.asarray(values)))
        mask = Image.fromarray(np.asarray(values, np.uint8))
        mask.putpalette(PALETTE)
        mask.save(home / "SegmentationClass" / f"{stem}.png")
    for split, stems in splits.items():
        (home / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(stems) + "\n")


def write_context(root: Path) -> None:
    """Writes two photos with the same values, the split val."""
    home = root / "VOCdevkit" / "VOC2010"
    for folder in ("trainval", "ImageSets/Main"):
        (home / folder).mkdir(parents=True)
    values = np.array([[1, 2, 9, 458], [284, 0, 397, 459]], np.uint16)
    for stem in CONTEXT_STEMS:
        save(home / "JPEGImages" / f"{stem}.jpg", np.zeros((2, 4, 3)))
        savemat(root / CONTEXT_MAPS / f"{stem}.mat", {"LabelMap": values, "other": 1})
    (home / "ImageSets" / "Main" / "val.txt").write_text("\n".join(CONTEXT_STEMS) + "\n")


def ran(command: Any, options: Any) -> tuple[int, str, str]:
    """Runs a command, and returns its status and what it printed to the console and to that of errors."""
    printed, errors = io.StringIO(), io.StringIO()
    status = command(options, Console(file=printed, width=400), Console(file=errors, width=400))
    return status, printed.getvalue(), errors.getvalue()
