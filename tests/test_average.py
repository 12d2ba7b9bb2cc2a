"""`dpseg average`: a model of averaged weights, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dpseg.cli import run
from dpseg.config import ModelConfig
from dpseg.model.dpseg import DPSeg
from dpseg.segmenter import Segmenter

CONFIG = ModelConfig(encoder="tiny", image_size=64, keep_aspect=True, templates=1, logit_scale=10.0)


def saved(folder: Path, seed: int, config: ModelConfig = CONFIG) -> Path:
    torch.manual_seed(seed)
    DPSeg(config).save_pretrained(folder)
    return folder


def test_weights_are_averaged_and_the_model_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = [saved(tmp_path / str(seed), seed) for seed in range(3)]
    (models[0] / "names.txt").write_text("cat\n")
    (models[1] / "names.txt").write_text("cat\n")
    (models[2] / "names.txt").write_text("cat\n")
    out = tmp_path / "soup"
    assert run(["average", *map(str, models), "--out", str(out)]) == 0
    assert "3 models averaged" in capsys.readouterr().out
    states = [load_file(model / "model.safetensors") for model in models]
    found = load_file(out / "model.safetensors")
    assert any(not torch.equal(states[0][name], states[1][name]) for name in found)
    for name, tensor in found.items():
        wanted = torch.stack([state[name].double() for state in states]).mean(dim=0).to(tensor.dtype)
        assert torch.equal(tensor, wanted)
    assert (out / "names.txt").read_text() == "cat\n"
    result = Segmenter.from_pretrained(out)(Image.new("RGB", (64, 64), "red"), text=["red", "blue"])
    assert result.labels.shape == (64, 64)


def test_models_that_differ_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = saved(tmp_path / "one", 0), saved(tmp_path / "two", 1)
    other = saved(tmp_path / "other", 1, replace(CONFIG, heads=2))
    out = tmp_path / "soup"

    def refused(*words: object) -> str:
        assert run(["average", *map(str, words)]) == 2
        return capsys.readouterr().err

    assert "1 model given; give two or more" in refused(one, "--out", out)
    assert "different configs" in refused(one, other, "--out", out)
    assert "is one of the models; choose another --out" in refused(one, two, "--out", two)
    (two / "names.txt").write_text("dog\n")
    assert "different names" in refused(one, two, "--out", out)
    (two / "names.txt").unlink()
    (two / "model.safetensors").write_bytes(b"no")
    assert "model.safetensors cannot be read" in refused(one, two, "--out", out)
    assert not out.exists()


def test_what_cannot_be_written_is_said_and_leaves_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = [str(saved(tmp_path / str(seed), seed)) for seed in range(2)]
    for model in models:
        (Path(model) / "names.txt").write_text("cat\n")
    (tmp_path / "soup" / "names.txt").mkdir(parents=True)  # a folder in the file's place
    assert run(["average", *models, "--out", str(tmp_path / "soup")]) == 2
    assert "names.txt: cannot be written" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "soup").iterdir()] == ["names.txt"]
