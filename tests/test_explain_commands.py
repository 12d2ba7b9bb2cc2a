"""`dpseg explain cost` and `gap`, `dpseg prompts explain` and `show`: what they print, write and refuse."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dpseg.cli import run
from dpseg.data.folder import FolderDataset
from dpseg.explain.cost import explain_photo
from dpseg.explain.gap import GapConfig, measure_gap, plan_gap
from dpseg.explain.origins import find_origins
from dpseg.explain.pixel import explain_pixels
from dpseg.prompts.bank import Bank
from dpseg.prompts.visual import Reference
from dpseg.segmenter import Segmenter
from support.explaining import quarter
from support.labelled_set import NAMES, write_set
from support.pictures import GREEN, plain
from support.tiny import tiny_model

Show = Callable[..., str]

CLASSES = "-t red -t blue -t grey -r red=red.png -r red=green.png -r blue=blue.png"
TEXT = ["red", "blue", "grey"]
REFERENCES = {"red": [Reference("red.png"), Reference("green.png")], "blue": [Reference("blue.png")]}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model whose decoder has a say, and eight labelled photos, of which four are the split."""
    folder = tmp_path_factory.mktemp("saved")
    tiny_model(templates=3, image_size=128, trained=True).save_pretrained(folder / "tiny")
    write_set(folder / "shapes", photos=8, side=128, splits={"val": range(4)})
    return folder


@pytest.fixture
def show(saved: Path, workplace: Path, capsys: pytest.CaptureFixture[str]) -> Show:
    """`show("explain cost", ...)` runs a command with the model, and returns what it printed."""
    for name in ("tiny", "shapes"):
        Path(name).symlink_to(saved / name)
    quarter().save("both.png")
    plain(GREEN).save("green.png")

    def shown(line: str, progress: bool = False) -> str:
        capsys.readouterr()
        assert run([*shlex.split(line), "--model", "tiny"]) == 0
        captured = capsys.readouterr()
        assert progress or captured.err == ""
        return captured.out

    return shown


@pytest.fixture
def segmenter(show: Show) -> Segmenter:
    return Segmenter.from_pretrained("tiny")


def test_cost_writes_two_pictures_and_the_arrays(show: Show, segmenter: Segmenter) -> None:
    printed = show(f"explain cost both.png {CLASSES} --out a/b --classes 2")
    found = explain_photo(segmenter, quarter(), segmenter.prompts(TEXT, REFERENCES), 2)
    files = ["cost.png", "cost_inference.png", "cost.npz"]
    assert printed.splitlines() == [f"both.png: {', '.join(found.names)}", f"a/b: {', '.join(files)}"]
    assert {path.name for path in Path("a/b").iterdir()} == {*files}
    archive = np.load("a/b/cost.npz")
    for name, values in found.maps.items():
        assert np.allclose(archive[name], values, atol=1e-5, equal_nan=True)
    for name in files[:2]:
        with Image.open(f"a/b/{name}") as picture:
            assert picture.width > picture.height > 100


def test_saved_prompts_and_vocabularies_work_as_in_predict(show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpseg.explain.figures.png_of", lambda figure: b"")  # only the arrays count here
    Path("mine.txt").write_text("red\nblue\n")
    asked = "-v mine.txt --ref red=red.png"
    show(f"predict both.png {asked} --save-prompts kept.safetensors -f npz -o p")
    show(f"explain cost both.png {asked} -o one --size 96")
    show("explain cost both.png --prompts kept.safetensors -o two --size 96")
    first, second = np.load("one/cost.npz"), np.load("two/cost.npz")
    assert sorted(first) == sorted(second)
    assert all(np.array_equal(first[key], second[key], equal_nan=first[key].dtype.kind == "f") for key in sorted(first))
    assert first["stage2"].shape[1:] == (24, 48)  # 96 pixels at stride 4


def test_gap_prints_the_table_and_writes_both_files(show: Show, segmenter: Segmenter) -> None:
    asked = "explain gap shapes --out out/gap --references 2 --per-class 3 --seed 5 --device cpu"
    printed = show(asked, progress=True)
    config, out = GapConfig(references=2, per_class=3, seed=5), Path("out/gap")
    plan = plan_gap(segmenter, FolderDataset("shapes", "val"), FolderDataset("shapes"), config)
    expected = measure_gap(segmenter, plan)
    assert expected.to_markdown() in printed
    assert printed.startswith(f"shapes val: 3 classes, {len(expected.regions)} regions of {expected.photos} photos")
    written = json.loads((out / "gap.json").read_text())
    assert written["gap"] == {"references": 2, "seed": 5, "classes": None, "per_class": 3}
    assert written["mean"]["dual"]["own"] == pytest.approx(expected.distances("dual").own.mean(), abs=1e-6)
    assert set(written["classes"]) == set(NAMES[1:])
    assert sum(entry["regions"] for entry in written["classes"].values()) == written["regions"]
    with Image.open(out / "gap.png") as picture:
        assert picture.width > 900
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 50


def test_explain_says_of_pixels_what_the_library_says(show: Show, segmenter: Segmenter) -> None:
    asked = f"prompts explain both.png {CLASSES} --at 3,5 --at '100, 40'"
    content = json.loads(show(f"{asked} --no-refine --json --out a/b.png"))
    prompts = segmenter.prompts(TEXT, REFERENCES)
    origins = find_origins(segmenter, prompts, TEXT, REFERENCES)
    expected = explain_pixels(segmenter, "both.png", [(3, 5), (100, 40)], prompts, origins, refine=False)[1]
    for mine, theirs in zip(content["pixels"], expected, strict=True):
        assert mine["at"] == list(theirs.point)
        assert mine["margin"] == pytest.approx(theirs.margin, abs=1e-4)
        assert [one["name"] for one in mine["classes"]] == [one.name for one in theirs.candidates]
    assert Path("a/b.png").read_bytes().startswith(b"\x89PNG")
    best = expected[0].candidates[0]
    lines = show(f"{asked} --no-refine --classes 2").splitlines()
    assert lines[0] == f"both.png, pixel 3,5: {expected[0].summary}"
    columns = "class logit cosine decoder words pictures both stage4 stage3 stage2"
    assert lines[1].split() == columns.split()
    assert lines[2].split()[:2] == [best.name, f"{best.logit:.1f}"]
    assert "before" in show(f"{asked} --refine").splitlines()[1].split()


def test_show_takes_classes_sets_and_banks_and_explain_names_what_a_bank_gave(show: Show) -> None:
    def classes(line: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(show(f"prompts show {line} --json"))["classes"]
        return found

    references = "--ref red=red.png --ref red=green.png --ref blue=blue.png"
    given = classes(f"{references} --out page.html")
    assert Path("page.html").read_bytes().startswith(b"<!doctype html>")
    show(f"predict red.png {references} --save-prompts kept.safetensors -f npz")
    show(f"prompts bank add shop {references}", progress=True)
    for mine, theirs in zip(given, classes("kept.safetensors"), strict=True):
        assert mine["nearest"] == theirs["nearest"]
        assert (len(mine["pictures"]) > 0, theirs["pictures"]) == (True, [])
    lines = show("prompts show shop --out sheet.png").splitlines()
    assert lines[0].split()[:3] == ["class", "prompts", "pictures"]
    assert [line.split()[:4] for line in lines[1:3]] == [["red", "text,", "bank", "2"], ["blue", "text,", "bank", "1"]]
    assert Path("sheet.png").read_bytes().startswith(b"\x89PNG")
    (word,) = classes("-t red --bank shop")
    assert word["bank"] == [{"name": "red", "share": pytest.approx(1), "source": "bank"}]
    said = show("prompts explain both.png -t red -t grey --bank shop --at 3,5")
    assert "pictures of the bank's red 100%" in said
    (stored,) = classes("shop --limit 1")
    assert stored["name"] == "red"
    assert stored["agreement"] == pytest.approx(word["agreement"], abs=1e-4)
    assert [one["source"] for one in stored["pictures"]] == ["red.png", "green.png"]
    assert stored["pictures"][0]["to_others"] == pytest.approx(given[0]["pictures"][0]["to_others"], abs=1e-2)


def test_show_has_averages_only_of_a_bank_in_a_file(
    show: Show, segmenter: Segmenter, refused: Callable[..., str]
) -> None:
    encoder = segmenter.model.encoder
    text, dense, s2, s3, s4 = (torch.rand(3, size) for size in (20, encoder.embed_dim, *encoder.stage_dims))
    Bank(("cat", "Cat", "dog"), text, dense, (s2, s3, s4), encoder.fingerprint).save("bank.safetensors")
    lines = show("prompts show bank.safetensors").splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["cat", "dog"]
    assert "note: odd pictures cannot be told of 2 classes" in lines[-1]
    asked = ["prompts", "show", "bank.safetensors", "--model", "tiny", "--limit", "0"]
    assert "limit 0 is out of range; give 1 or more" in refused(*asked)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("explain cost both.png -o out", "no classes given"),
        ("explain cost both.png -o out -t cat --prompts kept.safetensors", "--prompts already holds the classes"),
        ("explain cost nowhere.png -o out -t cat", "nowhere.png: no such file"),
        ("explain cost both.png -o out -t cat --classes 0", "classes 0"),
        ("explain cost both.png -o out -t cat --size 3", "size 3"),
        ("explain cost both.png -t cat --out red.png", "red.png: cannot be written"),
        ("explain gap shapes -o out --split all", "no photos outside the split"),
        ("explain gap shapes -o out --split vall", "vall"),
        ("explain gap shapes -o out --classes 1", "classes 1"),
        ("explain gap shapes -o out --references 0", "references 0"),
        ("explain gap shapes -o out --per-class 0", "per-class 0"),
        ("prompts explain both.png -t red --at 3", "--at '3' is no pixel"),
        ("prompts explain both.png -t red --at 128,0", "pixel 128,0 is outside the photo; give x from 0 to 127"),
        ("prompts explain both.png -t red --at 0,0 --classes 0", "classes 0"),
        ("prompts explain both.png -t red --at 0,0 --out a.jpg", "a.jpg: the figure is a PNG file"),
        ("prompts explain both.png -t red --at 0,0 --prompts x", "--prompts already holds the classes"),
        ("prompts show", "nothing to show"),
        ("prompts show nowhere", "nowhere: no such file or folder"),
        ("prompts show red.png", "red.png: cannot be read"),
        ("prompts show red.png -t cat", "red.png already holds classes"),
        ("prompts show -t cat --out page.pdf", "page.pdf: what it shall be is unknown"),
        ("prompts show -t cat --ref dog=red.png", "a class that is not listed, 'dog'"),
    ],
)
@pytest.mark.usefixtures("show")
def test_mistakes_are_one_line_and_nothing_is_written(refused: Callable[..., str], line: str, message: str) -> None:
    def results() -> set[Path]:
        return {path for path in Path().rglob("*") if path.suffix in (".png", ".npz", ".json", ".jpg", ".pdf")}

    before = results()
    assert message in refused(*line.split(), "--model", "tiny")
    assert results() == before
