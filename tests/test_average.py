"""`dpseg average`: a model of averaged weights, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dpseg.cli import run
from dpseg.model.dpseg import DPSeg
from dpseg.segmenter import Segmenter
from support.pictures import RED, plain
from support.tiny import tiny_config


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    """Three models with weights of their own, trained on the same name."""
    return [saved(tmp_path / str(seed), seed) for seed in range(3)]


def saved(folder: Path, seed: int, **changes: Any) -> str:
    torch.manual_seed(seed)
    DPSeg(tiny_config(**changes)).save_pretrained(folder)
    (folder / "names.txt").write_text("cat\n")
    return str(folder)


def test_weights_are_averaged_and_the_model_loads(
    models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "soup"
    assert run(["average", *models, "--out", str(out)]) == 0
    assert "3 models averaged" in capsys.readouterr().out
    states = [load_file(Path(model) / "model.safetensors") for model in models]
    found = load_file(out / "model.safetensors")
    assert any(not torch.equal(states[0][name], states[1][name]) for name in found)
    for name, tensor in found.items():
        wanted = torch.stack([state[name].double() for state in states]).mean(dim=0).to(tensor.dtype)
        assert torch.equal(tensor, wanted)
    assert (out / "names.txt").read_text() == "cat\n"
    assert Segmenter.from_pretrained(out)(plain(RED, 64), text=["red", "blue"]).labels.shape == (64, 64)


def test_models_that_differ_are_refused(models: list[str], tmp_path: Path, refused: Callable[..., str]) -> None:
    (one, two, _), out = models, str(tmp_path / "soup")
    assert "1 model given; give two or more" in refused("average", one, "--out", out)
    other = saved(tmp_path / "other", 1, heads=2)
    assert "different configs" in refused("average", one, other, "--out", out)
    assert "is one of the models; choose another --out" in refused("average", one, two, "--out", two)
    (Path(two) / "names.txt").write_text("dog\n")
    assert "different names" in refused("average", one, two, "--out", out)
    (Path(two) / "model.safetensors").write_bytes(b"no")
    assert "model.safetensors cannot be read" in refused("average", one, two, "--out", out)
    assert not Path(out).exists()


def test_what_cannot_be_written_is_said_and_leaves_no_model(
    models: list[str], tmp_path: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "soup" / "names.txt").mkdir(parents=True)  # a folder in the file's place
    assert "names.txt: cannot be written" in refused("average", *models, "--out", str(tmp_path / "soup"))
    assert [path.name for path in (tmp_path / "soup").iterdir()] == ["names.txt"]
