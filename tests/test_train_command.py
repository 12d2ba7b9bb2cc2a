"""`dpseg train` as processes: what a run leaves, kills, several processes, damaged photos."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from dpseg.commands.train import TrainOptions, train
from dpseg.errors import ConfigError, DataError
from support.labelled_set import write_set

DPSEG = [sys.executable, "-m", "dpseg"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    write_set(tmp_path / "data" / "shapes")
    values = {
        "model": {
            "encoder": "tiny",
            "image_size": 32,
            "templates": 1,
            "widths": [8, 8, 8, 8],
            "image_widths": [4, 4, 4],
            "heads": 2,
            "train_pool": 1,
        },
        "data": [{"name": "shapes"}],
        "data_root": str(tmp_path / "data"),
        "out": str(tmp_path / "run"),
        "iterations": 5,
        "batch_size": 2,
        "crop": 64,
        "photo_size": 64,
        "classes": 3,
        "hard_negatives": 0.5,
        "refined": 0.5,
        "ema": 0.9,
        "lr": 0.01,
        "encoder_lr": 1.0,
        "checkpoint_minutes": 0.0,
        "log_steps": 1,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def run(recipe: Path, *words: str, start: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [*(start or DPSEG), "train", "--config", str(recipe), "--accelerator", "cpu", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment(), check=False)


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


def rows(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_a_run_leaves_model_curves_metrics_and_how_it_was_made(recipe: Path) -> None:
    lines: list[str] = []

    class Lines(Console):
        def print(self, *objects: object, **_: object) -> None:  # type: ignore[override]
            lines.extend(str(one) for one in objects)

    assert train(TrainOptions(recipe, ["--iterations", "4"], accelerator="cpu"), Lines()) == 0
    folder = recipe.parent / "run"
    assert [row["step"] for row in rows(folder)] == [1, 2, 3, 4]
    assert all(row["loss"] == pytest.approx(row["ce"] + row["bce"] + row["aux"], rel=1e-4) for row in rows(folder))
    assert Image.open(folder / "curves.png").size == (900, 500)
    assert list((folder / "tensorboard").glob("events.*"))
    (start,) = json.loads((folder / "run.json").read_text())
    assert start["packages"]["torch"] == torch.__version__.split("+")[0]
    assert start["processes"] == 1
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["iterations"] == 4
    assert (folder / "final" / "model.safetensors").is_file()
    assert any("step 4/4 loss" in line and "s/step, 0 min left" in line for line in lines)


def test_a_killed_run_goes_on_and_ends_like_one_that_was_not(recipe: Path, tmp_path: Path) -> None:
    whole = run(recipe, "--iterations", "40", "--out", str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    command = [*DPSEG, "train", "--config", str(recipe), "--accelerator", "cpu", "--iterations", "40"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    deadline = time.monotonic() + 120
    while not checkpoint.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    resumed = run(recipe, "--iterations", "40")
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed at step" in resumed.stdout
    assert [row["step"] for row in rows(tmp_path / "run")] == list(range(1, 41))
    losses = [[row["loss"] for row in rows(tmp_path / name)] for name in ("whole", "run")]
    assert losses[0] == losses[1]
    first, second = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("start", [TORCHRUN + DPSEG, DPSEG], ids=["torchrun", "devices"])
def test_two_processes_are_one_with_the_same_crops(recipe: Path, tmp_path: Path, start: list[str]) -> None:
    words = ["--iterations", "3", "--batch_size", "4", "--ema", "0.0"]
    alone = run(recipe, *words, "--out", str(tmp_path / "alone"))
    assert alone.returncode == 0, alone.stderr
    both = run(recipe, *words, "--out", str(tmp_path / "both"), "--devices", "2", start=start)
    assert both.returncode == 0, both.stderr
    assert json.loads((tmp_path / "both" / "run.json").read_text())[0]["processes"] == 2
    one, two = (rows(tmp_path / name) for name in ("alone", "both"))
    assert [row["step"] for row in two] == [1, 2, 3]
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=2e-5)


def test_damaged_photos_are_counted_and_replaced(recipe: Path) -> None:
    photo = recipe.parent / "data" / "shapes" / "images" / "photo1.png"
    photo.write_bytes(photo.read_bytes()[:200])
    with pytest.raises(Exception, match="photo1"):
        train(TrainOptions(recipe, accelerator="cpu"), Console(quiet=True))
    words = ["--in_memory", "false", "--iterations", "12", "--workers", "1"]
    assert train(TrainOptions(recipe, words, accelerator="cpu"), Console(quiet=True)) == 0
    skipped = [row["skipped"] for row in rows(recipe.parent / "run")]
    assert 1 <= skipped[-1] <= 24
    assert skipped == sorted(skipped)


def test_a_set_of_damaged_photos_stops_the_run(recipe: Path) -> None:
    words = ["--in_memory", "false", "--hard_negatives", "0.0"]
    assert train(TrainOptions(recipe, words, accelerator="cpu"), Console(quiet=True)) == 0
    for photo in (recipe.parent / "data" / "shapes" / "images").iterdir():
        photo.write_bytes(photo.read_bytes()[:200])
    with pytest.raises(DataError, match="no photo shows an object"):
        train(TrainOptions(recipe, words, accelerator="cpu"), Console(quiet=True))


def test_a_batch_that_processes_cannot_share_is_an_error(recipe: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size 2 cannot be shared by 3 processes"):
        train(TrainOptions(recipe, devices=3, accelerator="cpu"), Console(quiet=True))


def test_an_accelerator_that_is_not_there_is_an_error(recipe: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="cannot train on 1 x cuda"):
        train(TrainOptions(recipe, accelerator="cuda"), Console(quiet=True))
