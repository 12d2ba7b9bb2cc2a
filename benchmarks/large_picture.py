"""Segments a large TIFF in tiles and prints seconds and peak memory: of 20,000 x 20,000 pixels, with dpseg-lite.

    python benchmarks/large_picture.py [--side 20000] [--tile 1024] [--keep FOLDER]

The TIFF is a photo of examples/, enlarged and repeated, mirrored in turn so that it has no edges; it is written by
windows, with compressed tiles. The command `dpseg predict --tile` runs in a process of its own. For comparison it also
runs on a corner of a tenth of the side, so that the memory of torch and the model can be told from that of the picture.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from processes import run_process

ROOT = Path(__file__).parent.parent
NAMES = ("cat", "coffee cup, cup", "spoon", "wooden table", "saucer, plate", "wall", "sky", "tree")
SIDE = 512  # of the TIFF's tiles, in pixels
REPEAT = 2400  # pixels, width of one copy of the photo


def pattern(photo: Path) -> NDArray[np.uint8]:
    """Returns a photo and its mirror images, (h, w, 3), which repeat without an edge."""
    image = Image.open(photo).convert("RGB")
    image = image.resize((REPEAT, round(REPEAT * image.height / image.width)), Image.Resampling.BICUBIC)
    values = np.asarray(image)
    values = np.concatenate([values, values[:, ::-1]], axis=1)
    return np.concatenate([values, values[::-1]])


def tiles(values: NDArray[np.uint8], side: int) -> Iterator[bytes]:
    """Yields the compressed tiles of a picture of side x side pixels that repeats the values."""
    height, width = values.shape[:2]
    for top in range(0, side, SIDE):
        rows = values[np.arange(top, top + SIDE) % height]
        for left in range(0, side, SIDE):
            yield zlib.compress(rows[:, np.arange(left, left + SIDE) % width].tobytes(), 1)


def write_tiff(path: Path, values: NDArray[np.uint8], side: int) -> None:
    """Writes the picture in the memory of a tile."""
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        file.write(
            tiles(values, side),
            shape=(side, side, 3),
            dtype=np.uint8,
            tile=(SIDE, SIDE),
            photometric="rgb",
            compression="zlib",
            metadata=None,
        )


def predict(path: Path, out: Path, tile: int) -> tuple[float, float]:
    """Runs `dpseg predict` and returns its seconds and its peak memory in GB."""
    words = [word for name in NAMES for word in ("--text", name)]
    command = [str(Path(sys.executable).parent / "dpseg"), "predict", str(path), *words, "--tile", str(tile)]
    return run_process([*command, "--out", str(out)])


def main() -> int:
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--side", type=int, default=20_000, help="of the picture, in pixels")
    parser.add_argument("--tile", type=int, default=1024, help="side of a tile, in pixels")
    parser.add_argument("--photo", type=Path, default=ROOT / "examples" / "coffee.jpg", help="what is repeated")
    parser.add_argument("--keep", type=Path, help="folder for the picture and the results; default: they are deleted")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for side in (max(asked.side // 10, 64), asked.side):
            path = folder / f"side{side}.tif"
            write_tiff(path, pattern(asked.photo), side)
            seconds, memory = predict(path, folder / "out", asked.tile)
            rows.append((side, path.stat().st_size / 1e9, seconds, memory))
    print("\n| picture | its file, GB | seconds | peak memory, GB |\n|---|---|---|---|")
    for side, size, seconds, memory in rows:
        print(f"| {side} x {side} | {size:.2f} | {seconds:.1f} | {memory:.2f} |")
    print(f"\ntiles of {asked.tile} pixels, {len(NAMES)} names, {os.cpu_count()} cores")
    return 0


if __name__ == "__main__":
    sys.exit(main())
