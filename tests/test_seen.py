"""Which classes training had, and mIoU over those and over the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dpseg.config import ModelConfig
from dpseg.data.vocabularies import load_vocabulary
from dpseg.evaluation.metrics import ConfusionMatrix
from dpseg.evaluation.seen import NAMES_FILE, by_seen, seen_classes, training_names


def test_a_name_or_a_synonym_makes_a_class_seen_whatever_its_case() -> None:
    seen = seen_classes(["Couch, sofa", "sofa bed", "mug", "TV, television"], ["sofa", "cup, mug", "tv"])
    assert seen.tolist() == [True, False, True, True]


def test_clip_models_saw_coco_stuff_and_lite_what_its_folder_says(tmp_path: Path) -> None:
    assert training_names(ModelConfig(encoder="base"), None) == load_vocabulary("cocostuff171")
    lite = ModelConfig(encoder="lite")
    assert training_names(lite, None) is None
    assert training_names(lite, tmp_path) is None
    (tmp_path / NAMES_FILE).write_text("# names\ncat\ncouch, sofa\n")
    assert training_names(lite, tmp_path) == ["cat", "couch, sofa"]


def test_most_of_pascal_is_seen_and_much_of_ade_is_not() -> None:
    training = load_vocabulary("cocostuff171")
    assert seen_classes(load_vocabulary("voc20"), training).all()
    assert 0.2 < seen_classes(load_vocabulary("ade150"), training).mean() < 0.8


def test_hand_computed_split() -> None:
    matrix = ConfusionMatrix(["a", "b", "c", "never"])
    matrix.update(np.array([0, 0, 1, 1, 2, 2]), np.array([0, 0, 1, 2, 2, 1]))
    split = by_seen(matrix, np.array([True, False, False, True]))
    assert split["seen"] == {"miou": 1.0, "classes": 1}
    assert split["unseen"] == {"miou": pytest.approx(1 / 3), "classes": 2}
    assert by_seen(matrix, np.ones(4, bool))["unseen"] == {"miou": None, "classes": 0}
