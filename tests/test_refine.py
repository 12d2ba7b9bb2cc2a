"""Inference II: which regions become prompts, what is replaced, and that the photo is encoded once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dpseg.cache import EmbeddingCache
from dpseg.config import ModelConfig, RefineConfig
from dpseg.images import load_image, to_tensor
from dpseg.model.dpseg import DPSeg
from dpseg.model.prompt_encoding import crop_rows
from dpseg.model.prompting import build_prompts
from dpseg.photos import Encoded, Photo
from dpseg.prompts.prompt_set import PromptSet, VisualPrompts
from dpseg.prompts.visual import crop_region
from dpseg.refine import Region, find_regions, meet, prompts_of, refine
from dpseg.scene import Scene

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


def found_in(logits: Tensor, config: RefineConfig = LENIENT) -> list[Region]:
    best, leaders = logits.max(dim=0)
    return find_regions(best, leaders, config)


def as_read(photo: Tensor) -> Tensor:
    """What is left of (3, H, W) in a picture of 8 bits."""
    return to_tensor(load_image(photo))


def encoded(model: DPSeg, *photos: Tensor) -> Encoded:
    """Photos (3, H, W) that the encoder sees at 64 x 64."""
    inputs = [F.interpolate(photo[None], size=(64, 64))[0] for photo in photos]
    images = [load_image(photo) for photo in photos]
    return Encoded(
        tuple(Photo(image, small, None) for image, small in zip(images, inputs, strict=True)),
        model.encode(torch.stack(inputs)),
    )


def test_regions_are_connected_large_and_certain() -> None:
    regions = found_in(blobs(), RefineConfig(min_area=0.02, min_confidence=0.5, max_regions=3))
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
    assert [region.class_index for region in found_in(blobs(), config)] == expected


def test_classes_that_were_not_decoded_are_not_found() -> None:
    logits = blobs()
    logits[0] = -torch.inf
    assert {region.class_index for region in found_in(logits, RefineConfig(0.0, 0.0, 9))} <= {1, 2, 3}


def test_found_classes_get_their_crops_and_the_others_keep_theirs(model: DPSeg, prompts: PromptSet) -> None:
    torch.manual_seed(1)
    photo = as_read(torch.rand(3, 96, 96))
    logits = torch.full((1, 3, 8, 8), -5.0)
    logits[0, 1, :4] = 2.0
    logits[0, 1, 6:] = 1.0
    logits[0, 2, 4:6] = -1.0  # not certain enough
    with torch.inference_mode():
        (refined,) = refine(model, encoded(model, photo), prompts, [found_in(logits[0])], LENIENT)
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


def test_the_photo_is_not_encoded_again(model: DPSeg, prompts: PromptSet, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = torch.rand(3, 64, 64)
    with torch.inference_mode():
        one = encoded(model, photo)
        logits = torch.zeros(3, 8, 8)
        logits[0] = 3.0
        monkeypatch.setattr(model, "encode", None)
        monkeypatch.setattr(model.encoder, "pyramid", None)
        (refined,) = refine(model, one, prompts, [found_in(logits)], LENIENT)
        assert not torch.allclose(
            model.decode(one.pyramid, refined.embeddings), model.decode(one.pyramid, prompts.embeddings), atol=1e-3
        )


def test_nothing_found_means_inference_1(model: DPSeg, prompts: PromptSet) -> None:
    photo = torch.rand(3, 64, 64)
    with torch.inference_mode():
        nothing = found_in(torch.full((3, 8, 8), -9.0))
        assert refine(model, encoded(model, photo), prompts, [nothing], LENIENT)[0] is prompts


def test_a_batch_gives_what_single_photos_give(model: DPSeg, prompts: PromptSet) -> None:
    torch.manual_seed(2)
    photos = [torch.rand(3, 64, 64), torch.rand(3, 128, 128), torch.rand(3, 64, 64)]
    logits = torch.full((3, 3, 8, 8), -5.0)
    logits[0, 0], logits[1, 2, :4], logits[1, 1, 4:] = 1.0, 2.0, 3.0  # nothing is found in the last
    with torch.inference_mode():
        regions = [found_in(one) for one in logits]
        together = refine(model, encoded(model, *photos), prompts, regions, LENIENT)
        for photo, found, mine in zip(photos, regions, together, strict=True):
            (alone,) = refine(model, encoded(model, photo), prompts, [found], LENIENT)
            assert alone.sources == mine.sources
            torch.testing.assert_close(mine.embeddings.visual, alone.embeddings.visual)
            torch.testing.assert_close(mine.embeddings.stages, alone.embeddings.stages)
    assert together[2] is prompts


def test_a_region_smaller_than_a_pixel_of_the_photo_still_gives_a_crop(model: DPSeg, prompts: PromptSet) -> None:
    photo = torch.rand(3, 5, 4)
    logits = torch.full((3, 40, 40), -5.0)
    logits[0], logits[1, 7, 7] = 2.0, 5.0
    with torch.inference_mode():
        config = RefineConfig(0.0, 0.5, 3)
        (refined,) = refine(model, encoded(model, photo), prompts, [found_in(logits, config)], config)
    assert refined.embeddings.has_visual.tolist() == [True, True, False]
    assert refined.embeddings.visual.isfinite().all()


def test_a_core_is_the_surest_part_of_a_region() -> None:
    config = RefineConfig(min_area=0.02, min_confidence=0.5, max_regions=3, core=0.25)
    logits = blobs()
    logits[1, 1:4, 1:4] = 3.5  # 9 of 36 pixels are surer than the others
    (square,) = [region for region in found_in(logits, config) if region.class_index == 1 and region.area > 0.05]
    assert square.mask.nonzero().tolist() == [[y, x] for y in (1, 2, 3) for x in (1, 2, 3)]
    assert square.area == pytest.approx(36 / 400)  # of the whole region
    assert square.confidence == pytest.approx(torch.tensor(3.5).sigmoid().item())


def test_pooled_prompts_are_the_features_under_the_region(model: DPSeg, prompts: PromptSet) -> None:
    torch.manual_seed(3)
    photos = torch.rand(3, 64, 64), torch.rand(3, 64, 64)
    logits = torch.full((3, 8, 8), -5.0)
    logits[1, :4] = 2.0
    config = RefineConfig(min_confidence=0.5, features="pooled")
    with torch.inference_mode():
        both = encoded(model, *photos)
        none, found = prompts_of(model.encoder, both, prompts.names, [[], found_in(logits)], config)
        maps = model.encoder.prompt_pyramid(both[1].inputs(), both[1].pyramid)
    assert none is None
    assert found is not None
    assert (found.names, found.source) == (("b",), "pooled")
    half = maps.dense.shape[-2] // 2
    expected = F.normalize(maps.dense[0, :, :half].mean(dim=(1, 2)), dim=0)
    torch.testing.assert_close(found.visual[0, 0], expected, atol=1e-5, rtol=1e-4)


def test_blending_averages_with_the_pictures_that_a_class_had(prompts: PromptSet) -> None:
    def pictures(direction: int) -> VisualPrompts:
        stages = [torch.zeros(1, 1, stage.shape[-1]) for stage in prompts.embeddings.stages]
        visual = torch.zeros(1, 1, prompts.embeddings.visual.shape[-1])
        for one in (visual, *stages):
            one[..., direction] = 1.0
        s2, s3, s4 = stages
        return VisualPrompts(("b",), visual, (s2, s3, s4), "reference" if direction == 0 else "crop")

    shown = prompts.replace(pictures(0))
    assert torch.equal(meet(shown, pictures(1), 1.0).embeddings.visual[1], pictures(1).visual[0])
    mixed = meet(shown, pictures(1), 0.25)
    ratio = mixed.embeddings.visual[1, 0, 1] / mixed.embeddings.visual[1, 0, 0]
    assert ratio == pytest.approx(1 / 3)
    assert mixed.sources[1] == ("text", "reference", "crop")
    alone = meet(prompts, pictures(1), 0.25)
    assert torch.equal(alone.embeddings.visual[1], pictures(1).visual[0])

    scene = Scene(prompts, RefineConfig(keep=0.75))
    scene.add(pictures(0))
    scene.add(None)
    assert torch.equal(scene.prompts.embeddings.visual[1], pictures(0).visual[0])
    scene.add(pictures(1))
    carried = scene.prompts.embeddings.visual[1, 0]
    assert carried[1] / carried[0] == pytest.approx(1 / 3)
    assert scene.prompts.sources[0] == ("text",)
