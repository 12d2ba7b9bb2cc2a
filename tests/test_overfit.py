"""A model that cannot learn one photo by heart cannot learn anything: from training to the saved model's label map."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpseg.config import EvalConfig, ModelConfig
from dpseg.data.folder import FolderDataset
from dpseg.evaluation.evaluate import evaluate
from dpseg.recipe import DataSource, TrainConfig
from dpseg.segmenter import Segmenter
from dpseg.training.export import export
from dpseg.training.loop import launch, prepare, train
from support.labelled_set import write_set


def quiet(line: str) -> None:
    """Takes log lines and says nothing."""


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    write_set(tmp_path / "data" / "one", photos=1)
    model = ModelConfig(
        encoder="tiny", image_size=96, templates=1, widths=(16, 12, 8, 8), image_widths=(4, 4, 4), heads=2
    )
    return TrainConfig(
        model=model,
        data=(DataSource("one"),),
        data_root=str(tmp_path / "data"),
        out=str(tmp_path / "run"),
        iterations=150,
        batch_size=1,
        crop=96,
        photo_size=96,
        scale=(1.0, 1.0),
        colour_jitter=0.0,
        paste=0.0,
        classes=3,
        prompt_mix=(1.0, 0.0, 0.0),
        mixed_prompts=0.0,
        refined=0.0,
        retention=0.0,
        warmup=5,
        ema=0.0,
        lr=0.01,
        encoder_lr=1.0,
    )


def test_one_photo_is_learned_by_heart(config: TrainConfig) -> None:
    setup = prepare(config, quiet)
    photo = FolderDataset(Path(config.data_root) / "one", "val")
    rule = EvalConfig(prompts=("text",), refine=(False,))

    def pixels(folder: Path) -> float:
        return evaluate(Segmenter.from_pretrained(str(folder)), photo, rule).rows[0].matrix.pixel_accuracy

    setup.model.save_pretrained(Path(config.out) / "before")
    assert pixels(Path(config.out) / "before") < 0.8
    model = train(setup, launch(config, "cpu"), False, quiet)
    export(model, setup, Path(config.out) / "final")
    assert pixels(Path(config.out) / "final") > 0.95
