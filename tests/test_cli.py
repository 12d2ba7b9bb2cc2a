"""The command line as a user meets it: what `predict`, `evaluate`, `info` and `--help` print, write and return."""

from __future__ import annotations

import json
import multiprocessing
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dpseg import __version__
from dpseg.cli import run
from support.commands import python
from support.labelled_set import write_labelled
from support.pictures import COLOUR_REFERENCES as COLOURS
from support.pictures import RED, halves, plain, write_damaged

pytestmark = pytest.mark.usefixtures("workplace")

Refused = Callable[..., str]


def test_predict_prints_and_writes_what_it_found(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", "photos/both.png", *COLOURS, "--model", model, "--out", "results"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    assert lines[0] == "photos/both.png  128 x 64"
    assert re.fullmatch(r"  (red|blue) +5\d\.\d%  confidence [01]\.\d\d", lines[1])
    assert lines[-1].endswith("png, json, overlay in results")
    names = {path.name for path in Path("results").iterdir()}
    assert names == {"both_labels.png", "both_result.json", "both_overlay.png"}
    labels = np.asarray(Image.open("results/both_labels.png"))
    assert (labels[32, 5], labels[32, 120]) == (0, 1)
    assert json.loads(Path("results/both_result.json").read_text())["names"] == ["red", "blue"]


def test_predict_takes_every_option(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("things.txt").write_text("# mine\ncat, kitty\nRed\n")
    arguments = ["predict", "photos", "red.png", "*.png", "--text", "red, crimson", "-t", "blue", "-v", "things.txt"]
    arguments += ["--ref", "crimson=red.png:0,0,16,16", "-m", model, "-o", "a/b", "-f", "png, npz,coco", "--no-refine"]
    arguments += ["--no-bank", "--background", "auto", "--device", "cpu", "--batch-size", "2", "--size", "96"]
    assert run(arguments) == 0
    assert "[3/3] red.png" in capsys.readouterr().out
    assert {path.suffix for path in Path("a/b").iterdir()} == {".png", ".npz", ".json"}
    assert np.load("a/b/both_scores.npz")["names"].tolist() == ["red", "blue", "cat"]


def test_photos_that_cannot_be_read_are_listed_and_the_others_go_on(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_damaged(Path("photos/bad.png"))
    assert run(["predict", "photos", *COLOURS, "-m", model, "-o", "results"]) == 1
    captured = capsys.readouterr()
    assert "[1/2] skipped: photos/bad.png" in captured.err
    assert "1 of 2 photos could not be read:\n  photos/bad.png" in captured.err
    assert "[2/2] photos/both.png  128 x 64" in captured.out
    assert Path("results/both_labels.png").is_file()
    assert run(["predict", "photos/bad.png", *COLOURS, "-m", model, "-o", "results"]) == 1
    (line,) = capsys.readouterr().err.splitlines()  # of a single photo it is said once
    assert line.startswith("skipped: photos/bad.png")


def test_photos_of_one_name_do_not_overwrite_each_other_and_results_are_no_photos(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("more").mkdir()
    plain(RED, 64).save("more/both.png")
    for _ in range(2):
        assert run(["predict", "photos", "more", *COLOURS, "-m", model, "-o", "photos/results", "-f", "png"]) == 0
        files = {str(path.relative_to("photos/results")) for path in Path("photos/results").rglob("*.png")}
        assert files == {"more/both_labels.png", "photos/both_labels.png"}
    assert capsys.readouterr().out.count("2 photos in") == 2


def test_prompts_are_kept_and_used_again_and_background_is_none(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["predict", "photos", "-m", model, "-f", "npz,png"]
    assert run([*common, *COLOURS, "-o", "one", "--save-prompts", "kept/colours.safetensors"]) == 0
    assert run([*common, "--prompts", "kept/colours.safetensors", "-o", "two", "--background", "1"]) == 0
    first, second = (np.load(f"{folder}/both_scores.npz")["logits"] for folder in ("one", "two"))
    assert np.array_equal(first, second)
    assert "none  100.0%" in capsys.readouterr().out
    assert (np.asarray(Image.open("two/both_labels.png")) == 255).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "no classes given"),
        ("--text ' , '", "has no name"),
        ("--text cat --ref mug=red.png", "not listed, 'mug'"),
        ("--ref red.png", "is not NAME=PICTURE"),
        ("--ref mug=nowhere.png", "nowhere.png: no such file"),
        ("--text cat --format jpg", "format 'jpg' is unknown; did you mean 'png'?"),
        ("--text cat --background high", "'high' is no threshold"),
        ("--text cat --size 3", "size 3 is out of range"),
        ("--text cat --batch-size 0", "batch size 0"),
        ("--text cat --batch-size many", "--batch-size"),
        ("--text cat --device gpu", "device 'gpu' cannot be used"),
        ("--vocabulary ade15", "did you mean 'ade150'"),
        ("--text cat --prompts kept.safetensors", "--prompts already holds the classes"),
        ("--prompts kept.safetensors", "kept.safetensors: no such file"),
        ("--text cat --out red.png", "red.png: cannot be written"),
        ("--text cat --model no-such-model --out red.png", "red.png: cannot be written"),  # before the model is loaded
        ("--text cat --save-prompts red.png/x", "red.png: cannot be written"),
        ("--txt cat", "No such option: --txt"),
    ],
)
def test_mistakes_are_one_line_and_status_2(model: str, refused: Refused, arguments: str, message: str) -> None:
    assert message in refused("predict", "photos", "--model", model, *shlex.split(arguments))
    assert not list(Path().rglob("*_labels.png"))


def test_mistakes_in_what_is_asked_for_are_one_line_too(refused: Refused, capsys: pytest.CaptureFixture[str]) -> None:
    assert "dpseg-lite" in refused("predict", "photos", "-t", "cat", "--model", "dpseg-lit")
    assert "nowhere: no such file" in refused("predict", "nowhere", "-t", "cat")
    assert "Missing argument" in refused("predict")
    assert "No such command 'predikt'" in refused("predikt")
    assert run(["--debug", "predict", "nowhere", "-t", "cat"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_our_mistakes_are_status_1_and_an_interrupt_is_130(
    refused: Refused, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(error: BaseException) -> Callable[..., None]:
        def find_images(*arguments: object) -> None:
            raise error

        return find_images

    asked = ["predict", "photos", "-t", "cat"]
    monkeypatch.setattr("dpseg.commands.predict.find_images", fail(RuntimeError("first line\nsecond line")))
    message = refused(*asked, status=1)
    assert message == "dpseg: RuntimeError: first line second line; run with --debug to see where\n"
    assert run([*asked, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setattr("dpseg.commands.predict.find_images", fail(KeyboardInterrupt()))
    assert refused(*asked, status=130) == "dpseg: stopped\n"


def test_info_version_and_help(capsys: pytest.CaptureFixture[str], workplace: Path) -> None:
    assert run(["info"]) == 0
    out = capsys.readouterr().out
    for part in (__version__, torch.__version__, "dpseg-lite", "dpseg-large", "ade150", str(workplace / "cache")):
        assert part in out
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"dpseg {__version__}\n"
    assert run([]) == 0
    assert "predict" in capsys.readouterr().out


def test_neither_the_import_nor_the_help_loads_anything_heavy() -> None:
    code = (
        "import sys, dpseg; print([name for name in ('torch', 'numpy', 'PIL', 'scipy') if name in sys.modules]);"
        "import dpseg.cli; status = dpseg.cli.run(['--help']);"
        "print(status, [name for name in ('torch', 'PIL') if name in sys.modules])"
    )
    lines = python(code).stdout.splitlines()
    assert (lines[0], lines[-1]) == ("[]", "0 []")


@pytest.fixture
def labelled(workplace: Path) -> str:
    """A data set whose photos are red and blue halves, and whose truth says so."""
    mask = np.where(np.arange(128) < 64, 1, 2) * np.where(np.arange(64) < 8, 0, 1)[:, None]
    masks, photos = dict.fromkeys("abc", mask), dict.fromkeys("abc", np.asarray(halves()))
    splits = {"train": ["a"], "val": ["b", "c"]}
    return str(write_labelled(Path("set"), masks, ("background", "red", "blue"), splits, photos=photos))


def test_evaluate_prints_a_table_and_writes_a_report(
    model: str, labelled: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", labelled, "-m", model, "--prompts", "pictures,text", "--out", "report/set.json"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("set val: 2 photos, 3 classes")
    heading, *rows = [line.split(" | ") for line in out.splitlines() if line.startswith("| ")]
    assert heading[:3] == ["| prompts", "inference", "mIoU"]
    kinds = [["| text", "I"], ["| text", "II"], ["| pictures", "I"], ["| pictures", "II"]]
    assert [row[:2] for row in rows] == kinds
    assert float(rows[2][2]) > 90
    report = json.loads(Path("report/set.json").read_text())
    assert report["photos"] == 2
    assert report["rows"][2]["miou"] > 0.9
    assert report["rows"][2]["ignored"] == ["background"]


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_evaluate_measures_a_bank_of_ones_own_in_any_number_of_processes(
    model: str, labelled: str, refused: Refused, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torch.cuda.is_available():  # which forbids forks; they need not import everything again
        context = multiprocessing.get_context(start)
        monkeypatch.setattr(multiprocessing, "get_context", lambda method: context)
    add = ["prompts", "bank", "add", "bank", "--model", model]
    assert run([*add, *COLOURS]) == 0
    measured = [
        "evaluate",
        labelled,
        "-m",
        model,
        "--prompts",
        "text,bank",
        "--bank",
        "bank",
        "--refine",
        "off",
        "--out",
    ]
    assert run([*measured, "out.json"]) == 0
    alone = json.loads(Path("out.json").read_text())["rows"]
    assert alone[1]["miou"] > 0.9 > alone[0]["miou"]
    assert run([*measured, "untrained.json", "--untrained"]) == 0
    assert json.loads(Path("untrained.json").read_text())["rows"][1]["miou"] > 0.9
    assert run([*measured, "out", "--processes", "2"]) == 0
    assert json.loads(Path("out/report.json").read_text())["sets"][0]["rows"] == alone
    assert run([*add, "--ref", "red=blue.png"]) == 0
    assert "bank asked first" in refused(*measured, "out")
    assert "add it: --prompts bank,both" in refused("evaluate", labelled, "-m", model, "--bank", "bank")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--prompts picture", "did you mean 'pictures'"),
        ("--prompts bank", "the model has no bank"),
        ("--prompts text --limit 0", "limit 0"),
        ("--refine maybe", "refine 'maybe' is unknown"),
        ("--split vall", "did you mean 'val'"),
        ("--split all", "no photos for reference pictures"),
        ("--names coco80", "80 names for 3 classes"),
        ("--out red.png/report.json", "red.png: cannot be written"),
    ],
)
def test_evaluate_refuses(model: str, labelled: str, refused: Refused, arguments: str, message: str) -> None:
    assert message in refused("evaluate", labelled, "-m", model, *arguments.split())
