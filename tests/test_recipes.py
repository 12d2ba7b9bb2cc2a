"""Every recipe in configs/ builds its model and takes one real step: base and large on random weights, small crops."""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dpseg.commands.train import with_overrides
from dpseg.plain_values import read_yaml
from dpseg.recipe import TrainConfig
from dpseg.training.loop import Progress, launch, prepare, train
from support.labelled_set import write_set

CONFIGS = Path(__file__).parent.parent / "configs"


class Steps(list[Progress]):
    """Keeps what a run tells."""

    def start(self, step: int) -> None:
        assert step == 0

    def add(self, progress: Progress) -> None:
        self.append(progress)


@pytest.mark.parametrize(
    "recipe", ["lite", "lite-student", "lite-names", "lite-again", "lite-upsampled", "lite-wide", "base", "large"]
)
def test_it_takes_a_step(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_set(tmp_path / "shapes", photos=3)
    words = f"--data_root {tmp_path} --out {tmp_path / 'run'} --iterations 1 --batch_size 1 --crop 64 --photo_size 64"
    words += " --workers 0 --regions_per_class 1 --model.weights random --exemplars [] --grad_checkpointing true"
    values = {**read_yaml(CONFIGS / f"{recipe}.yaml"), "data": [{"name": "shapes"}]}
    values.pop("start_from", None)  # the model of another recipe
    config = TrainConfig.from_dict(with_overrides(values, words.split()))
    fabric = launch(config, "cpu")
    setup = prepare(config, lambda _: None, fabric)
    before = {name: tensor.clone() for name, tensor in setup.model.named_parameters()}
    steps = Steps()
    train(setup, fabric, False, lambda _: None, steps)
    assert len(steps) == 1
    assert torch.isfinite(torch.tensor(steps[0].loss))
    assert set(steps[0].parts) == ({"ce", "bce", "aux", "keep"} if recipe.startswith("lite") else {"bce", "heads"})
    tuned, projections = setup.model.encoder.parameter_groups()
    trained = {id(p) for p in [*tuned, *projections, *setup.model.decoder.parameters()]}
    moved = {name for name, p in setup.model.named_parameters() if not torch.equal(p, before[name])}
    for name, parameter in setup.model.named_parameters():
        if id(parameter) not in trained and not name.startswith("baseline."):
            assert name not in moved
    assert any(name.startswith("decoder.") for name in moved)  # of lite, the head alone: it starts at zero
    assert any(id(setup.model.get_parameter(name)) in {id(p) for p in tuned} for name in moved)
    with capsys.disabled():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"\n{recipe}: one step at crop 64, peak memory of this process so far {peak:.1f} GB")


def test_lite_small_is_lite_but_for_its_size() -> None:
    """So it takes a step as lite does: its model and all else that a step reads are the same."""
    lite, small = (TrainConfig.from_dict(read_yaml(CONFIGS / f"{name}.yaml")) for name in ("lite", "lite-small"))
    assert [(one.name, one.weight) for one in small.data] == [("coco_things", 8), ("coco_panoptic", 5), ("clothing", 2)]
    assert set(small.data) <= set(lite.data)
    assert (small.iterations, small.refined_from) == (lite.iterations // 4, lite.refined_from // 4)
    assert small.out != lite.out
    assert (
        replace(small, data=lite.data, out=lite.out, iterations=lite.iterations, refined_from=lite.refined_from) == lite
    )
