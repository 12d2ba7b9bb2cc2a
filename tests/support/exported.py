"""A tiny model and its ONNX export, made once for all tests, because torch's exporter takes seconds."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import torch

from dpseg.cli import run
from dpseg.config import ModelConfig
from dpseg.model.dpseg import DPSeg

CONFIG = ModelConfig(
    encoder="tiny",
    image_size=64,
    keep_aspect=True,
    templates=2,
    logit_scale=20.0,
    widths=(12, 8),
    image_widths=(4,),
    heads=2,
    tune_encoder=False,
    mirrored_scales=(0.75,),
    decode_classes=4,
    presence=0.5,
    refine=False,
)

_kept: list[tempfile.TemporaryDirectory[str]] = []  # removed when the tests end


def tiny_model(config: ModelConfig = CONFIG) -> DPSeg:
    """A model whose decoder says something, as after training."""
    torch.manual_seed(0)
    model = DPSeg(config).eval()
    torch.nn.init.normal_(model.decoder.head.weight, std=0.3)
    return model


@cache
def exported_folder() -> Path:
    """Returns a folder with the model in tiny/, and model.onnx, which the command made of it."""
    _kept.append(tempfile.TemporaryDirectory())
    folder = Path(_kept[0].name)
    tiny_model().save_pretrained(folder / "tiny")
    assert run(["export", "--model", str(folder / "tiny"), "--out", str(folder / "model.onnx")]) == 0
    return folder
