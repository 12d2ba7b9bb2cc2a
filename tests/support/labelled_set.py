"""Labelled data sets of a few pictures, written by the tests: coloured shapes on grey, or any masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

NAMES = ("background", "red square", "blue disc", "green stripe")
COLOURS = ((128, 128, 128), (200, 30, 30), (30, 30, 200), (30, 180, 40))


def save(path: Path, values: ArrayLike) -> None:
    """Writes an array as a picture, of 16 bits where it must be, and makes its folder."""
    array = np.asarray(values)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8 if array.max(initial=0) <= 255 else np.uint16)).save(path)


def paint(mask: NDArray[Any], colours: Sequence[Sequence[int]] = COLOURS, noise: Any = 0) -> NDArray[np.uint8]:
    """Returns the photo of a mask: the colour of each class, and of other values any of them, with noise on top."""
    painted = np.take(np.array(colours, dtype=np.int64), mask.astype(int), axis=0, mode="wrap") + noise
    return painted.clip(0, 255).astype(np.uint8)


def write_labelled(
    root: Path,
    masks: Mapping[str, ArrayLike],
    names: Sequence[str] = NAMES,
    splits: Mapping[str, Iterable[str]] | None = None,
    *,
    photos: Mapping[str, NDArray[np.uint8]] | None = None,
    colours: Sequence[Sequence[int]] = COLOURS,
) -> Path:
    """Writes a data set into a folder and returns it.

    Args:
        root: the folder.
        masks: stem -> values.
        names: of the classes, one a line.
        splits: name -> stems.
        photos: stem -> pixels; None: the masks in colours.
        colours: of the classes.
    """
    for stem, mask in masks.items():
        save(root / "images" / f"{stem}.png", paint(np.asarray(mask), colours) if photos is None else photos[stem])
        save(root / "masks" / f"{stem}.png", mask)
    (root / "classes.txt").write_text("\n".join(names), encoding="utf-8")
    for split, stems in (splits or {}).items():
        (root / f"{split}.txt").write_text("\n".join(stems))
    return root


def write_set(
    root: Path, photos: int = 6, side: int = 96, seed: int = 0, splits: Mapping[str, Sequence[int]] | None = None
) -> Path:
    """Writes noisy photos of a square, a disc and a stripe, and returns their folder.

    Args:
        root: the folder.
        photos: so many, photo0 and so on.
        side: of each, in pixels.
        seed: of the places and the noise.
        splits: name -> numbers of photos; None: train and val of all photos.
    """
    random = np.random.default_rng(seed)
    masks: dict[str, NDArray[np.uint8]] = {}
    painted: dict[str, NDArray[np.uint8]] = {}
    y, x = np.mgrid[:side, :side]
    for number in range(photos):
        mask = np.zeros((side, side), dtype=np.uint8)
        top, left = random.integers(0, side // 2, 2)
        mask[top : top + side // 3, left : left + side // 3] = 1
        cy, cx = random.integers(side // 4, side, 2)
        mask[(y - cy) ** 2 + (x - cx) ** 2 < (side // 5) ** 2] = 2
        mask[:, side - side // 6 :] = 3
        masks[f"photo{number}"] = mask
        painted[f"photo{number}"] = paint(mask, noise=random.integers(-20, 20, (side, side, 3)))
    numbers = {"train": range(photos), "val": range(photos)} if splits is None else splits
    return write_labelled(
        root, masks, splits={split: [f"photo{one}" for one in ones] for split, ones in numbers.items()}, photos=painted
    )
