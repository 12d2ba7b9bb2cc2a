"""`dpseg prompts show`: cosines against plain NumPy, warnings of what was made wrong on purpose, pages and pictures."""

from __future__ import annotations

import io
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dpseg.cache import EmbeddingCache
from dpseg.cli import run
from dpseg.config import ModelConfig
from dpseg.explain.origins import Origins, Picture, find_origins
from dpseg.explain.page import html_page
from dpseg.explain.prompt_report import PromptReport
from dpseg.explain.prompt_warnings import is_unknown
from dpseg.explain.prompts import inspect_prompts
from dpseg.explain.sheet import png_sheet
from dpseg.model.dpseg import DPSeg
from dpseg.pretrained import model_folder
from dpseg.prompts.bank import Bank
from dpseg.prompts.visual import Reference
from dpseg.segmenter import Segmenter

CONFIG = ModelConfig(encoder="tiny", image_size=64, keep_aspect=True, templates=3, logit_scale=10.0, tune_encoder=False)
COLOURS = {"red": (220, 30, 20), "blue": (20, 40, 220), "green": (30, 200, 40)}


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(DPSeg(CONFIG), cache=EmbeddingCache(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPSEG_CACHE", str(tmp_path / "cache"))
    for name, colour in COLOURS.items():
        Image.new("RGB", (40, 32), colour).save(f"{name}.png")


@pytest.fixture
def model(segmenter: Segmenter, tmp_path: Path) -> str:
    segmenter.model.save_pretrained(tmp_path / "tiny")
    return str(tmp_path / "tiny")


def inspected(segmenter: Segmenter, text: list[str], pictures: dict[str, list[str]]) -> PromptReport:
    references = {name: [Reference(file) for file in files] for name, files in pictures.items()}
    prompts = segmenter.prompts(text or None, references or None)
    origins = find_origins(segmenter, prompts, text, references)
    return inspect_prompts(segmenter.model.encoder, prompts, origins)


def unit(rows: torch.Tensor) -> np.ndarray:
    values = rows.numpy().astype(np.float64)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def test_cosines_are_those_of_the_prompts(segmenter: Segmenter) -> None:
    text = ["red, crimson", "blue", "grey"]
    report = inspected(segmenter, text, {"red": ["red.png", "green.png"], "blue": ["blue.png"]})
    e = segmenter.prompts(text, {"red": ["red.png", "green.png"], "blue": "blue.png"}).embeddings
    t, v = unit(e.text.mean(dim=1)), unit(e.visual[:2].mean(dim=1))
    red, blue, grey = report.classes
    assert red.words == ("red", "crimson")
    assert red.sources == ("text", "reference")
    assert red.agreement == pytest.approx(t[0] @ v[0], abs=1e-4)
    assert grey.agreement is None
    others = t @ t[0]
    assert red.nearest["text"].name == ("blue" if others[1] > others[2] else "grey")
    assert red.nearest["text"].cosine == pytest.approx(max(others[1:]), abs=1e-4)
    assert red.nearest["visual"].name == "blue"
    assert red.nearest["visual"].cosine == pytest.approx(v[0] @ v[1], abs=1e-4)
    assert set(grey.nearest) == {"text", "dual"}
    one, two = (segmenter.prompts(None, {"x": file}).embeddings.visual[0] for file in ("red.png", "green.png"))
    alone, other = unit(one)[0], unit(two)[0]
    assert [picture.source for picture in red.pictures] == ["red.png", "green.png"]
    assert red.pictures[0].to_words == pytest.approx(alone @ t[0], abs=1e-4)
    assert red.pictures[0].to_others == pytest.approx(alone @ other, abs=1e-4)
    assert blue.pictures[0].to_others is None


def test_equal_pictures_are_hardly_told_apart(segmenter: Segmenter) -> None:
    report = inspected(segmenter, [], {"a": ["red.png"], "b": ["red.png"], "c": ["blue.png"]})
    assert [(one.kind, one.classes) for one in report.warnings] == [("alike", ("a", "b"))]
    assert "cosine of 1.00" in report.warnings[0].text


def planted(segmenter: Segmenter, angles: list[float]) -> PromptReport:
    """A class with pictures at these angles, in degrees, and another at 90."""
    prompts = segmenter.prompts(None, {"odd": "red.png", "other": "blue.png"})
    size = prompts.embeddings.visual.shape[-1]

    def vector(angle: float) -> torch.Tensor:
        row = torch.zeros(size)
        row[0], row[1] = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
        return row

    prompts.embeddings.visual[:] = torch.stack([vector(0), vector(90)])[:, None]
    pictures = tuple(Picture(f"{angle:g}.png", None, vector(angle)) for angle in angles)
    origins = Origins({}, {"odd": pictures, "other": (Picture("", None, vector(90)),)}, {})
    return inspect_prompts(segmenter.model.encoder, prompts, origins)


def test_a_picture_unlike_the_others_is_named_with_the_class_that_it_is_nearer_to(segmenter: Segmenter) -> None:
    report = planted(segmenter, [0, 5, 10, 85])
    assert [picture.unlike for picture in report.classes[0].pictures] == [False, False, False, True]
    (warning,) = report.warnings
    assert warning.classes == ("odd",)
    assert "85.png" in warning.text
    assert "1.00 with those of 'other'" in warning.text


def test_of_two_pictures_or_of_an_average_alone_none_is_odd(segmenter: Segmenter) -> None:
    report = planted(segmenter, [0, 90])
    assert not report.warnings
    assert report.notes == ("odd pictures cannot be told of 2 classes with fewer than 3",)
    prompts = segmenter.prompts(["red", "grey"], {"red": "red.png"})
    kept = inspect_prompts(segmenter.model.encoder, prompts, find_origins(segmenter, prompts))
    assert [one.words for one in kept.classes] == [("red",), ("grey",)]
    assert kept.notes == ("odd pictures cannot be told of 1 class: only the average of their pictures is kept",)


def test_pictures_that_have_nothing_in_common_tell_nothing(segmenter: Segmenter) -> None:
    assert not any(picture.unlike for picture in planted(segmenter, [0, 120, 240]).classes[0].pictures)


@pytest.mark.parametrize(
    ("pieces", "unknown"),
    [(("cat",), False), (("x", "q", "z", "t"), True), (("t", "-", "shirt"), False), (("mo", "p"), False)],
)
def test_words_in_many_short_pieces_are_unknown(pieces: tuple[str, ...], unknown: bool) -> None:
    assert is_unknown(pieces) == unknown


def test_lite_warns_of_words_that_it_does_not_know() -> None:
    if not (model_folder("dpseg-lite") / "model.safetensors").is_file():
        pytest.skip("the weights of dpseg-lite are not in src/dpseg/weights; dpseg train makes them")
    segmenter = Segmenter.from_pretrained("dpseg-lite", "cpu")
    text = ["cat", "traffic light", "xqzt", "part 4711-b", "stairs", "escalator, stairs"]
    prompts = segmenter.prompts(text)
    report = inspect_prompts(segmenter.model.encoder, prompts, find_origins(segmenter, prompts, text))
    assert {one.classes for one in report.warnings if one.kind == "unknown"} == {("xqzt",), ("part 4711-b",)}
    assert [share.name for share in report.classes[0].bank] == ["cat"]
    assert sum(share.share for share in report.classes[1].bank) == pytest.approx(1, abs=1e-4)
    assert report.classes[2].bank == ()


class Page(HTMLParser):
    """Elements in their order, with all addresses, of a page whose elements close as they open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_by_itself(segmenter: Segmenter) -> None:
    report = inspected(segmenter, [], {"<b>a</b>": ["red.png"], "b": ["red.png", "blue.png"]})
    content = html_page(report, "a & b").decode()
    page = Page()
    page.feed(content)
    assert page.open == []
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert "b" not in page.tags
    assert len(page.addresses) == 3
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert "prefers-color-scheme: dark" in content
    assert "width=device-width" in content
    assert all(warning.text.split(":")[0].split("'")[-1] in content for warning in report.warnings)


def test_the_sheet_shows_the_pictures(segmenter: Segmenter) -> None:
    with_pictures = png_sheet(inspected(segmenter, [], {"a": ["red.png"], "b": ["blue.png"]}), "title")
    without = png_sheet(inspected(segmenter, ["a", "b"], {}), "title")
    pixels = np.asarray(Image.open(io.BytesIO(with_pictures)).convert("RGB")).reshape(-1, 3).astype(int)
    bare = np.asarray(Image.open(io.BytesIO(without)).convert("RGB")).reshape(-1, 3).astype(int)
    for colour in (COLOURS["red"], COLOURS["blue"]):
        assert (np.abs(pixels - colour).sum(axis=1) < 12).sum() > 2000
        assert not (np.abs(bare - colour).sum(axis=1) < 12).any()


def test_the_command_takes_classes_sets_and_banks(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    classes = ["--ref", "red=red.png", "--ref", "red=green.png", "--ref", "blue=blue.png", "--model", model]
    assert run(["prompts", "show", *classes, "--json", "--out", "page.html"]) == 0
    given = json.loads(capsys.readouterr().out)
    assert Path("page.html").read_bytes().startswith(b"<!doctype html>")
    assert run(["predict", "red.png", *classes, "--save-prompts", "kept.safetensors", "-f", "npz"]) == 0
    bank = ["prompts", "bank", "add", "shop", "--model", model]
    assert run([*bank, *classes[:6]]) == 0
    capsys.readouterr()
    assert run(["prompts", "show", "kept.safetensors", "--model", model, "--json"]) == 0
    kept = json.loads(capsys.readouterr().out)
    for mine, theirs in zip(given["classes"], kept["classes"], strict=True):
        assert mine["nearest"] == theirs["nearest"]
        assert (len(mine["pictures"]) > 0, theirs["pictures"]) == (True, [])
    assert run(["prompts", "show", "shop", "--model", model, "--out", "sheet.png"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["class", "prompts", "pictures"]
    assert [line.split()[:4] for line in lines[1:3]] == [["red", "text,", "bank", "2"], ["blue", "text,", "bank", "1"]]
    assert Path("sheet.png").read_bytes().startswith(b"\x89PNG")
    assert run(["prompts", "show", "-t", "red", "--bank", "shop", "--model", model, "--json"]) == 0
    (word,) = json.loads(capsys.readouterr().out)["classes"]
    assert word["bank"] == [{"name": "red", "share": pytest.approx(1), "source": "bank"}]
    assert run(["prompts", "show", "shop", "--model", model, "--limit", "1", "--json"]) == 0
    stored = json.loads(capsys.readouterr().out)["classes"]
    assert [one["name"] for one in stored] == ["red"]
    assert stored[0]["agreement"] == pytest.approx(word["agreement"], abs=1e-4)
    assert [one["source"] for one in stored[0]["pictures"]] == ["red.png", "green.png"]
    assert stored[0]["pictures"][0]["to_others"] == pytest.approx(
        given["classes"][0]["pictures"][0]["to_others"], abs=1e-2
    )


def test_a_bank_in_a_file_has_averages_only(
    segmenter: Segmenter, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = segmenter.model.encoder
    rows = (torch.rand(3, size) for size in (20, encoder.embed_dim, *encoder.stage_dims))
    text, dense, s2, s3, s4 = rows
    Bank(("cat", "Cat", "dog"), text, dense, (s2, s3, s4), encoder.fingerprint).save("bank.safetensors")
    assert run(["prompts", "show", "bank.safetensors", "--model", model]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["cat", "dog"]
    assert "note: odd pictures cannot be told of 2 classes" in lines[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to show"),
        (["nowhere"], "nowhere: no such file or folder"),
        (["red.png"], "red.png: cannot be read"),
        (["red.png", "-t", "cat"], "red.png already holds classes"),
        (["-t", "cat", "--out", "page.pdf"], "page.pdf: what it shall be is unknown"),
        (["-t", "cat", "--ref", "dog=red.png"], "a class that is not listed, 'dog'"),
    ],
)
def test_mistakes_are_one_line(
    model: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(["prompts", "show", "--model", model, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
