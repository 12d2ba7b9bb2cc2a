"""A sequence: prompts that are carried from photo to photo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dpseg.config import RefineConfig
from dpseg.errors import ConfigError, ImageError
from dpseg.model.dpseg import DPSeg
from dpseg.prompts.prompt_set import PromptSet, VisualPrompts
from dpseg.result import Segmentation
from dpseg.scene import Scene
from dpseg.segmenter import Segmenter
from support.pictures import BLUE, RED, halves
from support.tiny import tiny_segmenter

DARK = halves(left=(150, 60, 20))


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    segmenter = tiny_segmenter(tmp_path_factory.mktemp("cache"))
    segmenter.refinement = RefineConfig(min_confidence=0.0, keep=0.5)
    return segmenter


def results_of(segmenter: Segmenter, colours: PromptSet, *photos: Image.Image) -> list[Segmentation]:
    results = [result for _, result in segmenter.stream(photos, colours, refine="sequence")]
    assert all(isinstance(result, Segmentation) for result in results)
    return results  # type: ignore[return-value]


def test_a_photo_knows_only_the_past_and_is_decoded_once(
    segmenter: Segmenter, colours: PromptSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[None] = []
    original = DPSeg.decode_photo

    def counted(self: DPSeg, *arguments: object) -> object:
        calls.append(None)
        return original(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(DPSeg, "decode_photo", counted)
        first, second, third = results_of(segmenter, colours, DARK, halves(), halves())
    assert len(calls) == 3
    dark, alone = (segmenter(photo, prompts=colours, refine=False).logits for photo in (DARK, halves()))
    assert np.array_equal(first.logits, dark)
    assert first.prompts == (("reference",), ("reference",))
    assert second.prompts == (("crop",), ("crop",))
    assert not np.allclose(second.logits, alone, atol=1e-3)
    assert not np.allclose(third.logits, second.logits, atol=1e-4)
    other = results_of(segmenter, colours, DARK, halves(), halves(left=BLUE, right=RED))
    assert np.array_equal(second.logits, other[1].logits)
    assert np.array_equal(results_of(segmenter, colours, halves())[0].logits, alone)  # another stream, another scene
    (tmp_path / "bad.png").write_bytes(b"nothing")  # a photo that cannot be read is no gap
    images: list[Image.Image | Path] = [DARK, tmp_path / "bad.png", halves()]
    _, (_, bad), (_, last) = segmenter.stream(images, colours, refine="sequence")
    assert isinstance(bad, ImageError)
    assert isinstance(last, Segmentation)
    assert np.array_equal(last.logits, second.logits)


def test_what_was_seen_long_ago_fades(segmenter: Segmenter, colours: PromptSet) -> None:
    """After the same photo again and again, the prompts are those of that photo, whatever came first."""
    results = results_of(segmenter, colours, DARK, *[halves()] * 8)
    settled = results_of(segmenter, colours, *[halves()] * 9)
    near, far = (np.abs(results[n].logits - settled[-1].logits).max() for n in (8, 1))
    assert near < 0.1 * far


def test_what_was_given_keeps_its_share(colours: PromptSet) -> None:
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


def test_pooled_prompts_need_no_crop(segmenter: Segmenter, colours: PromptSet, monkeypatch: pytest.MonkeyPatch) -> None:
    pooled = Segmenter(segmenter.model, refinement=replace(segmenter.refinement, features="pooled"))
    monkeypatch.setattr(segmenter.model.encoder, "visual_features", None)
    result = pooled(halves(), prompts=colours, refine=True)
    assert result.prompts == (("pooled",), ("pooled",))
    assert (result.labels[:, :60] == 0).all()
    assert (result.labels[:, 68:] == 1).all()


def test_what_is_out_of_range_is_refused(segmenter: Segmenter, colours: PromptSet) -> None:
    for option, value in (("core", 0.0), ("core", 1.1), ("blend", -0.1), ("blend", 1.5), ("keep", 1.0)):
        with pytest.raises(ConfigError, match=f"{option} {value}"):
            RefineConfig(**{option: value})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="batch size 4 does not go with a sequence"):
        segmenter.stream([halves()], colours, refine="sequence", batch_size=4)
    assert segmenter.stream([halves()], colours, refine="sequence", batch_size=1)
