"""Inference II: which regions become prompts, what is replaced, that the photo is encoded once; and `--refine`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dpseg.cache import EmbeddingCache
from dpseg.cli import run
from dpseg.commands.refinement import Refinement, read_refinement, with_values
from dpseg.config import Refine, RefineConfig
from dpseg.errors import ConfigError
from dpseg.images import load_image, to_tensor
from dpseg.model.dpseg import DPSeg
from dpseg.model.prompt_encoding import crop_rows
from dpseg.model.prompting import build_prompts
from dpseg.photos import Encoded, Photo
from dpseg.prompts.prompt_set import PromptSet, VisualPrompts
from dpseg.prompts.visual import crop_region
from dpseg.refine import Region, find_regions, meet, prompts_of, refine
from dpseg.scene import Scene
from support.pictures import RED, plain
from support.tiny import save_tiny, tiny_model

LENIENT = RefineConfig(min_confidence=0.5)
"""The scores of these models lie near one half."""


@pytest.fixture(scope="module")
def network() -> DPSeg:
    return tiny_model(templates=2)


@pytest.fixture(scope="module")
def prompts(network: DPSeg) -> PromptSet:
    return build_prompts(network.encoder, ["a", "b", "c"], None, 2, EmbeddingCache("/nowhere/at/all"))


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


def photos_of(*sizes: tuple[int, int], seed: int = 0) -> list[Tensor]:
    """Photos (3, H, W) of noise."""
    random = torch.Generator().manual_seed(seed)
    return [torch.rand(3, *size, generator=random) for size in sizes]


def encoded(network: DPSeg, *photos: Tensor) -> Encoded:
    """Photos that the encoder sees at 64 x 64."""
    inputs = [F.interpolate(photo[None], size=(64, 64))[0] for photo in photos]
    pairs = zip(photos, inputs, strict=True)
    return Encoded(
        tuple(Photo(load_image(photo), small, None) for photo, small in pairs), network.encode(torch.stack(inputs))
    )


def test_regions_are_connected_large_and_certain_and_of_decoded_classes() -> None:
    logits = blobs()
    regions = found_in(logits, RefineConfig(min_area=0.02, min_confidence=0.5, max_regions=3))
    assert [(region.class_index, int(region.mask.sum())) for region in regions] == [(0, 329), (1, 36), (1, 9)]
    assert regions[1].area == pytest.approx(36 / 400)
    assert regions[1].confidence == pytest.approx(torch.tensor(3.0).sigmoid().item())
    assert regions[1].mask[1:7, 1:7].all()
    logits[0] = -torch.inf  # not decoded
    assert {region.class_index for region in found_in(logits, RefineConfig(0.0, 0.0, 9))} <= {1, 2, 3}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ((0.02, 0.5, 1), [0, 1]),
        ((0.0, 0.5, 3), [0, 1, 1, 2]),
        ((0.02, 0.2, 3), [0, 1, 1, 3]),
        ((0.05, 0.5, 3), [0, 1]),
        ((0.02, 0.9, 3), [1, 1]),
        ((0.95, 0.5, 3), []),
        ((0.02, 0.5, 0), []),
    ],
)
def test_thresholds_decide(config: tuple[float, float, int], expected: list[int]) -> None:
    assert [region.class_index for region in found_in(blobs(), RefineConfig(*config))] == expected


@torch.inference_mode()
def test_found_classes_get_their_crops_and_the_others_keep_theirs(network: DPSeg, prompts: PromptSet) -> None:
    photo = to_tensor(load_image(photos_of((96, 96))[0]))  # what is left of it in 8 bits
    logits = torch.full((3, 8, 8), -5.0)
    logits[1, :4], logits[1, 6:], logits[2, 4:6] = 2.0, 1.0, -1.0  # the last is not certain enough
    (refined,) = refine(network, encoded(network, photo), prompts, [found_in(logits)], LENIENT)
    masks = torch.zeros(2, 96, 96, dtype=torch.bool)
    masks[0, :48], masks[1, 72:] = True, True
    size = network.encoder.crop_size
    visual, stages = crop_rows(network.encoder, [crop_region(photo, mask, size) for mask in masks])
    old, new = prompts.embeddings, refined.embeddings
    assert refined.sources == (("text",), ("text", "crop"), ("text",))
    assert new.has_visual.tolist() == [False, True, False]
    torch.testing.assert_close(new.visual[1, 0], F.normalize(visual.mean(dim=0), dim=-1))
    torch.testing.assert_close(new.stages[0][1, 0], F.normalize(stages[0].mean(dim=0), dim=-1))
    assert torch.equal(new.visual[[0, 2]], old.visual[[0, 2]])
    assert torch.equal(new.text, old.text)


@torch.inference_mode()
def test_the_photo_is_not_encoded_again(network: DPSeg, prompts: PromptSet, monkeypatch: pytest.MonkeyPatch) -> None:
    one = encoded(network, *photos_of((64, 64)))
    logits = torch.zeros(3, 8, 8)
    logits[0] = 3.0
    monkeypatch.setattr(network, "encode", None)
    monkeypatch.setattr(network.encoder, "pyramid", None)
    (refined,) = refine(network, one, prompts, [found_in(logits)], LENIENT)
    before, after = (network.decode(one.pyramid, of.embeddings) for of in (prompts, refined))
    assert not torch.allclose(before, after, atol=1e-3)


@torch.inference_mode()
def test_a_batch_gives_what_single_photos_give_and_nothing_found_means_inference_1(
    network: DPSeg, prompts: PromptSet
) -> None:
    photos = photos_of((64, 64), (128, 128), (64, 64), seed=2)
    logits = torch.full((3, 3, 8, 8), -5.0)
    logits[0, 0], logits[1, 2, :4], logits[1, 1, 4:] = 1.0, 2.0, 3.0  # nothing is found in the last
    regions = [found_in(one) for one in logits]
    together = refine(network, encoded(network, *photos), prompts, regions, LENIENT)
    alone = [
        refine(network, encoded(network, photo), prompts, [found], LENIENT)[0]
        for photo, found in zip(photos, regions, strict=True)
    ]
    for one, mine in zip(alone, together, strict=True):
        assert one.sources == mine.sources
        torch.testing.assert_close(mine.embeddings.visual, one.embeddings.visual)
        torch.testing.assert_close(mine.embeddings.stages, one.embeddings.stages)
    assert together[2] is alone[2] is prompts


@torch.inference_mode()
def test_a_region_smaller_than_a_pixel_of_the_photo_still_gives_a_crop(network: DPSeg, prompts: PromptSet) -> None:
    logits = torch.full((3, 40, 40), -5.0)
    logits[0], logits[1, 7, 7] = 2.0, 5.0
    config = RefineConfig(0.0, 0.5, 3)
    (refined,) = refine(network, encoded(network, *photos_of((5, 4))), prompts, [found_in(logits, config)], config)
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


@torch.inference_mode()
def test_pooled_prompts_are_the_features_under_the_region(network: DPSeg, prompts: PromptSet) -> None:
    logits = torch.full((3, 8, 8), -5.0)
    logits[1, :4] = 2.0
    config = RefineConfig(min_confidence=0.5, features="pooled")
    both = encoded(network, *photos_of((64, 64), (64, 64), seed=3))
    none, found = prompts_of(network.encoder, both, prompts.names, [[], found_in(logits)], config)
    maps = network.encoder.prompt_pyramid(both[1].inputs(), both[1].pyramid)
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


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ("a.jpg --refine", "a.jpg --refine=on"),
        ("--refine a.jpg", "--refine=on a.jpg"),
        ("--refine --text cat", "--refine=on --text cat"),
        ("--refine sequence a.jpg", "--refine sequence a.jpg"),
        ("--refine Cores,pooled a.jpg", "--refine Cores,pooled a.jpg"),
        ("--refine cores,pool a.jpg", "--refine cores,pool a.jpg"),
        ("--refine=off a.jpg", "--refine=off a.jpg"),
        ("--no-refine a.jpg", "--refine=off a.jpg"),
        ("--refine -- --refine", "--refine=on -- --refine"),
        ("a.jpg -- --no-refine", "a.jpg -- --no-refine"),
        ("", ""),
    ],
)
def test_a_flag_gets_its_value(arguments: str, written: str) -> None:
    assert with_values(arguments.split()) == written.split()


@pytest.mark.parametrize(
    ("text", "refine", "config"),
    [
        (None, None, {}),
        ("on", True, {}),
        ("off", False, {}),
        (" Cores ", True, {"core": 0.5}),
        ("pooled,cores", True, {"core": 0.5, "features": "pooled"}),
        ("sequence", "sequence", {}),
        ("pooled, sequence", "sequence", {"features": "pooled"}),
    ],
)
def test_words_say_how(text: str | None, refine: Refine, config: dict[str, Any]) -> None:
    assert read_refinement(text) == Refinement(refine, RefineConfig(**config))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sequnce", "did you mean 'sequence'"),
        ("on,cores", "is not clear"),
        ("on,off", "is not clear"),
        (",", "not clear"),
    ],
)
def test_other_words_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_refinement(text)


@pytest.mark.parametrize(
    ("options", "sources"),
    [
        ("", ["reference", "reference"]),
        ("--no-refine", ["reference", "reference"]),
        ("--refine", ["crop", "crop"]),
        ("--no-refine --refine", ["crop", "crop"]),
        ("--refine pooled", ["pooled", "pooled"]),
        ("--refine=sequence", ["reference", "crop"]),
        ("--refine pooled,sequence", ["reference", "pooled"]),
        ("-m refining", ["crop", "crop"]),
        ("-m refining --refine pooled", ["pooled", "pooled"]),
        ("-m refining --no-refine", ["reference", "reference"]),
    ],
)
@pytest.mark.usefixtures("workplace")
def test_predict_refines_as_asked(model: str, options: str, sources: list[str]) -> None:
    Path("walk").mkdir()
    for name in ("1", "2"):
        plain(RED, 64).save(f"walk/{name}.png")
    save_tiny(Path("refining"), refine=True, tune_encoder=True)
    asked = ["walk", "--ref", "red=red.png", "-o", "out", "-f", "json"]
    assert run(["predict", "-m", model, *options.split(), *asked]) == 0
    results = [json.loads(Path(f"out/{name}_result.json").read_text()) for name in ("1", "2")]
    assert [result["classes"][0]["prompts"] for result in results] == [[source] for source in sources]
