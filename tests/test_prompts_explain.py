"""`dpseg prompts explain`: the parts of a pixel's logit against the whole prediction, and what is said of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dpseg.cache import EmbeddingCache
from dpseg.cli import run
from dpseg.config import ModelConfig, RefineConfig
from dpseg.explain.cost import cost_maps
from dpseg.explain.origins import find_origins
from dpseg.explain.pixel import Candidate, PixelReport, explain_pixels, summarise
from dpseg.explain.pixel_figure import pixel_figure
from dpseg.explain.point_logits import decode_at, sample
from dpseg.model.dpseg import DPSeg
from dpseg.prompts.visual import Reference
from dpseg.segmenter import Segmenter

CONFIG = ModelConfig(encoder="tiny", image_size=64, keep_aspect=True, templates=3, logit_scale=10.0, tune_encoder=False)
RED, BLUE = (220, 30, 20), (20, 40, 220)
TEXT, PICTURES = ["red", "blue", "grey"], {"red": ["red.png", "blue.png"], "blue": ["blue.png"]}
POINTS = [(3, 5), (100, 40), (127, 63)]


def make_segmenter(folder: Path, **changes: object) -> Segmenter:
    torch.manual_seed(0)
    model = DPSeg(replace(CONFIG, **changes))
    torch.nn.init.normal_(model.decoder.head.weight, std=3.0)  # a decoder that has a say
    return Segmenter(model, refinement=RefineConfig(min_confidence=0.0), cache=EmbeddingCache(folder))


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPSEG_CACHE", str(tmp_path / "cache"))
    Image.new("RGB", (32, 32), RED).save("red.png")
    Image.new("RGB", (32, 32), BLUE).save("blue.png")
    photo = Image.new("RGB", (128, 64), BLUE)
    photo.paste(RED, (0, 0, 32, 64))
    photo.save("both.png")


@pytest.fixture
def segmenter(tmp_path: Path) -> Segmenter:
    return make_segmenter(tmp_path)


def explained(segmenter: Segmenter, refine: bool = False, count: int = 3) -> list[PixelReport]:
    references = {name: [Reference(file) for file in files] for name, files in PICTURES.items()}
    prompts = segmenter.prompts(TEXT, references)
    origins = find_origins(segmenter, prompts, TEXT, references)
    return explain_pixels(segmenter, "both.png", POINTS, prompts, origins, refine=refine, count=count)[1]


@pytest.mark.parametrize("changes", [{}, {"mirrored_scales": (0.667,)}, {"resize_scores": True}, {"decode_classes": 2}])
@pytest.mark.parametrize("refine", [False, True])
def test_the_winner_is_the_label_and_the_parts_add_up(tmp_path: Path, changes: dict[str, object], refine: bool) -> None:
    segmenter = make_segmenter(tmp_path, **changes)
    prompts = segmenter.prompts(TEXT, {name: list(files) for name, files in PICTURES.items()})
    first = segmenter("both.png", prompts=prompts, refine=False)
    result = segmenter("both.png", prompts=prompts, refine=refine)
    plain = segmenter.model.baseline
    assert plain is not None
    for report in explained(segmenter, refine):
        x, y = report.point
        winner = report.candidates[0]
        assert prompts.names.index(winner.name) == result.labels[y, x]
        for one in report.candidates:
            k = prompts.names.index(one.name)
            assert one.score == pytest.approx(result.scores[k, y, x], abs=1e-4)
            assert one.logit == pytest.approx(one.baseline + one.decoder, abs=1e-4)
            assert one.sources == result.prompts[k]
            if refine:
                assert 1 / (1 + np.exp(-one.first)) == pytest.approx(first.scores[k, y, x], abs=1e-4)
            else:
                assert one.first is None


@pytest.mark.parametrize("scales", [(), (0.667,)])
def test_the_baseline_is_what_a_silent_decoder_leaves(tmp_path: Path, scales: tuple[float, ...]) -> None:
    segmenter = make_segmenter(tmp_path, mirrored_scales=scales)
    torch.nn.init.zeros_(segmenter.model.decoder.head.weight)
    assert all(abs(one.decoder) < 1e-4 for report in explained(segmenter) for one in report.candidates)


def test_a_model_without_a_baseline_has_no_parts(tmp_path: Path) -> None:
    winner = explained(make_segmenter(tmp_path, logit_scale=0.0))[0].candidates[0]
    assert (winner.baseline, winner.decoder) == (None, None)


def test_cosines_are_those_of_the_maps(segmenter: Segmenter) -> None:
    prompts = segmenter.prompts(TEXT, {name: list(files) for name, files in PICTURES.items()})
    maps = cost_maps(segmenter.model, segmenter.encode(["both.png"]).pyramid, prompts)
    for report in explained(segmenter):
        for one in report.candidates:
            assert list(one.cosines) == ["text", "visual", "dual", "stage4", "stage3", "stage2"]
            k = prompts.names.index(one.name)
            for name, value in one.cosines.items():
                there = float(sample(torch.from_numpy(maps[name]), report.point, (128, 64))[k])
                assert (value is None) == (name not in ("text", "dual") and one.name == "grey")
                assert value is None or value == pytest.approx(there, abs=1e-5)


def test_blocks_of_classes_are_put_together(segmenter: Segmenter) -> None:
    prompts = segmenter.prompts([f"class {number}" for number in range(40)])
    pyramid = segmenter.encode(["both.png"]).pyramid
    with torch.inference_mode():
        found = decode_at(segmenter.model, pyramid, prompts, POINTS, (128, 64))
        whole = segmenter.model.decode(pyramid, prompts.embeddings)[0]
    assert torch.allclose(found.logits, torch.stack([sample(whole, point, (128, 64)) for point in POINTS]), atol=1e-4)
    assert torch.equal(found.leaders, whole.argmax(dim=0))
    assert len(found.leaders.unique()) > 2
    assert torch.allclose(found.best, whole.amax(dim=0), atol=1e-4)


def test_a_sample_is_a_pixel_of_the_resized_map() -> None:
    maps = torch.rand(2, 5, 7)
    whole = torch.nn.functional.interpolate(maps[None], size=(33, 50), mode="bilinear", align_corners=False)[0]
    for x, y in ((0, 0), (49, 32), (20, 7)):
        assert torch.allclose(sample(maps, (x, y), (50, 33)), whole[:, y, x], atol=1e-5)


def test_the_nearest_of_the_own_pictures_is_named(segmenter: Segmenter) -> None:
    left, middle, _ = explained(segmenter)
    (red,) = (one for one in left.candidates if one.name == "red")
    (same,) = (one for one in middle.candidates if one.name == "red")
    (grey,) = (one for one in left.candidates if one.name == "grey")
    assert red.picture is not None
    assert same.picture is not None
    assert (red.picture.source, same.picture.source) == ("red.png", "blue.png")
    assert red.picture.cosine == pytest.approx(1, abs=1e-3)
    assert grey.picture is None


def candidate(name: str, logit: float, words: float | None, pictures: float | None, base: float = 0.0) -> Candidate:
    cosines = {"text": words, "visual": pictures, "dual": 0.0}
    return Candidate(name, ("text",), logit, base, logit - base, None, cosines, None, ())


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (
            candidate("wall", 0.7, 0.05, 0.1, -1),
            "'cat' wins over 'wall' by 2.3: both its words (0.31 against 0.05) and its pictures (0.44 against 0.10) fit"
            " better.",
        ),
        (
            candidate("wall", 2.8, 0.35, 0.1, -1),
            "'cat' wins over 'wall' by 0.20: its pictures (0.44 against 0.10) fit better, its words (0.31 against 0.35)"
            " do not.",
        ),
        (
            candidate("wall", 1.0, 0.35, None, 1),
            "'cat' wins over 'wall' by 2.0: though its words (0.31 against 0.35) fit no better; by the plain cosine it"
            " would be 'wall', the decoder turns it.",
        ),
    ],
)
def test_the_sentence_says_why(other: Candidate, sentence: str) -> None:
    assert summarise([candidate("cat", 3.0, 0.31, 0.44), other]) == sentence


def test_the_figure_marks_the_pixels(segmenter: Segmenter) -> None:
    reports = explained(segmenter, count=2)
    photo, first, *_ = pixel_figure(Image.open("both.png"), reports).axes
    marks = [line.get_xydata()[0].tolist() for line in photo.lines]
    assert [point for mark in POINTS for point in (list(mark), list(mark))] == [pytest.approx(mark) for mark in marks]
    assert first.get_title(loc="left") == "1: pixel 3, 5"
    assert [bar.get_width() for bar in first.containers[0]] == [one.cosines["text"] for one in reports[0].candidates]


@pytest.fixture
def model(segmenter: Segmenter, tmp_path: Path) -> str:
    segmenter.model.save_pretrained(tmp_path / "tiny")
    return str(tmp_path / "tiny")


def test_the_command_says_what_the_library_says(
    segmenter: Segmenter, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    references = [f"{name}={file}" for name, files in PICTURES.items() for file in files]
    classes = [*(word for name in TEXT for word in ("-t", name)), *(word for one in references for word in ("-r", one))]
    asked = ["prompts", "explain", "both.png", *classes, "--model", model, "--at", "3,5", "--at", "100, 40"]
    assert run([*asked, "--no-refine", "--json", "--out", "a/b.png"]) == 0
    content = json.loads(capsys.readouterr().out)
    expected = explained(segmenter)[:2]
    for mine, theirs in zip(content["pixels"], expected, strict=True):
        assert mine["at"] == list(theirs.point)
        assert mine["margin"] == pytest.approx(theirs.margin, abs=1e-4)
        assert [one["name"] for one in mine["classes"]] == [one.name for one in theirs.candidates]
    assert Path("a/b.png").read_bytes().startswith(b"\x89PNG")
    assert run([*asked, "--no-refine", "--classes", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"both.png, pixel 3,5: {expected[0].summary}"
    assert lines[1].split() == ["class", "logit", "cosine", "decoder", "words", "pictures", "both", *expected_scales()]
    assert lines[2].split()[:2] == [expected[0].candidates[0].name, f"{expected[0].candidates[0].logit:.1f}"]
    assert run([*asked, "--refine"]) == 0
    assert "before" in capsys.readouterr().out.splitlines()[1].split()


def expected_scales() -> list[str]:
    return ["stage4", "stage3", "stage2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--at", "3"], "--at '3' is no pixel"),
        (["--at", "128,0"], "pixel 128,0 is outside the photo; give x from 0 to 127"),
        (["--at", "0,0", "--classes", "0"], "classes 0"),
        (["--at", "0,0", "--out", "a.jpg"], "a.jpg: the figure is a PNG file"),
        (["--at", "0,0", "--prompts", "x"], "--prompts already holds the classes"),
    ],
)
def test_mistakes_are_one_line(
    model: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(["prompts", "explain", "both.png", "-t", "red", "--model", model, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
