"""Segmentations that no model made: a cat on a sofa."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dpseg.result import Segmentation

NAMES = ("cat", "couch", "wall", "dog")


def segmentation(labels: npt.NDArray[Any], names: tuple[str, ...] = NAMES, **fields: Any) -> Segmentation:
    """A segmentation with logits of 4 where a label is, at half the size, and -4 elsewhere."""
    logits = np.where(labels[::2, ::2] == np.arange(len(names))[:, None, None], 4.0, -4.0).astype(np.float32)
    return Segmentation(labels.astype(np.int32), names, logits, **fields)


def sofa_labels() -> npt.NDArray[np.int32]:
    """80 x 120: two cats of 800 and 200 pixels, a couch on the lower half, wall above, a strip of none; no dog."""
    labels = np.full((80, 120), 2, dtype=np.int32)
    labels[40:] = 1
    labels[10:30, 10:50] = 0
    labels[50:60, 90:110] = 0
    labels[:, 116:] = -1
    return labels


def sofa() -> Segmentation:
    """The cats, of a photo of noise."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8))
    prompts = (("text",), ("text", "bank"), ("text",), ("reference",))
    return segmentation(sofa_labels(), image=image, source="photos/sofa.jpg", prompts=prompts)
