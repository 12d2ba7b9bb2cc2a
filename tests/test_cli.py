"""The command line as a user meets it: what it prints, writes and returns."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dpseg import __version__
from dpseg.cli import run
from dpseg.config import ModelConfig
from dpseg.model.dpseg import DPSeg

CONFIG = ModelConfig(encoder="tiny", image_size=64, keep_aspect=True, templates=1, logit_scale=10.0, tune_encoder=False)
RED, BLUE = (220, 30, 20), (20, 40, 220)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    DPSeg(CONFIG).save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in a folder with two colour samples and a photo of both."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPSEG_CACHE", str(tmp_path / "cache"))
    Image.new("RGB", (32, 32), RED).save("red.png")
    Image.new("RGB", (32, 32), BLUE).save("blue.png")
    photo = Image.new("RGB", (128, 64), RED)
    photo.paste(BLUE, (64, 0, 128, 64))
    Path("photos").mkdir()
    photo.save("photos/both.png")


COLOURS = ("--ref", "red=red.png", "--ref", "blue=blue.png")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 2) -> str:
    """Runs a command that fails and returns the one line that it prints."""
    assert run(arguments) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("dpseg: ")
    return captured.err


def test_predict_prints_and_writes_what_it_found(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", "photos/both.png", *COLOURS, "--model", model, "--out", "results"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    assert lines[0] == "photos/both.png  128 x 64"
    assert re.fullmatch(r"  (red|blue) +5\d\.\d%  confidence [01]\.\d\d", lines[1])
    assert lines[-1].endswith("png, json, overlay in results")
    assert {path.name for path in Path("results").iterdir()} == {
        "both_labels.png",
        "both_result.json",
        "both_overlay.png",
    }
    labels = np.asarray(Image.open("results/both_labels.png"))
    assert labels[32, 5] == 0
    assert labels[32, 120] == 1
    assert json.loads(Path("results/both_result.json").read_text())["names"] == ["red", "blue"]


def test_predict_takes_every_option(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("things.txt").write_text("# mine\ncat, kitty\nRed\n")
    arguments = ["predict", "photos", "red.png", "*.png", "--text", "red, crimson", "-t", "blue", "-v", "things.txt"]
    arguments += ["--ref", "crimson=red.png:0,0,16,16", "-m", model, "-o", "a/b", "-f", "png, npz,coco", "--no-refine"]
    arguments += ["--no-bank", "--background", "auto", "--device", "cpu", "--batch-size", "2", "--size", "96"]
    assert run(arguments) == 0
    out = capsys.readouterr().out
    assert "[3/3] red.png" in out
    assert {path.suffix for path in Path("a/b").iterdir()} == {".png", ".npz", ".json"}
    assert np.load("a/b/both_scores.npz")["names"].tolist() == ["red", "blue", "cat"]


def test_unreadable_photos_are_skipped_and_listed(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos/bad.png").write_bytes(Path("photos/both.png").read_bytes()[:80])
    assert run(["predict", "photos", *COLOURS, "-m", model, "-o", "results"]) == 1
    captured = capsys.readouterr()
    assert "[1/2] skipped: photos/bad.png" in captured.err
    assert "1 of 2 photos could not be read:\n  photos/bad.png" in captured.err
    assert "[2/2] photos/both.png  128 x 64" in captured.out
    assert Path("results/both_labels.png").is_file()


def test_a_single_unreadable_photo_is_told_once(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.png").write_bytes(Path("photos/both.png").read_bytes()[:80])
    assert run(["predict", "bad.png", *COLOURS, "-m", model, "-o", "results"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("skipped: bad.png")


def test_photos_of_one_name_do_not_overwrite_each_other(model: str) -> None:
    Path("more").mkdir()
    Image.new("RGB", (64, 64), RED).save("more/both.png")
    assert run(["predict", "photos", "more", *COLOURS, "-m", model, "-o", "results", "-f", "png"]) == 0
    files = {str(path.relative_to("results")) for path in Path("results").rglob("*.png")}
    assert files == {"more/both_labels.png", "photos/both_labels.png"}


def test_a_second_run_does_not_take_results_for_photos(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert run(["predict", "photos", *COLOURS, "-m", model, "-o", "photos/results"]) == 0
    assert "1 photo in" in capsys.readouterr().out


def test_prompts_are_kept_and_used_again(model: str) -> None:
    common = ["predict", "photos", "-m", model, "-f", "npz"]
    assert run([*common, *COLOURS, "-o", "one", "--save-prompts", "kept/colours.safetensors"]) == 0
    assert run([*common, "--prompts", "kept/colours.safetensors", "-o", "two"]) == 0
    first, second = (np.load(f"{folder}/both_scores.npz")["logits"] for folder in ("one", "two"))
    assert np.array_equal(first, second)


def test_background_is_none(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", "photos", *COLOURS, "-m", model, "-o", "results", "--background", "1"]) == 0
    assert "none  100.0%" in capsys.readouterr().out
    assert (np.asarray(Image.open("results/both_labels.png")) == 255).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no classes given"),
        (["--text", " , "], "has no name"),
        (["--text", "cat", "--ref", "mug=red.png"], "not listed, 'mug'"),
        (["--ref", "red.png"], "is not NAME=PICTURE"),
        (["--ref", "mug=nowhere.png"], "nowhere.png: no such file"),
        (["--text", "cat", "--format", "jpg"], "format 'jpg' is unknown; did you mean 'png'?"),
        (["--text", "cat", "--background", "high"], "'high' is no threshold"),
        (["--text", "cat", "--size", "3"], "size 3 is out of range"),
        (["--text", "cat", "--batch-size", "0"], "batch size 0"),
        (["--text", "cat", "--batch-size", "many"], "--batch-size"),
        (["--text", "cat", "--device", "gpu"], "device 'gpu' cannot be used"),
        (["--vocabulary", "ade15"], "did you mean 'ade150'"),
        (["--text", "cat", "--prompts", "kept.safetensors"], "--prompts already holds the classes"),
        (["--prompts", "kept.safetensors"], "kept.safetensors: no such file"),
        (["--text", "cat", "--out", "red.png"], "red.png: cannot be written"),
        (["--text", "cat", "--save-prompts", "red.png/x"], "red.png: cannot be written"),
        (["--txt", "cat"], "No such option: --txt"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    model: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in refused(capsys, "predict", "photos", "--model", model, *arguments)
    assert not list(Path().rglob("*_labels.png"))


def test_other_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert "dpseg-lite" in refused(capsys, "predict", "photos", "-t", "cat", "--model", "dpseg-lit")
    assert "nowhere: no such file" in refused(capsys, "predict", "nowhere", "-t", "cat")
    assert "Missing argument" in refused(capsys, "predict")
    assert "No such command 'predikt'" in refused(capsys, "predikt")


def test_an_output_that_cannot_be_written_is_noticed_before_the_model_is_loaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    message = refused(capsys, "predict", "photos", "-t", "cat", "--model", "no-such-model", "--out", "red.png")
    assert "red.png: cannot be written" in message


def test_our_mistakes_are_one_line_and_status_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr("dpseg.commands.predict.find_images", fail)
    message = refused(capsys, "predict", "photos", "-t", "cat", status=1)
    assert message == "dpseg: RuntimeError: first line second line; run with --debug to see where\n"
    assert run(["predict", "photos", "-t", "cat", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_debug_shows_where_a_users_mistake_was_noticed_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--debug", "predict", "nowhere", "-t", "cat"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_is_status_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dpseg.commands.predict.find_images", interrupt)
    assert refused(capsys, "predict", "photos", "-t", "cat", status=130) == "dpseg: stopped\n"


def test_info_names_versions_models_and_the_cache(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["info"]) == 0
    out = capsys.readouterr().out
    for part in (__version__, torch.__version__, "dpseg-lite", "dpseg-large", "ade150", str(tmp_path / "cache")):
        assert part in out


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"dpseg {__version__}\n"
    assert run([]) == 0
    assert "predict" in capsys.readouterr().out


def test_help_is_quick_and_loads_no_torch() -> None:
    code = (
        "import sys, dpseg.cli; status = dpseg.cli.run(['--help']); print('torch' in sys.modules, 'PIL' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
        assert done.stdout.splitlines()[-1] == "False False"
    assert min(seconds) < 0.8  # 0.2 s on an idle core


def write_set(root: Path) -> Path:
    """A data set whose photos are red and blue halves, and whose truth says so."""
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for stem in ("a", "b", "c"):
        Image.open("photos/both.png").save(root / "images" / f"{stem}.png")
        mask = np.full((64, 128), 1, np.uint8)
        mask[:, 64:] = 2
        mask[:8] = 0
        Image.fromarray(mask).save(root / "masks" / f"{stem}.png")
    (root / "classes.txt").write_text("background\nred\nblue\n")
    (root / "train.txt").write_text("a\n")
    (root / "val.txt").write_text("b\nc\n")
    return root


def test_evaluate_prints_a_table_and_writes_a_report(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(write_set(Path("set")))
    assert run(["evaluate", data, "-m", model, "--prompts", "pictures,text", "--out", "report/set.json"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("set val: 2 photos, 3 classes")
    rows = [line for line in out.splitlines() if line.startswith("| ")]
    assert rows[0].startswith("| prompts | inference | mIoU |")
    assert [row.split(" | ")[:2] for row in rows[1:]] == [
        ["| text", "I"],
        ["| text", "II"],
        ["| pictures", "I"],
        ["| pictures", "II"],
    ]
    assert float(rows[3].split(" | ")[2]) > 90
    report = json.loads(Path("report/set.json").read_text())
    assert report["photos"] == 2
    assert report["rows"][2]["miou"] > 0.9
    assert report["rows"][2]["ignored"] == ["background"]


def test_evaluate_measures_a_bank_of_ones_own(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(write_set(Path("set")))
    add = ["prompts", "bank", "add", "bank", "--model", model]
    assert run([*add, "--ref", "red=red.png", "--ref", "blue=blue.png"]) == 0
    measured = ["evaluate", data, "-m", model, "--prompts", "text,bank", "--bank", "bank", "--refine", "off", "--out"]
    assert run([*measured, "out"]) == 0
    assert run([*measured, "out.json"]) == 0
    report = json.loads(Path("out.json").read_text())
    text, bank = (row["miou"] for row in report["rows"])
    assert bank > 0.9 > text
    assert run([*measured, "shared", "--processes", "2"]) == 0
    shared = json.loads(Path("shared/report.json").read_text())
    assert shared["sets"][0]["rows"] == json.loads(Path("out/report.json").read_text())["sets"][0]["rows"]
    assert run([*measured, "untrained.json", "--untrained"]) == 0
    assert json.loads(Path("untrained.json").read_text())["rows"][1]["miou"] > 0.9
    assert run([*add, "--ref", "red=blue.png"]) == 0
    capsys.readouterr()
    assert "bank asked first" in refused(capsys, *measured, "out")
    assert "add it: --prompts bank,both" in refused(capsys, "evaluate", data, "-m", model, "--bank", "bank")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompts", "picture"], "did you mean 'pictures'"),
        (["--prompts", "bank"], "the model has no bank"),
        (["--prompts", "text", "--limit", "0"], "limit 0"),
        (["--refine", "maybe"], "refine 'maybe' is unknown"),
        (["--split", "vall"], "did you mean 'val'"),
        (["--split", "all"], "no photos for reference pictures"),
        (["--names", "coco80"], "80 names for 3 classes"),
        (["--out", "red.png/report.json"], "red.png: cannot be written"),
    ],
)
def test_evaluate_refuses(model: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    data = str(write_set(Path("set")))
    assert message in refused(capsys, "evaluate", data, "-m", model, *arguments)
