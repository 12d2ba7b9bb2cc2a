"""Large pictures: prompts of four colours, TIFF files of any size that take little room, and work that stops."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dpseg.large.grid import Tiling
from dpseg.large.segment import LargeRun, TileOptions
from dpseg.large.windows import open_windows
from dpseg.prompts.prompt_set import PromptSet
from dpseg.segmenter import Segmenter
from support.pictures import BLUE, GREEN, RED, WHITE, plain

COLOURS = {"red": RED, "blue": BLUE, "green": GREEN, "white": WHITE}


def four_colours(segmenter: Segmenter) -> PromptSet:
    """Prompts of `COLOURS`, a picture each."""
    return segmenter.prompts(references={name: plain(colour) for name, colour in COLOURS.items()})


def write_black(path: Path, width: int, height: int, tile: int, sparse: bool = False) -> Path:
    """Writes a large black picture, whose file is small; sparse: all tiles but the first are missing."""
    import tifffile

    black = zlib.compress(bytes(tile * tile * 3))
    tiles = -(-width // tile) * -(-height // tile)
    with tifffile.TiffWriter(path) as file:
        file.write(
            (b"" if sparse and number else black for number in range(tiles)),
            shape=(height, width, 3),
            dtype=np.uint8,
            tile=(tile, tile),
            photometric="rgb",
            compression="zlib",
        )
    return path


class Stopped(Exception):
    """Work was interrupted."""


def _stop() -> None:
    raise Stopped


def segment_file(
    segmenter: Segmenter,
    prompts: PromptSet,
    path: Path,
    tiling: Tiling,
    last: int = -1,
    stop: Callable[[], None] = _stop,
    formats: tuple[str, ...] = ("png", "json", "overlay"),
) -> tuple[int, int]:
    """Segments a file into its own folder until after the `last` tile; returns the tiles and those looked at."""
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if done == last:
            stop()

    with open_windows(path) as picture:
        run = LargeRun(segmenter, picture, path, prompts, (path.parent, path.stem), TileOptions(tiling), formats)
        found = run.segment(advance)
        assert sum(found.counts) == picture.width * picture.height
        assert done == run.tiles_left
    return run.tiles, done
