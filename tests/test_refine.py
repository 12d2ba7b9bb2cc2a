"""Inference II: which regions become prompts, what is replaced, and that the photo is encoded once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dpseg.cache import EmbeddingCache
from dpseg.config import ModelConfig, RefineConfig
from dpseg.model.dpseg import DPSeg
from dpseg.model.prompt_encoding import crop_rows
from dpseg.model.prompting import build_prompts
from dpseg.prompts.prompt_set import PromptSet
from dpseg.prompts.visual import crop_region
from dpseg.refine import find_regions, refine, stack_embeddings

CONFIG = ModelConfig(encoder="tiny", image_size=64, keep_aspect=True, templates=2, logit_scale=10.0, tune_encoder=False)

LENIENT = RefineConfig(min_confidence=0.5)
"""The scores of these models lie near one half."""


@pytest.fixture(scope="module")
def model() -> DPSeg:
    torch.manual_seed(0)
    return DPSeg(CONFIG).eval()


@pytest.fixture(scope="module")
def prompts(model: DPSeg) -> PromptSet:
    return build_prompts(model.encoder, ["a", "b", "c"], None, 2, EmbeddingCache("/nowhere/at/all"))


def blobs() -> Tensor:
    """(4, 20, 20): class 0 is everything but a 6 x 6 and a 3 x 3 square of 1, a speck of 2 and an uncertain 3."""
    logits = torch.full((4, 20, 20), -4.0)
    logits[0] = 2.0
    logits[1, 1:7, 1:7] = 3.0
    logits[1, 10:13, 10:13] = 4.0
    logits[2, 18, 18] = 5.0
    logits[:, 15:20, 0:5] = -3.0
    logits[3, 15:20, 0:5] = -1.0
    return logits


def test_regions_are_connected_large_and_certain() -> None:
    regions = find_regions(blobs(), RefineConfig(min_area=0.02, min_confidence=0.5, max_regions=3))
    assert [(region.class_index, int(region.mask.sum())) for region in regions] == [(0, 329), (1, 36), (1, 9)]
    assert regions[1].area == pytest.approx(36 / 400)
    assert regions[1].confidence == pytest.approx(torch.tensor(3.0).sigmoid().item())
    assert regions[1].mask[1:7, 1:7].all()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (RefineConfig(0.02, 0.5, 1), [0, 1]),
        (RefineConfig(0.0, 0.5, 3), [0, 1, 1, 2]),
        (RefineConfig(0.02, 0.2, 3), [0, 1, 1, 3]),
        (RefineConfig(0.05, 0.5, 3), [0, 1]),
        (RefineConfig(0.02, 0.9, 3), [1, 1]),
        (RefineConfig(0.95, 0.5, 3), []),
        (RefineConfig(0.02, 0.5, 0), []),
    ],
)
def test_thresholds_decide(config: RefineConfig, expected: list[int]) -> None:
    assert [region.class_index for region in find_regions(blobs(), config)] == expected


def test_classes_that_were_not_decoded_are_not_found() -> None:
    logits = blobs()
    logits[0] = -torch.inf
    assert {region.class_index for region in find_regions(logits, RefineConfig(0.0, 0.0, 9))} <= {1, 2, 3}


def test_found_classes_get_their_crops_and_the_others_keep_theirs(model: DPSeg, prompts: PromptSet) -> None:
    torch.manual_seed(1)
    photo = torch.rand(3, 96, 96)
    logits = torch.full((1, 3, 8, 8), -5.0)
    logits[0, 1, :4] = 2.0
    logits[0, 1, 6:] = 1.0
    logits[0, 2, 4:6] = -1.0  # not certain enough
    with torch.inference_mode():
        _, (refined,) = refine(model, [photo], model.encode(photo[None]), prompts, logits, LENIENT)
        masks = [torch.zeros(96, 96, dtype=torch.bool) for _ in range(2)]
        masks[0][:48], masks[1][72:] = True, True
        size = model.encoder.crop_size
        visual, stages = crop_rows(model.encoder, [crop_region(photo, mask, size) for mask in masks])
    old, new = prompts.embeddings, refined.embeddings
    assert refined.sources == (("text",), ("text", "crop"), ("text",))
    assert new.has_visual.tolist() == [False, True, False]
    torch.testing.assert_close(new.visual[1, 0], F.normalize(visual.mean(dim=0), dim=-1))
    torch.testing.assert_close(new.stages[0][1, 0], F.normalize(stages[0].mean(dim=0), dim=-1))
    assert torch.equal(new.visual[[0, 2]], old.visual[[0, 2]])
    assert torch.equal(new.text, old.text)


def test_the_photo_is_encoded_once(model: DPSeg, prompts: PromptSet, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = torch.rand(3, 64, 64)
    with torch.inference_mode():
        pyramid = model.encode(photo[None])
        logits = torch.zeros(1, 3, 8, 8)
        logits[:, 0] = 3.0
        monkeypatch.setattr(model, "encode", None)
        monkeypatch.setattr(model.encoder, "pyramid", None)
        second, (refined,) = refine(model, [photo], pyramid, prompts, logits, LENIENT)
        expected = model.decode(pyramid, refined.embeddings)
    torch.testing.assert_close(second, expected)


def test_nothing_found_means_inference_1(model: DPSeg, prompts: PromptSet) -> None:
    photo = torch.rand(3, 64, 64)
    logits = torch.full((1, 3, 8, 8), -9.0)
    with torch.inference_mode():
        second, refined = refine(model, [photo], model.encode(photo[None]), prompts, logits, LENIENT)
    assert second is logits
    assert refined == [prompts]


def test_a_batch_gives_what_single_photos_give(model: DPSeg, prompts: PromptSet) -> None:
    torch.manual_seed(2)
    photos = [torch.rand(3, 64, 64), torch.rand(3, 128, 128), torch.rand(3, 64, 64)]
    small = torch.stack([F.interpolate(photo[None], size=(64, 64))[0] for photo in photos])
    logits = torch.full((3, 3, 8, 8), -5.0)
    logits[0, 0], logits[1, 2, :4], logits[1, 1, 4:] = 1.0, 2.0, 3.0  # nothing is found in the last
    with torch.inference_mode():
        together, sets = refine(model, photos, model.encode(small), prompts, logits, LENIENT)
        for number, photo in enumerate(photos):
            pyramid = model.encode(small[number : number + 1])
            alone, (one,) = refine(model, [photo], pyramid, prompts, logits[number : number + 1], LENIENT)
            assert one.sources == sets[number].sources
            if number < 2:
                torch.testing.assert_close(together[number], alone[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(together[2], model.decode(pyramid, prompts.embeddings)[0], atol=1e-4, rtol=1e-4)


def test_a_region_smaller_than_a_pixel_of_the_photo_still_gives_a_crop(model: DPSeg, prompts: PromptSet) -> None:
    photo = torch.rand(3, 5, 4)
    logits = torch.full((1, 3, 40, 40), -5.0)
    logits[0, 0], logits[0, 1, 7, 7] = 2.0, 5.0
    with torch.inference_mode():
        pyramid = model.encode(torch.rand(1, 3, 64, 64))
        second, (refined,) = refine(model, [photo], pyramid, prompts, logits, RefineConfig(0.0, 0.5, 3))
    assert refined.embeddings.has_visual.tolist() == [True, True, False]
    assert second.isfinite().all()


def test_stacking_adds_a_batch(prompts: PromptSet) -> None:
    stacked = stack_embeddings([prompts.embeddings, prompts.embeddings])
    assert stacked.text.shape == (2, *prompts.embeddings.text.shape)
    assert stacked.stages[1].shape == (2, *prompts.embeddings.stages[1].shape)
    assert stacked.has_text.shape == (2, 3)
