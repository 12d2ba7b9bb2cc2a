"""What training showed often, taken out of labels when testing: from the words to each way to a label."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dpseg.cache import EmbeddingCache
from dpseg.config import ModelConfig
from dpseg.explain.origins import Origins
from dpseg.explain.pixel import explain_pixels
from dpseg.exporting import pixels
from dpseg.exporting.about import About
from dpseg.exporting.graph import about
from dpseg.matching import Matching
from dpseg.model import class_logits
from dpseg.model.class_logits import ClassLogits, Decoded, collect, presence_shift
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

CONFIG = ModelConfig(encoder="tiny", image_size=64, templates=2, logit_scale=20.0)
NAMES = ["wall", "cat", "sky", "red square"]
RED = Image.new("RGB", (40, 40), "red")


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
    counted.load_state_dict(model.encoder.state_dict())
    model.encoder = counted
    return Segmenter(model, cache=EmbeddingCache(tmp_path / "cache"))


def a_photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype=np.uint8)).resize((70, 90))


def some_logits(count: int = 12) -> Tensor:
    coarse = torch.randn(1, count, 4, 4, generator=torch.Generator().manual_seed(5))
    return F.interpolate(coarse, (10, 14), mode="bilinear")[0]


def test_a_class_is_adjusted_by_its_best_known_name(tmp_path: Path) -> None:
    encoder, cache = Counted(CONFIG), EmbeddingCache(tmp_path)

    def built(strength: float, words: list[str] | None, **pictures: Image.Image) -> PromptEmbeddings:
        matching = Matching(logit_adjustment=strength)
        return build_prompts(encoder, words, pictures or None, 2, cache, None, matching).embeddings

    words = ["wall", "pet, animal, cat", "animal", "cat, wall"]
    wanted = torch.tensor([0.0, -0.6, 0.4, -0.6])
    torch.testing.assert_close(built(0.2, words).adjustment, wanted)
    shown = built(0.2, words, animal=RED, pet=RED).adjustment
    torch.testing.assert_close(shown, torch.tensor([0.0, -0.6, 0.2, -0.6]))  # of "animal" training knew a half
    assert built(0.0, words).adjustment is None
    assert built(0.2, None, cat=RED).adjustment is None, "pictures alone"


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
    plain = prompts.with_embeddings(replace(prompts.embeddings, adjustment=None)).save(tmp_path / "plain.safetensors")
    assert PromptSet.load(plain).embeddings.adjustment is None
    assert Prompts.load(plain).adjustment is None


@pytest.mark.parametrize("presence", [0.0, 0.7])
def test_labels_are_of_the_adjusted_logits_and_scores_of_the_plain_ones(presence: float) -> None:
    logits, adjustment = some_logits(), torch.linspace(-1, 1, 12)

    def found(values: Tensor, shift: Tensor | None = None) -> Decoded:
        blocks = [ClassLogits(part, values[part]) for part in torch.arange(12).split(5)]
        return collect(blocks, 12, LabelMap((40, 56)), presence, shift)

    mine, moved = found(logits, adjustment), found(logits + adjustment[:, None, None])
    np.testing.assert_array_equal(mine.labels(), moved.labels())
    assert (mine.labels() != found(logits).labels()).mean() > 0.05
    torch.testing.assert_close(mine.best, logits.gather(0, mine.leaders[None])[0])
    assert torch.equal(mine.logits, logits)
    torch.testing.assert_close(adjustment, torch.linspace(-1, 1, 12))  # the caller's is as it was


def test_very_many_classes_are_labelled_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, adjustment = some_logits(), torch.linspace(-1, 1, 12)
    for presence in (0.0, 0.7):
        blocks = [ClassLogits(part, logits[part]) for part in torch.arange(12).split(5)]
        whole = collect(blocks, 12, LabelMap((40, 56)), presence, adjustment).labels()
        with monkeypatch.context() as patched:
            patched.setattr(class_logits, "ALL_CLASSES", 10)
            patched.setattr(class_logits, "KEPT_CLASSES", 4)
            parts = collect(blocks, 12, LabelMap((40, 56)), presence, adjustment).labels()
        np.testing.assert_array_equal(parts, whole)


@pytest.mark.parametrize("presence", [0.0, 3.0])
def test_a_photo_is_explained_as_it_is_labelled(tmp_path: Path, presence: float) -> None:
    segmenter, photo = segmenter_of(tmp_path, presence), a_photo()
    prompts = segmenter.prompts(NAMES)
    result = segmenter(photo, prompts=prompts, refine=False)
    plain = segmenter_of(tmp_path, presence, 0.0)
    assert result.areas != plain(photo, NAMES, refine=False).areas
    height, width = result.labels.shape
    points = [(x, y) for x in range(3, width, width // 4) for y in range(3, height, height // 4)]
    _, reports = explain_pixels(segmenter, photo, points, prompts, Origins({}, {}, {}), refine=False, count=4)
    assert [report.candidates[0].name for report in reports] == [result.names[result.labels[y, x]] for x, y in points]
    for candidate in (one for report in reports for one in report.candidates):
        assert candidate.adjustment == pytest.approx(-1.5 if candidate.name == "cat" else 0.0)
        assert (candidate.presence < 0) == (presence > 0)
        assert candidate.rank == pytest.approx(candidate.logit + candidate.presence + candidate.adjustment)
    assert {"presence", "adjustment"} < reports[0].to_json()["classes"][0].keys()


@pytest.mark.parametrize("presence", [0.0, 0.7])
def test_an_export_labels_with_it_too(tmp_path: Path, presence: float) -> None:
    logits, adjustment = 3 * some_logits(), torch.linspace(-1, 1, 12)
    blocks = [ClassLogits(torch.arange(12), logits)]
    facts = About(1, "0", "tiny", "print", 64, True, None, 32, 1, 1, (), presence, False)
    found = collect(blocks, 12, LabelMap((40, 56)), presence, adjustment)
    labels, means = pixels.label_map(logits.numpy(), (40, 56), facts, None, adjustment.numpy())
    assert (labels == found.labels()).mean() > 0.999
    np.testing.assert_allclose(means, found.labelling.mean_scores(12), atol=1e-3)
    shift = presence_shift(blocks, 12, presence, adjustment)
    np.testing.assert_allclose(pixels.presence_shift(logits.numpy(), presence, adjustment.numpy()), shift, atol=1e-5)
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
