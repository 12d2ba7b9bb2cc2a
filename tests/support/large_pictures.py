"""Large pictures: prompts of four colours, and TIFF files of any size that take little room."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

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
