"""What the tests of explanations look at: a photo of blue and red, and a segmenter that refines any region."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from dpseg.cache import EmbeddingCache
from dpseg.config import RefineConfig
from dpseg.segmenter import Segmenter
from support.pictures import BLUE, RED
from support.tiny import tiny_model


def quarter() -> Image.Image:
    """A photo of 128 x 64, one quarter red and the rest blue."""
    photo = Image.new("RGB", (128, 64), BLUE)
    photo.paste(RED, (0, 0, 32, 64))
    return photo


def eager_segmenter(cache: Path, **changes: Any) -> Segmenter:
    """The tiny model with three templates, for which every region is certain enough to be a prompt."""
    model = tiny_model(**{"templates": 3} | changes)
    return Segmenter(model, refinement=RefineConfig(min_confidence=0.0), cache=EmbeddingCache(cache))


def unit(rows: ArrayLike) -> NDArray[Any]:
    """Vectors of length 1."""
    values = np.asarray(rows)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)
