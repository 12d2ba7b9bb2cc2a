"""The class prior of a photo: what it adds when classes compete, and what it leaves as it is."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dpseg.cache import EmbeddingCache
from dpseg.config import ModelConfig
from dpseg.errors import ConfigError
from dpseg.explain.origins import Origins
from dpseg.explain.pixel import explain_pixels
from dpseg.matching import Matching
from dpseg.model import class_logits
from dpseg.model.class_logits import UNDECODED, ClassLogits, Decoded, collect, presence_shift, strongest
from dpseg.model.dpseg import DPSeg
from dpseg.model.label_map import LabelMap
from dpseg.segmenter import Segmenter

SIZE = (40, 56)


def some_logits(count: int = 12) -> Tensor:
    """(K, 10, 14), some of them close to each other everywhere."""
    random = torch.Generator().manual_seed(5)
    coarse = torch.randn(1, count, 4, 4, generator=random)
    return F.interpolate(coarse, (10, 14), mode="bilinear")[0] + torch.linspace(0, 0.5, count)[:, None, None]


def in_blocks(logits: Tensor, order: list[int], size: int = 5) -> list[ClassLogits]:
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    return [ClassLogits(torch.tensor(part), logits[part]) for part in parts]


def decoded(logits: Tensor, presence: float, background: float | None = None) -> Decoded:
    return collect(in_blocks(logits, list(range(len(logits)))), len(logits), LabelMap(SIZE, background), presence)


def gains(logits: Tensor, strength: float) -> Tensor:
    """The definition, in two steps: from the plain mean softmax, and from what that makes of it."""
    first = strength * (logits.softmax(dim=0).mean(dim=(1, 2)) + 1e-4).log()
    again = (logits + first[:, None, None]).softmax(dim=0).mean(dim=(1, 2))
    return strength * (again + 1e-4).log()


def test_a_class_gains_by_the_log_of_its_mean_softmax() -> None:
    logits = some_logits()
    shift = presence_shift(in_blocks(logits, [3, 0, 7, 1, 2, 4, 5, 6, 8]), 12, 0.5)
    torch.testing.assert_close(shift[:9], gains(logits[:9], 0.5))
    assert (shift[9:] == 0).all(), "classes that were not decoded"
    assert (shift <= 0).all()


def test_labels_are_of_the_shifted_logits_and_differ_from_the_plain_ones() -> None:
    logits = some_logits()
    wanted = F.interpolate((logits + gains(logits, 1.0)[:, None, None])[None], SIZE, mode="bilinear")[0].argmax(0)
    found = decoded(logits, 1.0).labels()
    assert (found == wanted.numpy()).mean() > 0.999  # ties of floats
    assert (found != decoded(logits, 0.0).labels()).mean() > 0.05


@pytest.mark.parametrize("background", [None, 0.6])
def test_very_many_classes_are_labelled_alike(monkeypatch: pytest.MonkeyPatch, background: float | None) -> None:
    logits = some_logits()
    whole = decoded(logits, 0.7, background)
    labels = whole.labels()
    monkeypatch.setattr(class_logits, "ALL_CLASSES", 10)
    monkeypatch.setattr(class_logits, "KEPT_CLASSES", 4)
    blocks = collect(in_blocks(logits, [11, 3, 0, 7, 1, 2, 4, 5, 6, 8, 10, 9]), 12, LabelMap(SIZE, background), 0.7)
    np.testing.assert_array_equal(blocks.labels(), labels)
    torch.testing.assert_close(blocks.best, whole.best)
    assert torch.equal(blocks.leaders, whole.leaders)


def test_of_too_many_classes_the_strongest_compete(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = some_logits()
    monkeypatch.setattr(class_logits, "COMPETING", 3)
    best = logits.amax(dim=(1, 2)).topk(3).indices.sort().values
    order = [11, 3, 0, 7, 1, 2, 4, 5, 6, 8, 10, 9]
    (kept,) = strongest(iter(in_blocks(logits, order, 2)))
    ordered = kept.classes.argsort()
    assert torch.equal(kept.classes[ordered], best)
    assert torch.equal(kept.logits[ordered], logits[best])
    few = in_blocks(logits, [4, 5, 6], 2)
    assert all(one is other for one, other in zip(strongest(iter(few)), few, strict=True))
    labels = decoded(logits, 0.7).labels()
    np.testing.assert_array_equal(labels, best.numpy()[decoded(logits[best], 0.7).labels()])


def test_scores_and_the_background_know_nothing_of_it() -> None:
    logits = torch.full((2, 10, 14), -4.0)
    logits[0, :, :7] = 2.0  # a score of 0.88
    logits[1, 0, 7:9] = 1.0  # little of the photo, but nothing else is there
    one = decoded(logits, 1.0, background=0.5)
    labels = one.labels()
    assert labels[0, 30] == 1
    assert labels[20, 50] == -1
    assert float(one.best[0, 7]) == pytest.approx(1.0)
    assert one.labelling.mean_scores(2)[1] > 0.5
    wider = decoded(logits, 0.0, background=0.5).labels()
    np.testing.assert_array_equal(labels, wider)


def test_a_photo_is_explained_as_it_is_labelled(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DPSeg(ModelConfig(encoder="tiny", image_size=64, templates=2, logit_scale=20.0, presence=3.0))
    torch.nn.init.normal_(model.decoder.head.weight, std=1.0)
    segmenter = Segmenter(model, cache=EmbeddingCache(tmp_path))
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype=np.uint8)).resize((70, 90))
    prompts = segmenter.prompts(["cat", "wall", "sky", "red square"])
    result = segmenter(photo, prompts=prompts, refine=False)
    height, width = result.labels.shape
    points = [(x, y) for x in range(3, width, width // 4) for y in range(3, height, height // 4)]
    _, reports = explain_pixels(segmenter, photo, points, prompts, Origins({}, {}, {}), refine=False)
    assert [report.candidates[0].name for report in reports] == [result.names[result.labels[y, x]] for x, y in points]
    assert all(candidate.presence < 0 for report in reports for candidate in report.candidates)
    assert all(report.margin is not None and report.margin >= 0 for report in reports)
    assert (result.logits > UNDECODED).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"presence": -1.0},
        {"presence": math.nan},
        {"presence": 1, "resize_scores": True},
        {"matching": Matching(logit_adjustment=0.2), "resize_scores": True},
    ],
)
def test_what_it_cannot_be(changes: dict) -> None:
    with pytest.raises(ConfigError, match=r"presence|logit_adjustment"):
        ModelConfig(**changes)
