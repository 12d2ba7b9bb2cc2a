"""A folder with pictures of three names, what `dpseg prompts bank add` makes of them, and how much it encodes."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from dpseg.cli import run
from dpseg.model.encoders import Encoder, VisualFeatures
from dpseg.model.tiny import TinyEncoder
from dpseg.prompts.visual import Reference
from support import forked
from support.pictures import BLUE, GREEN, RED, noisy


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goes to a folder and puts pictures of three names there."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DPSEG_CACHE", str(folder / "cache"))
    for name, colours in (("red_wall", (RED, (200, 60, 50))), ("blue", (BLUE,)), ("leaf", (GREEN, (60, 160, 60)))):
        Path("pictures", name).mkdir(parents=True)
        for number, colour in enumerate(colours):
            noisy(colour, number).save(f"pictures/{name}/{number}.png")


def count_encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Notes from now on how many pictures the encoder takes each time."""
    taken: list[int] = []
    plain = TinyEncoder.visual_features

    def visual_features(self: TinyEncoder, crops: Tensor, masks: Tensor | None = None) -> VisualFeatures:
        taken.append(len(crops))
        return plain(self, crops, masks)

    monkeypatch.setattr(TinyEncoder, "visual_features", visual_features)
    return taken


def add(model: str, *arguments: str, bank: str = "bank") -> int:
    """Runs `dpseg prompts bank add`."""
    return run(["prompts", "bank", "add", bank, *arguments, "--model", model])


def features_of(encoder: Encoder, reference: Reference) -> VisualFeatures:
    """What the encoder makes of one picture."""
    crop, mask = reference.crop(encoder.crop_size)
    return encoder.visual_features(crop[None], mask[None])


def add_and_die(model: str, folder: str, after: int) -> None:
    """Runs `dpseg prompts bank add` on pictures, and is killed when so many were encoded and more are to be."""
    plain, count = TinyEncoder.visual_features, 0

    def visual_features(self: TinyEncoder, crops: Tensor, masks: Tensor | None = None) -> VisualFeatures:
        nonlocal count
        if count >= after:
            forked.kill_me()
        count += len(crops)
        return plain(self, crops, masks)

    TinyEncoder.visual_features = visual_features  # type: ignore[method-assign]
    add(model, folder)
