"""A sequence: prompts that are carried from photo to photo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dpseg.cache import EmbeddingCache
from dpseg.config import ModelConfig, RefineConfig
from dpseg.errors import ConfigError, ImageError
from dpseg.model.dpseg import DPSeg
from dpseg.prompts.prompt_set import PromptSet, VisualPrompts
from dpseg.result import Segmentation
from dpseg.scene import Scene
from dpseg.segmenter import Segmenter

CONFIG = ModelConfig(encoder="tiny", image_size=64, keep_aspect=True, templates=2, logit_scale=10.0, tune_encoder=False)
RED, BLUE, DARK = (220, 30, 20), (20, 40, 220), (150, 60, 20)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    torch.manual_seed(0)
    config = RefineConfig(min_confidence=0.0, keep=0.5)
    return Segmenter(DPSeg(CONFIG), refinement=config, cache=EmbeddingCache(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def colours(segmenter: Segmenter) -> PromptSet:
    pictures = {"red": Image.new("RGB", (32, 32), RED), "blue": Image.new("RGB", (32, 32), BLUE)}
    return segmenter.prompts(references=pictures)


def halves(left: tuple[int, int, int] = RED, right: tuple[int, int, int] = BLUE) -> Image.Image:
    photo = Image.new("RGB", (128, 64), left)
    photo.paste(right, (64, 0, 128, 64))
    return photo


def results_of(segmenter: Segmenter, colours: PromptSet, *photos: Image.Image) -> list[Segmentation]:
    results = [result for _, result in segmenter.stream(photos, colours, refine="sequence")]
    assert all(isinstance(result, Segmentation) for result in results)
    return [result for result in results if isinstance(result, Segmentation)]


def test_the_first_photo_is_that_of_inference_1_and_the_next_knows_it(segmenter: Segmenter, colours: PromptSet) -> None:
    first, second, third = results_of(segmenter, colours, halves(DARK), halves(), halves())
    plain = segmenter(halves(DARK), prompts=colours, refine=False)
    assert np.array_equal(first.logits, plain.logits)
    assert first.prompts == (("reference",), ("reference",))
    assert second.prompts == (("crop",), ("crop",))
    alone = segmenter(halves(), prompts=colours, refine=False).logits
    assert not np.allclose(second.logits, alone, atol=1e-3)
    assert not np.allclose(third.logits, second.logits, atol=1e-4)


def test_a_photo_knows_only_the_past(segmenter: Segmenter, colours: PromptSet) -> None:
    one = results_of(segmenter, colours, halves(DARK), halves(), halves())
    other = results_of(segmenter, colours, halves(DARK), halves(), halves(BLUE, RED))
    assert np.array_equal(one[1].logits, other[1].logits)
    again = results_of(segmenter, colours, halves())[0]  # another stream is another scene
    assert np.array_equal(again.logits, segmenter(halves(), prompts=colours, refine=False).logits)


def test_each_photo_is_decoded_once(segmenter: Segmenter, colours: PromptSet, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[None] = []
    original = DPSeg.decode_photo

    def counted(self: DPSeg, *arguments: object) -> object:
        calls.append(None)
        return original(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(DPSeg, "decode_photo", counted)
    results_of(segmenter, colours, halves(), halves(), halves())
    assert len(calls) == 3


def test_what_was_seen_long_ago_fades(segmenter: Segmenter, colours: PromptSet) -> None:
    """After the same photo again and again, the prompts are those of that photo, whatever came first."""
    results = results_of(segmenter, colours, halves(DARK), *[halves()] * 8)
    settled = results_of(segmenter, colours, *[halves()] * 9)
    near, far = (np.abs(results[n].logits - settled[-1].logits).max() for n in (8, 1))
    assert near < 0.1 * far


def test_what_was_given_keeps_its_share(segmenter: Segmenter, colours: PromptSet) -> None:
    """Carried prompts meet those given, not those that met them before."""
    embeddings = colours.embeddings
    s2, s3, s4 = (stage[:1].flip(-1) for stage in embeddings.stages)
    found = VisualPrompts(("red",), embeddings.visual[:1].flip(-1), (s2, s3, s4))
    scene = Scene(colours, RefineConfig(blend=0.5))
    scene.add(found)
    once = scene.prompts.embeddings.visual.clone()
    for _ in range(5):
        scene.add(found)
    torch.testing.assert_close(scene.prompts.embeddings.visual, once)
    assert scene.prompts.sources[0] == ("reference", "crop")


def test_a_photo_that_cannot_be_read_is_no_gap(segmenter: Segmenter, colours: PromptSet, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"nothing")
    images = [halves(DARK), tmp_path / "bad.png", halves()]
    _, (_, bad), (_, last) = segmenter.stream(images, colours, refine="sequence")
    assert isinstance(bad, ImageError)
    assert isinstance(last, Segmentation)
    assert np.array_equal(last.logits, results_of(segmenter, colours, halves(DARK), halves())[1].logits)


def test_a_sequence_takes_photos_one_by_one(segmenter: Segmenter, colours: PromptSet) -> None:
    with pytest.raises(ConfigError, match="batch size 4 does not go with a sequence"):
        segmenter.stream([halves()], colours, refine="sequence", batch_size=4)
    assert segmenter.stream([halves()], colours, refine="sequence", batch_size=1)


def test_pooled_prompts_need_no_crop(segmenter: Segmenter, colours: PromptSet, monkeypatch: pytest.MonkeyPatch) -> None:
    pooled = Segmenter(segmenter.model, refinement=RefineConfig(min_confidence=0.0, features="pooled"))
    monkeypatch.setattr(segmenter.model.encoder, "visual_features", None)
    result = pooled(halves(), prompts=colours, refine=True)
    assert result.prompts == (("pooled",), ("pooled",))
    assert (result.labels[:, :60] == 0).all()
    assert (result.labels[:, 68:] == 1).all()


@pytest.mark.parametrize("options", [{"core": 0.0}, {"core": 1.1}, {"blend": -0.1}, {"blend": 1.5}, {"keep": 1.0}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))} {next(iter(options.values()))}"):
        RefineConfig(**options)  # type: ignore[arg-type]
