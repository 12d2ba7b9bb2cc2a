"""A recipe that trains the tiny model on the labelled set `shapes`, within a second."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from dpseg.recipe import DataSource, TrainConfig
from support.labelled_set import write_set
from support.tiny import decoder_config


def tiny_recipe(folder: Path, model: dict[str, Any] | None = None, **changes: Any) -> TrainConfig:
    """Returns a recipe of six steps.

    Args:
        folder: in it, data/shapes is written where it is missing, and the run is to be in run.
        model: changes of its model.
        changes: of its other fields.
    """
    if not (folder / "data" / "shapes").exists():
        write_set(folder / "data" / "shapes")
    plain: dict[str, Any] = {
        "data": (DataSource("shapes"),), "data_root": str(folder / "data"), "out": str(folder / "run"),
        "iterations": 6, "batch_size": 2, "crop": 64, "photo_size": 64, "classes": 3, "retention": 0.0, "warmup": 1,
        "ema": 0.0, "lr": 0.01, "encoder_lr": 1.0, "checkpoint_minutes": 0.0, "log_steps": 2,
    }  # fmt: skip
    tiny = decoder_config(**{"image_size": 64, "templates": 1, "train_pool": 1} | (model or {}))
    return TrainConfig(model=tiny, **plain | changes)


def write_recipe(path: Path, config: TrainConfig) -> Path:
    """Writes a recipe as --config takes it, and returns its path."""
    path.write_text(yaml.safe_dump(json.loads(json.dumps(asdict(config)))))
    return path
