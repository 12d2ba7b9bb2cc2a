"""A labelled data set of a few pictures, written by the tests: coloured shapes on grey."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("background", "red square", "blue disc", "green stripe")
COLOURS = ((128, 128, 128), (200, 30, 30), (30, 30, 200), (30, 180, 40))


def write_set(root: Path, photos: int = 6, side: int = 96, seed: int = 0) -> Path:
    """Writes a data set with a train and a val split of the same photos, and returns its folder."""
    random = np.random.default_rng(seed)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    stems = [f"photo{number}" for number in range(photos)]
    y, x = np.mgrid[:side, :side]
    for stem in stems:
        mask = np.zeros((side, side), dtype=np.uint8)
        top, left = random.integers(0, side // 2, 2)
        mask[top : top + side // 3, left : left + side // 3] = 1
        cy, cx = random.integers(side // 4, side, 2)
        mask[(y - cy) ** 2 + (x - cx) ** 2 < (side // 5) ** 2] = 2
        mask[:, side - side // 6 :] = 3
        image = np.array(COLOURS, dtype=np.int64)[mask] + random.integers(-20, 20, (side, side, 3))
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "images" / f"{stem}.png")
        Image.fromarray(mask).save(root / "masks" / f"{stem}.png")
    (root / "classes.txt").write_text("\n".join(NAMES))
    for split in ("train", "val"):
        (root / f"{split}.txt").write_text("\n".join(stems))
    return root
