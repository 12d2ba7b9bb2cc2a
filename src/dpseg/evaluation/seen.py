"""Seen against unseen names: which classes of a data set the model's training had, by name or synonym."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpseg.config import ModelConfig
from dpseg.data.vocabularies import load_vocabulary, read_classes
from dpseg.evaluation.metrics import ConfusionMatrix
from dpseg.prompts.text import parse_class

NAMES_FILE = "names.txt"
"""File of a saved model that lists the names of its training, one class a line."""


def training_names(config: ModelConfig, folder: Path | None) -> list[str] | None:
    """Returns the names on which a model was trained, synonyms after commas, or None where nobody says.

    Args:
        config: the model's. CLIP models are trained on COCO-Stuff unless their folder says otherwise.
        folder: of the saved model, which may hold `NAMES_FILE`; None: it has none.
    """
    if folder is not None and (folder / NAMES_FILE).is_file():
        return read_classes((folder / NAMES_FILE).read_text("utf-8-sig"))
    return load_vocabulary("cocostuff171") if config.encoder in ("base", "large") else None


def seen_classes(names: Sequence[str], training: Sequence[str]) -> NDArray[np.bool_]:
    """Returns which of K classes training had under one of their names, (K,).

    Args:
        names: K classes, synonyms after commas.
        training: the names of training, likewise.
    """
    known = {word.casefold() for name in training for word in parse_class(name).synonyms}
    return np.array([any(word.casefold() in known for word in parse_class(name).synonyms) for name in names])


def by_seen(matrix: ConfusionMatrix, seen: NDArray[np.bool_]) -> dict[str, dict[str, Any]]:
    """Returns mIoU over the seen and over the unseen classes that occur in the truth, None where there are none.

    All classes compete for the pixels, as in the mIoU over all of them.
    """
    return {
        name: {
            "miou": float(matrix.iou[chosen].mean()) if chosen.any() else None,
            "classes": int(chosen.sum()),
        }
        for name, chosen in (("seen", seen & matrix.occurs), ("unseen", ~seen & matrix.occurs))
    }
