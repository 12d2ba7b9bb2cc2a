"""`dpseg train`: what a run leaves, kills, several processes, damaged photos, mistakes."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

import dpseg.commands.train as command
from dpseg.commands.train import TrainOptions, train
from dpseg.errors import ConfigError, DataError
from dpseg.training.loop import Progress
from support import forked
from support.tiny_recipe import tiny_recipe, write_recipe

DPSEG = [sys.executable, "-m", "dpseg"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    config = tiny_recipe(
        tmp_path, {"image_size": 32, "widths": (8, 8, 8, 8)}, iterations=5, hard_negatives=0.5, refined=0.5, ema=0.9,
        warmup=50, log_steps=1,
    )  # fmt: skip
    return write_recipe(tmp_path / "recipe.yaml", config)


class Lines(Console):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def print(self, *objects: object, **_: object) -> None:  # type: ignore[override]
        self.lines += map(str, objects)


def run(recipe: Path, *words: str, devices: int = 1, accelerator: str = "cpu") -> str:
    """Trains in this process, and returns the lines that it tells."""
    console = Lines()
    assert train(TrainOptions(recipe, words, devices=devices, accelerator=accelerator), console) == 0
    return "\n".join(console.lines)


def rows(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_a_run_leaves_model_curves_metrics_and_how_it_was_made(recipe: Path) -> None:
    told = run(recipe, "--iterations", "4")
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
    assert any("step 4/4 loss" in line and "s/step, 0 min left" in line for line in told.splitlines())


def train_until(recipe: Path, last: int) -> None:
    """Is killed when it has told of a step, and has not yet written the checkpoint of that."""
    add = command._Watch.add

    def add_or_die(self: command._Watch, now: Progress) -> None:
        add(self, now)
        if now.step == last:
            forked.kill_me()

    command._Watch.add = add_or_die  # type: ignore[method-assign]
    run(recipe)


def train_as_users_do(recipe: Path, *words: str, start: Sequence[str] = DPSEG) -> subprocess.Popen[str]:
    arguments = [*start, "train", "--config", str(recipe), "--accelerator", "cpu", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL)


def kill(recipe: Path, *words: str) -> None:
    """Starts the command as users do, and kills it some time after its first checkpoint."""
    process = train_as_users_do(recipe, *words)
    deadline = time.monotonic() + 120
    while (
        not (recipe.parent / "run/checkpoint.pt").is_file() and process.poll() is None and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"


@pytest.mark.parametrize("steps", [5, pytest.param(40, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_goes_on_and_ends_like_one_that_was_not(recipe: Path, tmp_path: Path, steps: int) -> None:
    words = ["--iterations", str(steps)]
    run(recipe, *words, "--out", str(tmp_path / "whole"))
    if steps == 5:
        assert forked.killed(train_until, recipe, 4, trains=True)
        assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3, 4]
    else:
        kill(recipe, *words)
    told = run(recipe, *words)
    assert ("resumed at step 3" if steps == 5 else "resumed at step") in told
    whole, resumed = tmp_path / "whole", tmp_path / "run"
    assert [row["step"] for row in rows(resumed)] == list(range(1, steps + 1))
    assert [row["loss"] for row in rows(whole)] == [row["loss"] for row in rows(resumed)]
    first, second = (load_file(folder / "final" / "model.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


WORDS = ("--batch_size", "4", "--ema", "0.0")


def train_with_another(recipe: Path, out: Path) -> None:
    run(recipe, *WORDS, "--iterations", "2", "--out", str(out), devices=2)


def compare_processes(alone: Path, both: Path, steps: Sequence[int]) -> None:
    """Asserts that a run of two processes had the losses of a run of one."""
    assert json.loads((both / "run.json").read_text())[0]["processes"] == 2
    assert [row["step"] for row in rows(both)] == steps
    for a, b in zip(rows(alone), rows(both), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=2e-5)


def test_two_processes_are_one_with_the_same_crops(recipe: Path, tmp_path: Path) -> None:
    """As torchrun would start them, whose variables Fabric reads; the slow test has torchrun itself."""
    run(recipe, *WORDS, "--iterations", "2", "--out", str(tmp_path / "alone"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        forked.start(train_with_another, recipe, tmp_path / "both", trains=True, RANK=rank, LOCAL_RANK=rank, **shared)
        for rank in ("0", "1")
    ]
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0, 0]
    compare_processes(tmp_path / "alone", tmp_path / "both", [1, 2])


@pytest.mark.slow
@pytest.mark.parametrize("start", [TORCHRUN + DPSEG, DPSEG], ids=["torchrun", "devices"])
def test_the_command_starts_two_processes(recipe: Path, tmp_path: Path, start: list[str]) -> None:
    words = [*WORDS, "--iterations", "3", "--out"]
    for process in (
        train_as_users_do(recipe, *words, str(tmp_path / "alone")),
        train_as_users_do(recipe, *words, str(tmp_path / "both"), "--devices", "2", start=start),
    ):
        assert process.wait(240) == 0
    compare_processes(tmp_path / "alone", tmp_path / "both", [1, 2, 3])


def damage(*photos: Path) -> None:
    for photo in photos:
        photo.write_bytes(photo.read_bytes()[:200])


def test_damaged_photos_are_counted_and_replaced(recipe: Path) -> None:
    damage(recipe.parent / "data" / "shapes" / "images" / "photo1.png")
    with pytest.raises(Exception, match="photo1"):
        run(recipe)
    run(recipe, "--in_memory", "false", "--iterations", "12", "--workers", "1")
    skipped = [row["skipped"] for row in rows(recipe.parent / "run")]
    assert 1 <= skipped[-1] <= 24
    assert skipped == sorted(skipped)


def test_a_set_of_damaged_photos_stops_the_run(recipe: Path) -> None:
    words = ["--in_memory", "false", "--hard_negatives", "0.0", "--iterations", "1"]
    run(recipe, *words)
    damage(*(recipe.parent / "data" / "shapes" / "images").iterdir())
    with pytest.raises(DataError, match="no photo shows an object"):
        run(recipe, *words)


def test_a_batch_that_processes_cannot_share_is_an_error(recipe: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size 2 cannot be shared by 3 processes"):
        run(recipe, devices=3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_accelerator_that_is_not_there_is_an_error(recipe: Path) -> None:
    with pytest.raises(ConfigError, match="cannot train on 1 x cuda"):
        run(recipe, accelerator="cuda")
