"""Every recipe in configs/ takes one real step, on small crops: with a small network here, with its own if slow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from dpseg.commands.train import with_overrides
from dpseg.plain_values import read_yaml
from dpseg.recipe import TrainConfig
from dpseg.training.loop import Progress, launch, prepare, train
from support.commands import ROOT
from support.labelled_set import write_set

if TYPE_CHECKING:
    from dpseg.model.lite import LiteEncoder
    from dpseg.segmenter import Segmenter

RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
CLIP = ("base", "large")
PARTS = {"ce": "cross_entropy", "bce": "bce", "aux": "auxiliary", "heads": "heads", "keep": "retention"}


def recipe_of(name: str) -> TrainConfig:
    return TrainConfig.from_dict(read_yaml(ROOT / "configs" / f"{name}.yaml"))


class Steps(list[Progress]):
    """Keeps what a run tells."""

    def start(self, step: int) -> None:
        assert step == 0

    def add(self, progress: Progress) -> None:
        self.append(progress)


def take_a_step(recipe: str, folder: Path, *more: str) -> None:
    write_set(folder / "shapes", photos=3)
    words = f"--data_root {folder} --out {folder / 'run'} --iterations 1 --batch_size 1 --crop 64 --photo_size 64"
    words += " --workers 0 --regions_per_class 1 --model.weights random --exemplars [] --grad_checkpointing true"
    values = {**read_yaml(ROOT / "configs" / f"{recipe}.yaml"), "data": [{"name": "shapes"}]}
    values.pop("start_from", None)  # the model of another recipe
    config = TrainConfig.from_dict(with_overrides(values, [*words.split(), *more]))
    fabric = launch(config, "cpu")
    setup = prepare(config, lambda _: None, fabric)
    before = {name: tensor.clone() for name, tensor in setup.model.named_parameters()}
    steps = Steps()
    train(setup, fabric, False, lambda _: None, steps)
    assert len(steps) == 1
    assert torch.isfinite(torch.tensor(steps[0].loss))
    parts = {part for part, weight in PARTS.items() if getattr(config, weight) > 0}
    assert set(steps[0].parts) == (parts if config.model.encoder == "lite" else parts - {"keep"})
    tuned, projections = setup.model.encoder.parameter_groups()
    trained = {id(p) for p in [*tuned, *projections, *setup.model.decoder.parameters()]}
    moved = {name for name, p in setup.model.named_parameters() if not torch.equal(p, before[name])}
    for name, parameter in setup.model.named_parameters():
        if id(parameter) not in trained and not name.startswith("baseline."):
            assert name not in moved
    assert any(name.startswith("decoder.") for name in moved)  # of lite, the head alone: it starts at zero
    assert any(id(setup.model.get_parameter(name)) in {id(p) for p in tuned} for name in moved)


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name not in CLIP])
def test_a_recipe_of_lite_takes_a_step_with_the_tiny_encoder(recipe: str, tmp_path: Path) -> None:
    assert recipe_of(recipe).model.encoder == "lite"
    take_a_step(recipe, tmp_path, "--model.encoder", "tiny")


@pytest.mark.parametrize("recipe", CLIP)
def test_a_recipe_of_clip_takes_a_step_with_a_small_convnext(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dpseg.model.clip_weights import CLIP_SOURCES
    from support.small_clip import small_clip

    assert recipe_of(recipe).model.encoder == recipe
    with small_clip(tmp_path):
        monkeypatch.setitem(CLIP_SOURCES, "large", CLIP_SOURCES["base"])
        take_a_step(recipe, tmp_path)


def test_lite_takes_a_step_with_its_own_networks(
    lite: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for ImageNet's thousand names, whose features dpseg-lite has kept: the slow tests encode them again."""
    from dpseg.model.lite import LiteEncoder

    encoder = lite.model.encoder
    assert isinstance(encoder, LiteEncoder)
    kept, encode = encoder.text_map.support, LiteEncoder.text_features
    checked = []

    def text_features(self: LiteEncoder, texts: list[str]) -> torch.Tensor:
        if len(texts) != len(kept):
            return encode(self, texts)
        some = [0, 500, 999]
        torch.testing.assert_close(
            encode(self, [texts[number] for number in some]), kept[some], atol=2e-4, rtol=0
        )  # kept in 16 bits
        checked.append(some)
        return kept.clone()

    monkeypatch.setattr(LiteEncoder, "text_features", text_features)
    take_a_step("lite", tmp_path)
    assert len(checked) == 1


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_it_takes_a_step_at_full_size(recipe: str, tmp_path: Path) -> None:
    take_a_step(recipe, tmp_path)


def test_lite_small_is_lite_but_for_its_size() -> None:
    """So it takes a step as lite does: its model and all else that a step reads are the same."""
    lite, small = recipe_of("lite"), recipe_of("lite-small")
    assert [(one.name, one.weight) for one in small.data] == [("coco_things", 8), ("coco_panoptic", 5), ("clothing", 2)]
    assert set(small.data) <= set(lite.data)
    assert (small.iterations, small.refined_from) == (lite.iterations // 4, lite.refined_from // 4)
    assert small.out != lite.out
    size = {"data": lite.data, "out": lite.out, "iterations": lite.iterations, "refined_from": lite.refined_from}
    assert replace(small, **size) == lite  # type: ignore[arg-type]
