"""A training run's whole state in one file: written atomically, so that a kill at any moment leaves the last one."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from dpseg.errors import ConfigError
from dpseg.files import write_atomically
from dpseg.model.dpseg import DPSeg
from dpseg.recipe import TrainConfig

CHECKPOINT = "checkpoint.pt"

FREE_FIELDS = ("out", "data_root", "workers", "in_memory", "checkpoint_minutes", "log_steps")
"""Fields of a recipe that may differ in a resumed run: they change no result."""


@dataclass(eq=False)
class State:
    """What changes in a run.

    Attributes:
        model: in training.
        optimizer: with its moments.
        schedule: of the learning rates.
        average: exponential moving average of the weights, or None.
        scaler: of fp16's gradients, or None: `state_dict` and `load_state_dict`.
        step: so many steps are done; the sampler's position.
        skipped: so many photos could not be read.
    """

    model: DPSeg
    optimizer: Optimizer
    schedule: LRScheduler
    average: AveragedModel | None = None
    scaler: Any = None
    step: int = 0
    skipped: int = 0

    @property
    def averaged(self) -> DPSeg:
        """The averaged model where there is one, else the model."""
        module = self.model if self.average is None else self.average.module
        assert isinstance(module, DPSeg)
        return module


def save(path: Path, state: State, config: TrainConfig, data: str) -> None:
    """Writes a checkpoint.

    Args:
        path: the file.
        state: of the run.
        config: its recipe.
        data: digest of its photos.

    Raises:
        OutputError: It cannot be written; the one before stays.
    """
    content = {
        "config": describe(config),
        "data": data,
        "step": state.step,
        "skipped": state.skipped,
        "model": state.model.saved_state(),
        "optimizer": state.optimizer.state_dict(),
        "schedule": state.schedule.state_dict(),
        "average": None if state.average is None else (state.averaged.saved_state(), int(state.average.n_averaged)),
        "scaler": None if state.scaler is None else state.scaler.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


def restore(path: Path, state: State, config: TrainConfig, data: str) -> None:
    """Puts a run back to where a checkpoint was written.

    Raises:
        ConfigError: The checkpoint is damaged, or of another recipe or other photos.
    """
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
        about, photos = content["config"], content["data"]
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ConfigError(f"{path} is no checkpoint that can be read; delete it to start again") from error
    if about != describe(config):
        raise ConfigError(f"{path} was written by another recipe; give another out:, or delete it to start again")
    if photos != data:
        raise ConfigError(f"{path} was written with other photos; give another out:, or delete it to start again")
    state.model.load_saved_state(content["model"], str(path))
    state.optimizer.load_state_dict(content["optimizer"])
    state.schedule.load_state_dict(content["schedule"])
    if state.average is not None:
        state.averaged.load_saved_state(content["average"][0], str(path))
        state.average.n_averaged.fill_(content["average"][1])
    if state.scaler is not None and content["scaler"] is not None:
        state.scaler.load_state_dict(content["scaler"])
    torch.set_rng_state(content["random"])
    if content["random_cuda"] and len(content["random_cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(content["random_cuda"])
    state.step, state.skipped = content["step"], content["skipped"]


def describe(config: TrainConfig) -> str:
    """Returns the recipe's fields on which the result depends, as JSON."""
    values = {key: value for key, value in asdict(config).items() if key not in FREE_FIELDS}
    return json.dumps(values, sort_keys=True)
