"""The tiny model, whose encoder knows colours and nothing else: classes are told by pictures of one colour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dpseg.cache import EmbeddingCache
from dpseg.config import ModelConfig
from dpseg.model.dpseg import DPSeg
from dpseg.segmenter import Segmenter


def tiny_config(**changes: Any) -> ModelConfig:
    """The config that most tests use: 64 pixels, one template, and cosines that count as logits as they come."""
    plain: dict[str, Any] = {
        "encoder": "tiny", "image_size": 64, "keep_aspect": True, "templates": 1, "logit_scale": 10.0,
        "tune_encoder": False, "refine": False,
    }  # fmt: skip
    return ModelConfig(**plain | changes)


def decoder_config(**changes: Any) -> ModelConfig:
    """The config of a whole decoder of four small widths, whose logits are its own."""
    plain: dict[str, Any] = {
        "encoder": "tiny", "templates": 2, "widths": (16, 12, 8, 8), "image_widths": (4, 4, 4), "heads": 2,
    }  # fmt: skip
    return ModelConfig(**plain | changes)


def tiny_model(config: ModelConfig | None = None, trained: bool = False, **changes: Any) -> DPSeg:
    """A model with the same random weights each time.

    Args:
        config: None: `tiny_config` with the changes.
        trained: its decoder says something, as after training; else it starts at zero and the cosines decide.
        changes: of `tiny_config`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DPSeg(config or tiny_config(**changes)).eval()
        if trained:
            torch.nn.init.normal_(model.decoder.head.weight, std=0.3)
    return model


def tiny_segmenter(cache: Path | None = None, **changes: Any) -> Segmenter:
    """A segmenter of the tiny model; the embeddings of its words are kept below `cache`, or in this run's folder."""
    return Segmenter(tiny_model(**changes), cache=EmbeddingCache(cache))


def save_tiny(folder: Path, **changes: Any) -> str:
    """Saves the tiny model, and returns its folder, as --model takes it."""
    tiny_model(**changes).save_pretrained(folder)
    return str(folder)
