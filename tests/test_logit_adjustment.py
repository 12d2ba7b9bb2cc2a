"""What is added to logits when classes compete: a photo's class prior, and what training showed often, taken out."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from dpseg.exporting import pixels
from dpseg.exporting.about import About
from dpseg.exporting.graph import about
from dpseg.matching import Matching
from dpseg.model import class_logits
from dpseg.model.class_logits import UNDECODED, ClassLogits, Decoded, collect, presence_shift, strongest
from dpseg.model.dpseg import DPSeg
from dpseg.model.label_map import LabelMap
from dpseg.model.prompting import build_prompts
from dpseg.model.tiny import TinyEncoder
from dpseg.onnx_runner import Prompts
from dpseg.prompts.prompt_set import PromptEmbeddings, PromptSet
from dpseg.prompts.text import templates
from dpseg.result import Segmentation
from dpseg.segmenter import Segmenter
from dpseg.video.smoothing import Smoother
from support.pictures import RED, plain

CONFIG = ModelConfig(encoder="tiny", image_size=64, templates=2, logit_scale=20.0)
NAMES = ["wall", "cat", "sky", "red square"]
SIZE, COUNT = (40, 56), 12
ORDER = [11, 3, 0, 7, 1, 2, 4, 5, 6, 8, 10, 9]
ADJUSTMENT = torch.linspace(-1, 1, COUNT)


class Counted(TinyEncoder):
    """Training showed cats much, and animals little; of "cat" it knew more."""

    KNOWN = (("cat", 1.0, 3.0), ("animal", 0.5, -2.0))

    def _of(self, features: Tensor, column: int) -> Tensor:
        values = features.new_zeros(len(features))
        for row in self.KNOWN:
            mine = self.text_features([sentence.format(row[0]) for sentence in templates(2)])
            values[(torch.cdist(features, mine) < 1e-3).any(dim=-1)] = float(row[column])
        return values

    def familiarity(self, features: Tensor) -> Tensor:
        return self._of(features, 1)

    def log_frequency(self, features: Tensor) -> Tensor:
        return self._of(features, 2)


def segmenter_of(tmp_path: Path, presence: float, adjustment: float = 0.5) -> Segmenter:
    """A model of random weights that finds several of `NAMES`."""
    torch.manual_seed(0)
    model = DPSeg(replace(CONFIG, presence=presence, matching=Matching(logit_adjustment=adjustment)))
    torch.nn.init.normal_(model.decoder.head.weight, std=1.0)
    counted = Counted(model.config)
    counted.load_state_dict(model.encoder.state_dict())  # type: ignore[attr-defined]
    model.encoder = counted
    return Segmenter(model, cache=EmbeddingCache(tmp_path / "cache"))


def some_logits() -> Tensor:
    """(K, 10, 14), some of them close to each other everywhere."""
    coarse = torch.randn(1, COUNT, 4, 4, generator=torch.Generator().manual_seed(5))
    return F.interpolate(coarse, (10, 14), mode="bilinear")[0] + torch.linspace(0, 0.5, COUNT)[:, None, None]


def in_blocks(logits: Tensor, order: list[int], size: int = 5) -> list[ClassLogits]:
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    return [ClassLogits(torch.tensor(part), logits[part]) for part in parts]


def decoded(
    logits: Tensor, presence: float, background: float | None = None, adjustment: Tensor | None = None
) -> Decoded:
    blocks = in_blocks(logits, [number for number in ORDER if number < len(logits)])
    return collect(blocks, len(logits), LabelMap(SIZE, background), presence, adjustment)


def gains(logits: Tensor, strength: float) -> Tensor:
    """The definition, in two steps: from the plain mean softmax, and from what that makes of it."""
    first = strength * (logits.softmax(dim=0).mean(dim=(1, 2)) + 1e-4).log()
    again = (logits + first[:, None, None]).softmax(dim=0).mean(dim=(1, 2))
    return strength * (again + 1e-4).log()


def test_a_class_gains_by_the_log_of_its_mean_softmax() -> None:
    logits = some_logits()
    shift = presence_shift(in_blocks(logits, [3, 0, 7, 1, 2, 4, 5, 6, 8]), COUNT, 0.5)
    torch.testing.assert_close(shift[:9], gains(logits[:9], 0.5))
    assert (shift[9:] == 0).all(), "classes that were not decoded"
    assert (shift <= 0).all()
    wanted = F.interpolate((logits + gains(logits, 1.0)[:, None, None])[None], SIZE, mode="bilinear")[0].argmax(0)
    found = decoded(logits, 1.0).labels()
    assert (found == wanted.numpy()).mean() > 0.999  # ties of floats
    assert (found != decoded(logits, 0.0).labels()).mean() > 0.05


@pytest.mark.parametrize("presence", [0.0, 0.7])
def test_labels_are_of_the_adjusted_logits_and_scores_of_the_plain_ones(presence: float) -> None:
    logits, adjustment = some_logits(), ADJUSTMENT.clone()
    mine = decoded(logits, presence, adjustment=adjustment)
    np.testing.assert_array_equal(mine.labels(), decoded(logits + adjustment[:, None, None], presence).labels())
    assert (mine.labels() != decoded(logits, presence).labels()).mean() > 0.05
    torch.testing.assert_close(mine.best, logits.gather(0, mine.leaders[None])[0])
    assert torch.equal(mine.logits, logits)
    assert torch.equal(adjustment, ADJUSTMENT)  # the caller's is as it was


@pytest.mark.parametrize(
    ("presence", "background", "adjustment"),
    [(0.7, None, None), (0.7, 0.6, None), (0.7, None, ADJUSTMENT), (0.0, None, ADJUSTMENT)],
)
def test_very_many_classes_are_labelled_alike(
    monkeypatch: pytest.MonkeyPatch, presence: float, background: float | None, adjustment: Tensor | None
) -> None:
    whole = decoded(some_logits(), presence, background, adjustment)
    labels = whole.labels()
    monkeypatch.setattr(class_logits, "ALL_CLASSES", 10)
    monkeypatch.setattr(class_logits, "KEPT_CLASSES", 4)
    blocks = decoded(some_logits(), presence, background, adjustment)
    np.testing.assert_array_equal(blocks.labels(), labels)
    torch.testing.assert_close(blocks.best, whole.best)
    assert torch.equal(blocks.leaders, whole.leaders)


def test_of_too_many_classes_the_strongest_compete(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = some_logits()
    monkeypatch.setattr(class_logits, "COMPETING", 3)
    best = logits.amax(dim=(1, 2)).topk(3).indices.sort().values
    (kept,) = strongest(iter(in_blocks(logits, ORDER, 2)))
    ordered = kept.classes.argsort()
    assert torch.equal(kept.classes[ordered], best)
    assert torch.equal(kept.logits[ordered], logits[best])
    few = in_blocks(logits, [4, 5, 6], 2)
    assert all(one is other for one, other in zip(strongest(iter(few)), few, strict=True))
    np.testing.assert_array_equal(decoded(logits, 0.7).labels(), best.numpy()[decoded(logits[best], 0.7).labels()])


def test_scores_and_the_background_know_nothing_of_the_prior() -> None:
    logits = torch.full((2, 10, 14), -4.0)
    logits[0, :, :7] = 2.0  # a score of 0.88
    logits[1, 0, 7:9] = 1.0  # little of the photo, but nothing else is there
    one = decoded(logits, 1.0, background=0.5)
    labels = one.labels()
    assert (labels[0, 30], labels[20, 50]) == (1, -1)
    assert float(one.best[0, 7]) == pytest.approx(1.0)
    assert one.labelling.mean_scores(2)[1] > 0.5
    np.testing.assert_array_equal(labels, decoded(logits, 0.0, background=0.5).labels())


def test_a_class_is_adjusted_by_its_best_known_name(tmp_path: Path) -> None:
    encoder, cache = Counted(CONFIG), EmbeddingCache(tmp_path)

    def built(strength: float, words: list[str] | None, **pictures: Image.Image) -> PromptEmbeddings:
        matching = Matching(logit_adjustment=strength)
        return build_prompts(encoder, words, pictures or None, 2, cache, None, matching).embeddings

    words, red = ["wall", "pet, animal, cat", "animal", "cat, wall"], plain(RED)
    torch.testing.assert_close(built(0.2, words).adjustment, torch.tensor([0.0, -0.6, 0.4, -0.6]))
    shown = built(0.2, words, animal=red, pet=red).adjustment
    torch.testing.assert_close(shown, torch.tensor([0.0, -0.6, 0.2, -0.6]))  # of "animal" training knew a half
    assert built(0.0, words).adjustment is None
    assert built(0.2, None, cat=red).adjustment is None, "pictures alone"


def test_a_prompt_set_keeps_it(tmp_path: Path) -> None:
    prompts = segmenter_of(tmp_path, 0.0).prompts(NAMES)
    torch.testing.assert_close(prompts.embeddings.adjustment, torch.tensor([0.0, -1.5, 0.0, 0.0]))
    path = prompts.save(tmp_path / "set.safetensors")
    loaded = PromptSet.load(path).select(["cat", "sky"]).embeddings.to("cpu")
    torch.testing.assert_close(loaded.adjustment, torch.tensor([-1.5, 0.0]))
    arrays = Prompts.load(path).adjustment
    assert arrays is not None
    assert arrays.tolist() == [0.0, -1.5, 0.0, 0.0]
    assert list(prompts.embeddings.tensors())[-1] == "adjustment"  # what tells sets apart
    without = prompts.with_embeddings(replace(prompts.embeddings, adjustment=None)).save(tmp_path / "plain.safetensors")
    assert PromptSet.load(without).embeddings.adjustment is None
    assert Prompts.load(without).adjustment is None


@pytest.mark.parametrize(("presence", "adjustment"), [(0.0, 0.5), (3.0, 0.5), (3.0, 0.0)])
def test_a_photo_is_explained_as_it_is_labelled(tmp_path: Path, presence: float, adjustment: float) -> None:
    segmenter = segmenter_of(tmp_path, presence, adjustment)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype=np.uint8)).resize((70, 90))
    prompts = segmenter.prompts(NAMES)
    result = segmenter(photo, prompts=prompts, refine=False)
    if adjustment:
        assert result.areas != segmenter_of(tmp_path, presence, 0.0)(photo, NAMES, refine=False).areas
    height, width = result.labels.shape
    points = [(x, y) for x in range(3, width, width // 4) for y in range(3, height, height // 4)]
    _, reports = explain_pixels(segmenter, photo, points, prompts, Origins({}, {}, {}), refine=False, count=4)
    assert [report.candidates[0].name for report in reports] == [result.names[result.labels[y, x]] for x, y in points]
    assert all(report.margin is not None and report.margin >= 0 for report in reports)
    for candidate in (one for report in reports for one in report.candidates):
        assert candidate.adjustment == pytest.approx(-3 * adjustment if candidate.name == "cat" else 0.0)
        assert (candidate.presence < 0) == (presence > 0)
        assert candidate.rank == pytest.approx(candidate.logit + candidate.presence + candidate.adjustment)
    assert {"presence", "adjustment"} < reports[0].to_json()["classes"][0].keys()
    assert (result.logits > UNDECODED).all()


@pytest.mark.parametrize("presence", [0.0, 0.7])
def test_an_export_labels_with_it_too(tmp_path: Path, presence: float) -> None:
    logits = 3 * some_logits()
    blocks = [ClassLogits(torch.arange(COUNT), logits)]
    facts = About(1, "0", "tiny", "print", 64, True, None, 32, 1, 1, (), presence, False)
    found = collect(blocks, COUNT, LabelMap(SIZE), presence, ADJUSTMENT)
    labels, means = pixels.label_map(logits.numpy(), SIZE, facts, None, ADJUSTMENT.numpy())
    assert (labels == found.labels()).mean() > 0.999
    np.testing.assert_allclose(means, found.labelling.mean_scores(COUNT), atol=1e-3)
    shift = presence_shift(blocks, COUNT, presence, ADJUSTMENT)
    np.testing.assert_allclose(pixels.presence_shift(logits.numpy(), presence, ADJUSTMENT.numpy()), shift, atol=1e-5)
    segmenter = segmenter_of(tmp_path, presence)
    frozen = about(segmenter.model, "tiny", segmenter.prompts(NAMES))
    assert frozen.adjustment == (0.0, -1.5, 0.0, 0.0)
    assert About.from_json(frozen.to_json(), "here") == frozen
    assert about(segmenter.model, "tiny", None).adjustment == ()


def test_smoothed_frames_are_labelled_with_it() -> None:
    logits = np.array([[[1.0]], [[0.5]]], dtype=np.float32)
    frame = Segmentation(np.zeros((8, 8), np.int32), ("a", "b"), logits, Image.new("RGB", (8, 8)))
    for adjustment, winner in ((None, "a"), (torch.tensor([-1.0, 0.0]), "b")):
        smoother = Smoother(CONFIG, 0.5, adjustment=adjustment)
        smoother.next(frame)
        assert smoother.next(frame).areas == {winner: 1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"presence": -1.0}, "presence"),
        ({"presence": math.nan}, "presence"),
        ({"presence": 1, "resize_scores": True}, "presence"),
        ({"matching": Matching(logit_adjustment=0.2), "resize_scores": True}, "logit_adjustment"),
    ],
)
def test_what_it_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**changes)
