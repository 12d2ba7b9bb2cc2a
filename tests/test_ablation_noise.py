"""Noise on visual prompts: how strong it is, what it leaves alone, and that it reaches an evaluation's prompts."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dpseg.ablation.noise import Noise, NoisySource, add_noise
from dpseg.config import ModelConfig
from dpseg.evaluation.workers import ModelSource
from dpseg.model.dpseg import DPSeg
from dpseg.prompts.prompt_set import PromptEmbeddings, PromptSet

CONFIG = ModelConfig(encoder="tiny", image_size=64, keep_aspect=True, templates=1, logit_scale=10.0, tune_encoder=False)
SIZES = (2000, 1000, 1500, 3000)  # of V and GAP(V_j)


@pytest.fixture(scope="module")
def prompts() -> PromptSet:
    """Twenty classes, all with words, the first one without pictures."""
    random = torch.Generator().manual_seed(5)
    rows = [F.normalize(torch.randn(20, 1, size, generator=random), dim=-1) for size in SIZES]
    for row in rows:
        row[0] = 0
    has_visual = torch.ones(20, dtype=torch.bool)
    has_visual[0] = False
    text = F.normalize(torch.randn(20, 3, SIZES[0], generator=random), dim=-1)
    embeddings = PromptEmbeddings(
        text, rows[0], (rows[1], rows[2], rows[3]), torch.ones(20, dtype=torch.bool), has_visual
    )
    return PromptSet(tuple(f"class {number}" for number in range(20)), embeddings, "an encoder")


def visual(prompts: PromptSet) -> list[np.ndarray[tuple[int, int], np.dtype[np.float64]]]:
    """V and GAP(V_j) of the classes with pictures, each (19, D)."""
    e = prompts.embeddings
    return [rows[1:, 0].double().numpy() for rows in (e.visual, *e.stages)]


@pytest.mark.parametrize("strength", [0.3, 1.0, 2.5])
def test_the_angle_is_that_of_noise_of_so_much_length(prompts: PromptSet, strength: float) -> None:
    noisy = add_noise(prompts, Noise(strength, seed=1))
    for before, after in zip(visual(prompts), visual(noisy), strict=True):
        cosines = (before * after).sum(axis=1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
        assert cosines == pytest.approx(np.full(19, math.cos(math.atan(strength))), abs=0.1)
        assert cosines.mean() == pytest.approx(math.cos(math.atan(strength)), abs=0.02)
        assert np.linalg.norm(after, axis=1) == pytest.approx(np.ones(19), abs=1e-5)
        moved = after / cosines[:, None] - before  # what was added, as far as it is across: independent of each other
        moved /= np.linalg.norm(moved, axis=1, keepdims=True)
        assert np.abs(moved @ moved.T - np.eye(19)).max() < 0.15


def test_words_and_classes_without_pictures_stay(prompts: PromptSet) -> None:
    noisy = add_noise(prompts, Noise(1.0, seed=1))
    before, after = prompts.embeddings, noisy.embeddings
    assert torch.equal(after.text, before.text)
    assert torch.equal(after.has_visual, before.has_visual)
    for rows in (after.visual, *after.stages):
        assert not rows[0].any()
        assert torch.isfinite(rows).all()
    assert (noisy.names, noisy.encoder) == (prompts.names, prompts.encoder)


def test_a_prompt_keeps_its_length(prompts: PromptSet) -> None:
    e = prompts.embeddings
    longer = prompts.with_embeddings(e.map(lambda tensor: tensor * 3 if tensor.is_floating_point() else tensor))
    for one, three in zip(visual(add_noise(prompts, Noise(0.7))), visual(add_noise(longer, Noise(0.7))), strict=True):
        assert three == pytest.approx(3 * one, abs=1e-5)


def test_the_seed_decides_and_all_strengths_share_its_noise(prompts: PromptSet) -> None:
    assert add_noise(prompts, Noise(0.0, seed=1)) is prompts
    weak, same, strong, other = (
        visual(add_noise(prompts, Noise(strength, seed))) for strength, seed in ((0.5, 1), (0.5, 1), (1.0, 1), (0.5, 2))
    )
    for before, a, b, c, d in zip(visual(prompts), weak, same, strong, other, strict=True):
        assert np.array_equal(a, b)
        lengths = (np.linalg.norm(rows - before * (rows * before).sum(1, keepdims=True), axis=1) for rows in (a, c))
        assert all(x < y for x, y in zip(*lengths, strict=True))
        across = [rows - before * (rows * before).sum(axis=1, keepdims=True) for rows in (a, c, d)]
        across = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in across]
        assert (across[0] * across[1]).sum(axis=1) == pytest.approx(np.ones(19), abs=1e-4)
        assert np.abs((across[0] * across[2]).sum(axis=1)).max() < 0.2


def test_a_process_that_loads_the_model_has_the_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPSEG_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    DPSeg(CONFIG).save_pretrained(tmp_path / "tiny")
    pictures = {"red": np.full((40, 40, 3), (220, 30, 20), dtype=np.uint8)}
    plain = ModelSource(str(tmp_path / "tiny")).load().prompts(["red", "blue"], pictures)
    source = pickle.loads(pickle.dumps(NoisySource(str(tmp_path / "tiny"), noise=Noise(1.0, 3))))
    noisy = source.load().prompts(["red", "blue"], pictures)
    expected = add_noise(plain, Noise(1.0, 3))
    assert torch.equal(noisy.embeddings.visual, expected.embeddings.visual)
    assert all(torch.equal(a, b) for a, b in zip(noisy.embeddings.stages, expected.embeddings.stages, strict=True))
    assert not torch.equal(noisy.embeddings.visual, plain.embeddings.visual)
    assert torch.equal(noisy.embeddings.text, plain.embeddings.text)
