"""`dpseg prompts generate` with a tiny Stable Diffusion on disk: what it paints, resumes and refuses."""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpseg.cli import run
from dpseg.generation.manifest import Manifest
from support import forked
from support.tiny_painter import SIDE, files, generate, pixels, rows, write_painter

pytestmark = pytest.mark.skipif(find_spec("diffusers") is None, reason="needs the extra: pip install 'dpseg[generate]'")

CARD = "---\nlicense: other\nlicense_name: tiny-license\n---\n# Paints noise\n"


@pytest.fixture(scope="module")
def painter(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("painters") / "tiny-sd"
    write_painter(folder)
    (folder / "README.md").write_text(CARD)
    return str(folder)


@pytest.fixture
def command(painter: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command without classes for two pictures each, run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPSEG_CACHE", "off")
    return generate(painter, model)


def test_pictures_are_those_that_diffusers_paints(command: list[str], painter: str) -> None:
    from diffusers import StableDiffusionPipeline

    command += ["-t", "cat", "-t", "sofa, couch", "--negative", "blurry", "--guidance", "5"]
    assert run([*command, "--per-class", "3", "--templates", "2"]) == 0
    found = rows()
    assert [row["sentence"] for row in found] == [
        "a photo of a cat.",
        "a photo of the cat.",
        "a photo of a cat.",
        "a photo of a sofa.",
        "a photo of the couch.",
        "a photo of a couch.",  # a class's names take turns, with each template
    ]
    names = [f"{row['class']}/{row['template']:02d}-{row['seed']}.png" for row in found]
    assert [row["file"] for row in found] == names
    assert set(files()) == set(names)
    pipeline = StableDiffusionPipeline.from_pretrained(painter)
    pipeline.set_progress_bar_config(disable=True)
    for row in found:
        expected = pipeline(
            row["sentence"],
            negative_prompt="blurry",
            guidance_scale=5.0,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(row["seed"]),
        ).images[0]
        assert np.array_equal(pixels(Path("out", row["file"])), np.asarray(expected))
        assert hashlib.sha256(Path("out", row["file"]).read_bytes()).hexdigest() == row["sha256"]
    common = {"negative": "blurry", "steps": 2, "guidance": 5.0, "width": SIDE, "height": SIDE, "state": "kept"}
    common |= {"license": "tiny-license", "generator": painter, "dtype": "float32", "safety_checker": False}
    assert all(row | common == row for row in found)
    assert found[4]["synonyms"] == ["sofa", "couch"]


def test_a_picture_depends_neither_on_the_batch_nor_on_the_order(command: list[str]) -> None:
    assert run([*command, "-t", "cat", "-t", "sofa", "--batch-size", "1"]) == 0
    assert run([*command, "-t", "dog", "-t", "sofa", "-t", "cat", "--batch-size", "5", "--out", "other"]) == 0
    one, other = files(), files("other")
    assert len(one) == 4
    assert {name for name in other if not name.startswith("dog")} == set(one)
    (dog, *_) = (name for name in other if name.startswith("dog"))
    for name in one:
        mine = pixels(Path("out", name))
        assert np.abs(mine - pixels(Path("other", name))).max() <= 1  # a batch rounds its sums otherwise
        assert np.abs(mine - pixels(Path("other", dog))).mean() > 5


def paint_until(command: list[str], lines: int) -> None:
    """Is killed when the manifest has so many lines and the next picture is written, but not its line."""
    add = Manifest.add

    def add_or_die(self: Manifest, *arguments: Any) -> None:
        if len(self.entries) == lines:
            forked.kill_me()
        add(self, *arguments)

    Manifest.add = add_or_die  # type: ignore[method-assign]
    run(command)


def kill(command: list[str]) -> None:
    """Starts the command as users do, and kills it when its manifest has five lines or more."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    child = subprocess.Popen([sys.executable, "-m", "dpseg", *command], env=environment, stdout=subprocess.DEVNULL)
    manifest = Path("out/manifest.jsonl")
    while child.poll() is None and (not manifest.exists() or manifest.read_bytes().count(b"\n") < 5):
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL


@pytest.mark.parametrize("count", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_loses_the_batch_in_work_alone(
    command: list[str], capsys: pytest.CaptureFixture[str], count: int
) -> None:
    command += ["-t", "cat", "-t", "sofa", "--per-class", str(count // 2), "--templates", str(count // 2)]
    if count == 6:
        assert forked.killed(paint_until, command, 5)
    else:
        kill(command)
    manifest = Path("out/manifest.jsonl")
    before = manifest.read_bytes()
    done = before.count(b"\n")
    assert 5 <= done < count
    assert done <= len(files()) <= done + 1
    with manifest.open("ab") as file:
        file.write(before[:30])  # what a kill in the middle of a line would leave
    assert run(command) == 0
    assert f"painted {count - done} picture" in capsys.readouterr().out
    assert run([*command, "--out", "whole"]) == 0
    assert rows() == rows("whole")
    assert files() == files("whole")


def test_a_second_run_paints_only_what_is_missing(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command += ["-t", "cat", "-t", "sofa"]
    assert run(command) == 0
    first = files()
    assert run(command) == 0
    assert "nothing is missing" in capsys.readouterr().out
    Path("out", min(first)).unlink()
    assert run([*command, "--per-class", "3", "-t", "dog"]) == 0
    assert "painted 6 pictures" in capsys.readouterr().out  # one again, two more, three of the new class
    second = files()
    assert len(second) == 9
    assert second | first == second


@pytest.fixture(scope="module")
def painted(painter: str, model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a picture in out, and in other a pipeline whose weights differ in one bit."""
    folder = tmp_path_factory.mktemp("painted")
    shutil.copytree(painter, folder / "other")
    weights = folder / "other/unet/diffusion_pytorch_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert run(generate(painter, model, "--out", str(folder / "out"), "--text", "cat", "--per-class", "1")) == 0
    return folder


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--steps", "3"], "--steps 2, this run has --steps 3"),
        (["--guidance", "3"], "--guidance 7.5, this run has --guidance 3.0"),
        (["--seed", "1"], "--seed 0, this run has --seed 1"),
        (["--negative", "dog"], "no --negative, this run has --negative dog"),
        (["--size", "64"], "no --size, this run has --size 64"),
        (["--dtype", "bf16"], "--dtype float32, this run has --dtype bfloat16"),
        (["--min-agreement", "0"], "no --min-agreement, this run has --min-agreement 0.0"),
        (["--keep-all"], "no --keep-all, this run has --keep-all"),
        (["--text", "cat, kitty"], "holds pictures of 'cat', this run has 'cat, kitty'"),
        (["--generator", "other"], "painted with a --generator whose files are"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(
    command: list[str],
    painted: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
    changed: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(painted)
    before = rows(), files()
    assert len(before[0]) == len(before[1]) == 1
    classes = [] if "--text" in changed else ["--text", "cat"]
    assert message in refused(*command, *classes, *changed)
    assert (rows(), files()) == before


@pytest.fixture(scope="module")
def strange(painter: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what is no pipeline that paints from words."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    folder = tmp_path_factory.mktemp("strange")
    (folder / "file").touch()
    (folder / "empty").mkdir()
    shutil.copytree(painter, folder / "broken")
    (folder / "broken/unet/diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    DDPMPipeline(UNet2DModel(8, **blocks, norm_num_groups=2), DDPMScheduler()).save_pretrained(folder / "ddpm")
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "no classes given"),
        ("-t cat --templates 81", "there are 1 to 80"),
        ("-t cat --per-class 0", "per-class 0 is out of range"),
        ("-t cat --retries -1", "retries -1 is out of range"),
        ("-t cat --min-agreement 2", "min-agreement 2.0 is out of range"),
        ("-t cat --dtype bf", "did you mean 'bf16'?"),
        ("-t cat --size 30", "have to be divisible by 8"),
        ("-t cat --generator nowhere", "no folder is called 'nowhere'"),
        ("-t cat --generator STRANGE/file", "file: is a file; give the folder"),
        ("-t cat --generator STRANGE/empty", "empty: is no diffusers pipeline, it holds no model_index.json"),
        ("-t cat --generator STRANGE/broken", "broken: cannot be loaded as a diffusers pipeline"),
        ("-t cat --generator STRANGE/ddpm", "a DDPMPipeline takes no prompt"),
        ("-t cat --out STRANGE/file", "file: cannot be written"),
    ],
)
def test_mistakes_are_one_line(
    command: list[str], strange: Path, refused: Callable[..., str], arguments: str, message: str
) -> None:
    assert message in refused(*command, *arguments.replace("STRANGE", str(strange)).split())
    assert not files(".")


def test_a_missing_extra_is_named(
    command: list[str], refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert "run: pip install 'dpseg[generate]'" in refused(*command, "-t", "cat")


def test_the_hub_and_its_cache(
    command: list[str], painter: str, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commit, repository = "0123456789abcdef" * 2 + "01234567", tmp_path / "hub" / "models--me--tiny"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(repository.parent))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    command += ["-t", "cat", "--generator", "me/tiny"]
    message = refused(*command)
    assert "me/tiny: cannot be fetched from the Hugging Face hub (OfflineModeIsEnabled" in message
    assert "copy its files, model_index.json and the folders that it names, into a folder" in message
    shutil.copytree(painter, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    assert run(command) == 0
    assert {(row["generator"], row["commit"], row["license"]) for row in rows()} == {
        ("me/tiny", commit, "tiny-license")
    }


def test_too_little_memory_is_told_with_what_helps(
    command: list[str], refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import StableDiffusionPipeline

    original = StableDiffusionPipeline.__call__

    @functools.wraps(original)
    def call(self: StableDiffusionPipeline, prompt: list[str], **options: object) -> object:
        if len(prompt) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return original(self, prompt, **options)

    monkeypatch.setattr(StableDiffusionPipeline, "__call__", call)
    assert "2 at a time; give a smaller --batch-size" in refused(*command, "-t", "cat", "--batch-size", "2")
    assert run([*command, "-t", "cat", "--batch-size", "1"]) == 0


def test_a_full_disk_keeps_what_is_painted(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def sync(file: int) -> None:
        calls.append(file)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    command += ["-t", "cat", "--per-class", "4"]
    with monkeypatch.context() as patch:
        patch.setattr("dpseg.generation.manifest.os.fsync", sync)
        assert run(command) == 2
        assert "manifest.jsonl: the disk is full" in capsys.readouterr().err
    assert len(rows()) == 3
    assert run(command) == 0
    assert "painted 1 picture in" in capsys.readouterr().out
