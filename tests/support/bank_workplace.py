"""A folder with pictures of three names, two models, and what `dpseg prompts bank` makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dpseg.cache import EmbeddingCache
from dpseg.cli import run
from dpseg.config import ModelConfig
from dpseg.model.dpseg import DPSeg
from dpseg.model.encoders import VisualFeatures
from dpseg.model.prompt_encoding import name_features
from dpseg.model.tiny import TinyEncoder
from dpseg.prompts.text import parse_classes
from dpseg.prompts.visual import Reference
from dpseg.segmenter import Segmenter

CONFIG = ModelConfig(encoder="tiny", image_size=64, keep_aspect=True, templates=1, logit_scale=10.0, tune_encoder=False)
RED, BLUE, GREEN = (220, 30, 20), (20, 40, 220), (30, 180, 40)


def save_model(folder: Path, scale: float = 1.0) -> str:
    """Saves a tiny model; with another scale it has another encoder."""
    torch.manual_seed(0)
    model = DPSeg(CONFIG)
    with torch.no_grad():
        for parameter in model.encoder.parameters():  # type: ignore[attr-defined]
            parameter.mul_(scale)
    model.save_pretrained(folder)
    return str(folder)


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goes to a folder and puts pictures of three names there."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DPSEG_CACHE", str(folder / "cache"))
    for name, colours in (("red_wall", (RED, (200, 60, 50))), ("blue", (BLUE,)), ("leaf", (GREEN, (60, 160, 60)))):
        Path("pictures", name).mkdir(parents=True)
        for number, colour in enumerate(colours):
            noisy_picture(colour, number).save(f"pictures/{name}/{number}.png")


def count_encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Notes from now on how many pictures the encoder takes each time."""
    taken: list[int] = []
    plain = TinyEncoder.visual_features

    def visual_features(self: TinyEncoder, crops: Tensor, masks: Tensor | None = None) -> VisualFeatures:
        taken.append(len(crops))
        return plain(self, crops, masks)

    monkeypatch.setattr(TinyEncoder, "visual_features", visual_features)
    return taken


def noisy_picture(colour: tuple[int, int, int], seed: int, side: int = 40) -> Image.Image:
    noise = np.random.default_rng(seed).integers(-20, 20, (side, side, 3))
    return Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))


def add(model: str, *arguments: str, bank: str = "bank") -> int:
    return run(["prompts", "bank", "add", bank, *arguments, "--model", model])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Runs a command that fails and returns the one line that it prints."""
    capsys.readouterr()
    assert run(["prompts", "bank", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def features_of(model: str, reference: Reference) -> VisualFeatures:
    """What the encoder makes of one picture."""
    encoder = Segmenter.from_pretrained(model).model.encoder
    crop, mask = reference.crop(encoder.crop_size)
    return encoder.visual_features(crop[None], mask[None])


def words_of(model: str, *names: str) -> Tensor:
    return name_features(Segmenter.from_pretrained(model).model.encoder, parse_classes(names), EmbeddingCache())
