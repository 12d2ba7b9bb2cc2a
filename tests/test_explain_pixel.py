"""Why a pixel got its class: the parts of its logit against the whole prediction, and what is said of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpseg.explain.cost import cost_maps
from dpseg.explain.origins import find_origins
from dpseg.explain.pixel import Candidate, PixelReport, explain_pixels, summarise
from dpseg.explain.pixel_figure import pixel_figure
from dpseg.explain.point_logits import decode_at, sample
from dpseg.prompts.visual import Reference
from dpseg.segmenter import Segmenter
from support.explaining import eager_segmenter, quarter

TEXT = ["red", "blue", "grey"]
REFERENCES = {"red": [Reference("red.png"), Reference("blue.png")], "blue": [Reference("blue.png")]}
POINTS = [(3, 5), (100, 40), (127, 63)]
SIZE = (128, 64)


pytestmark = pytest.mark.usefixtures("workplace")


def outspoken(folder: Path, **changes: Any) -> Segmenter:
    """A segmenter whose decoder has a say."""
    segmenter = eager_segmenter(folder, **changes)
    torch.nn.init.normal_(segmenter.model.decoder.head.weight, std=3.0, generator=torch.Generator().manual_seed(0))
    return segmenter


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    return outspoken(tmp_path_factory.mktemp("cache"))


def explained(segmenter: Segmenter, refine: bool = False, count: int = 3) -> list[PixelReport]:
    prompts = segmenter.prompts(TEXT, REFERENCES)
    origins = find_origins(segmenter, prompts, TEXT, REFERENCES)
    return explain_pixels(segmenter, quarter(), POINTS, prompts, origins, refine=refine, count=count)[1]


@pytest.mark.numeric
@pytest.mark.parametrize(
    "changes", [{}, {"mirrored_scales": (0.667,)}, {"resize_scores": True}, {"decode_classes": 2}, {"presence": 1.0}]
)
@pytest.mark.parametrize("refine", [False, True])
def test_the_winner_is_the_label_and_the_parts_add_up(tmp_path: Path, changes: dict[str, Any], refine: bool) -> None:
    segmenter = outspoken(tmp_path, **changes)
    prompts = segmenter.prompts(TEXT, REFERENCES)
    first = segmenter(quarter(), prompts=prompts, refine=False)
    result = segmenter(quarter(), prompts=prompts, refine=refine)
    assert segmenter.model.baseline is not None
    for report in explained(segmenter, refine):
        x, y = report.point
        assert prompts.names.index(report.candidates[0].name) == result.labels[y, x]
        for one in report.candidates:
            k = prompts.names.index(one.name)
            assert one.score == pytest.approx(result.scores[k, y, x], abs=1e-4)
            assert one.logit == pytest.approx(one.baseline + one.decoder, abs=1e-4)
            assert one.sources == result.prompts[k]
            if refine:
                assert 1 / (1 + np.exp(-one.first)) == pytest.approx(first.scores[k, y, x], abs=1e-4)
            else:
                assert one.first is None


def test_the_baseline_is_what_a_silent_decoder_leaves_and_some_models_have_none(tmp_path: Path) -> None:
    for scales in ((), (0.667,)):
        silent = eager_segmenter(tmp_path, mirrored_scales=scales)
        assert not silent.model.decoder.head.weight.any()
        assert all(abs(one.decoder) < 1e-4 for report in explained(silent) for one in report.candidates)
    winner = explained(outspoken(tmp_path, logit_scale=0.0))[0].candidates[0]
    assert (winner.baseline, winner.decoder) == (None, None)


def test_cosines_are_those_of_the_maps(segmenter: Segmenter) -> None:
    prompts = segmenter.prompts(TEXT, REFERENCES)
    maps = cost_maps(segmenter.model, segmenter.encode([quarter()]).pyramid, prompts)
    for report in explained(segmenter):
        for one in report.candidates:
            assert list(one.cosines) == ["text", "visual", "dual", "stage4", "stage3", "stage2"]
            k = prompts.names.index(one.name)
            for name, value in one.cosines.items():
                there = float(sample(torch.from_numpy(maps[name]), report.point, SIZE)[k])
                assert (value is None) == (name not in ("text", "dual") and one.name == "grey")
                assert value is None or value == pytest.approx(there, abs=1e-5)


def test_blocks_of_classes_are_put_together(segmenter: Segmenter) -> None:
    prompts = segmenter.prompts([f"class {number}" for number in range(40)])
    pyramid = segmenter.encode([quarter()]).pyramid
    with torch.inference_mode():
        found = decode_at(segmenter.model, pyramid, prompts, POINTS, SIZE)
        whole = segmenter.model.decode(pyramid, prompts.embeddings)[0]
    assert torch.allclose(found.logits, torch.stack([sample(whole, point, SIZE) for point in POINTS]), atol=1e-4)
    assert torch.equal(found.leaders, whole.argmax(dim=0))
    assert len(found.leaders.unique()) > 2
    assert torch.allclose(found.best, whole.amax(dim=0), atol=1e-4)


def test_a_sample_is_a_pixel_of_the_resized_map() -> None:
    maps = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(0))
    whole = torch.nn.functional.interpolate(maps[None], size=(33, 50), mode="bilinear", align_corners=False)[0]
    for x, y in ((0, 0), (49, 32), (20, 7)):
        assert torch.allclose(sample(maps, (x, y), (50, 33)), whole[:, y, x], atol=1e-5)


def test_the_nearest_of_the_own_pictures_is_named(segmenter: Segmenter) -> None:
    left, middle, _ = ({one.name: one.picture for one in report.candidates} for report in explained(segmenter))
    assert left["red"] is not None
    assert middle["red"] is not None
    assert (left["red"].source, middle["red"].source) == ("red.png", "blue.png")
    assert left["red"].cosine == pytest.approx(1, abs=1e-3)
    assert left["grey"] is None


def candidate(name: str, logit: float, words: float | None, pictures: float | None, base: float = 0.0) -> Candidate:
    cosines = {"text": words, "visual": pictures, "dual": 0.0}
    return Candidate(name, ("text",), logit, base, logit - base, None, cosines, None, ())


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (
            candidate("wall", 0.7, 0.05, 0.1, -1),
            "2.3: both its words (0.31 against 0.05) and its pictures (0.44 against 0.10) fit better.",
        ),
        (
            candidate("wall", 2.8, 0.35, 0.1, -1),
            "0.20: its pictures (0.44 against 0.10) fit better, its words (0.31 against 0.35) do not.",
        ),
        (
            candidate("wall", 1.0, 0.35, None, 1),
            "2.0: though its words (0.31 against 0.35) fit no better; by the plain cosine it would be 'wall', the"
            " decoder turns it.",
        ),
    ],
)
def test_the_sentence_says_why(other: Candidate, sentence: str) -> None:
    assert summarise([candidate("cat", 3.0, 0.31, 0.44), other]) == f"'cat' wins over 'wall' by {sentence}"


def test_the_figure_marks_the_pixels(segmenter: Segmenter) -> None:
    reports = explained(segmenter, count=2)
    photo, first, *_ = pixel_figure(quarter(), reports).axes
    marks = [line.get_xydata()[0].tolist() for line in photo.lines]
    assert [point for mark in POINTS for point in (list(mark), list(mark))] == [pytest.approx(mark) for mark in marks]
    assert first.get_title(loc="left") == "1: pixel 3, 5"
    assert [bar.get_width() for bar in first.containers[0]] == [one.cosines["text"] for one in reports[0].candidates]
