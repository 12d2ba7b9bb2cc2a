"""For the tests of large pictures: a tiny model that tells colours apart, and TIFF files of any size."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import tifffile
import torch
from PIL import Image

from dpseg.cache import EmbeddingCache
from dpseg.config import ModelConfig
from dpseg.model.dpseg import DPSeg
from dpseg.prompts.prompt_set import PromptSet
from dpseg.segmenter import Segmenter

CONFIG = ModelConfig(encoder="tiny", image_size=64, keep_aspect=True, templates=1, logit_scale=10.0, tune_encoder=False)
COLOURS = {"red": (220, 30, 20), "blue": (20, 40, 220), "green": (10, 180, 40), "white": (240, 240, 240)}


def make_segmenter(folder: Path, config: ModelConfig = CONFIG) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(DPSeg(config), cache=EmbeddingCache(folder))


def prompts_of(segmenter: Segmenter) -> PromptSet:
    return segmenter.prompts(references={name: Image.new("RGB", (32, 32), colour) for name, colour in COLOURS.items()})


def write_black(path: Path, side: int, tile: int, sparse: bool = False) -> None:
    """Writes a large black picture, whose file is small; sparse: all tiles but the first are missing."""
    black = zlib.compress(bytes(tile * tile * 3))
    with tifffile.TiffWriter(path) as file:
        file.write(
            (b"" if sparse and number else black for number in range((-(-side // tile)) ** 2)),
            shape=(side, side, 3),
            dtype=np.uint8,
            tile=(tile, tile),
            photometric="rgb",
            compression="zlib",
        )
