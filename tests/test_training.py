"""Training on a few photos with the tiny encoder: what is learned, resumed, refused, and what a step is made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from dpseg.config import EvalConfig, PromptKind
from dpseg.data.folder import FolderDataset
from dpseg.errors import ConfigError
from dpseg.evaluation.evaluate import evaluate
from dpseg.model.cost_volume import cosine_volume
from dpseg.model.dpseg import DPSeg
from dpseg.recipe import TrainConfig
from dpseg.segmenter import Segmenter
from dpseg.training import losses
from dpseg.training.average import moving_average
from dpseg.training.corpus import IGNORE, NONE, load_corpus
from dpseg.training.export import export
from dpseg.training.loop import Progress, Setup, Watch, launch, prepare
from dpseg.training.loop import train as run_training
from dpseg.training.prompt_tables import PromptTables
from dpseg.training.sampler import Batch
from support.labelled_set import write_set
from support.tiny_recipe import tiny_recipe


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return tiny_recipe(tmp_path)


def quiet(line: str) -> None:
    """Takes log lines and says nothing."""


def train(setup: Setup, resume: bool = False, watch: Watch | None = None, lines: list[str] | None = None) -> DPSeg:
    log = quiet if lines is None else lines.append
    return run_training(setup, launch(setup.config, "cpu"), resume, log, watch)


def weights(model: DPSeg) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def tables_of(setup: Setup, photos: list[int]) -> PromptTables:
    """The prompts of all names for a batch with these photos."""
    return setup.prompts.tables(setup.model.encoder, photos, seeded())


def accuracy(folder: Path, data: Path, kind: PromptKind) -> float:
    """The share of a split's pixels that a saved model labels as they are."""
    rule = EvalConfig(prompts=(kind,), refine=(False,), references=2)
    pool = None if kind == "text" else FolderDataset(data)
    report = evaluate(Segmenter.from_pretrained(folder), FolderDataset(data, "val"), rule, pool=pool)
    return report.rows[0].matrix.pixel_accuracy


def test_a_model_learns_the_shapes_up_to_the_label_map_of_the_saved_model(config: TrainConfig, tmp_path: Path) -> None:
    data = tmp_path / "data" / "shapes"
    (data / "val.txt").write_text("photo0\nphoto1")
    changes: dict[str, Any] = {"colour_jitter": 0.1, "paste": 0.0, "scale": (0.9, 1.2), "checkpoint_minutes": 9.0}
    setup = prepare(replace(config, iterations=100, **changes), quiet)
    setup.model.save_pretrained(tmp_path / "before")
    assert accuracy(tmp_path / "before", data, "both") < 0.8
    model = train(setup)
    batch = setup.sampler[10_000]
    prompts = setup.prompts.select(tables_of(setup, []), batch, model.encoder, seeded(), True)
    with torch.no_grad():
        labels = model(batch.images, prompts).argmax(dim=1)
    target = losses.to_local(batch.labels, batch.classes)
    known = batch.labels >= 0
    assert (labels == target)[known].float().mean() > 0.95
    again = DPSeg.from_pretrained(export(model, setup, tmp_path / "final"))
    torch.testing.assert_close(weights(again), weights(model), atol=2e-3, rtol=1e-3)
    assert accuracy(tmp_path / "final", data, "both") > 0.95


@pytest.mark.slow
def test_one_photo_is_learned_by_heart_from_words_alone(tmp_path: Path) -> None:
    """A model that cannot do this cannot learn anything."""
    data = write_set(tmp_path / "data" / "shapes", photos=1)
    config = tiny_recipe(
        tmp_path, {"image_size": 96}, iterations=150, batch_size=1, crop=96, photo_size=96, warmup=5,
        scale=(1.0, 1.0), colour_jitter=0.0, paste=0.0, prompt_mix=(1.0, 0.0, 0.0), mixed_prompts=0.0,
        checkpoint_minutes=9.0,
    )  # fmt: skip
    setup = prepare(config, quiet)
    setup.model.save_pretrained(tmp_path / "before")
    assert accuracy(tmp_path / "before", data, "text") < 0.8
    export(train(setup), setup, tmp_path / "final")
    assert accuracy(tmp_path / "final", data, "text") > 0.95


class StopAfter:
    """Interrupts a run after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def start(self, step: int) -> None:
        assert step < self.step

    def add(self, progress: Progress) -> None:
        if progress.step == self.step:
            raise KeyboardInterrupt


def test_a_resumed_run_equals_an_uninterrupted_one(config: TrainConfig, tmp_path: Path) -> None:
    config = replace(config, ema=0.9)
    whole = train(prepare(replace(config, out=str(tmp_path / "whole")), quiet))
    with pytest.raises(KeyboardInterrupt):
        train(prepare(config, quiet), True, StopAfter(4))
    lines: list[str] = []
    resumed = train(prepare(config, quiet), True, lines=lines)
    assert lines[0] == "resumed at step 3"
    assert torch.equal(weights(whole), weights(resumed))


def test_a_checkpoint_of_another_recipe_or_of_other_photos_is_refused(config: TrainConfig) -> None:
    config = replace(config, iterations=1)
    train(prepare(config, quiet))
    with pytest.raises(ConfigError, match="another recipe"):
        train(prepare(replace(config, lr=0.5), quiet), True)
    (Path(config.data_root) / "shapes" / "train.txt").write_text("photo0\nphoto1")
    with pytest.raises(ConfigError, match="other photos"):
        train(prepare(config, quiet), True)


def test_a_loss_that_is_no_number_stops_the_run(config: TrainConfig) -> None:
    setup = prepare(config, quiet)
    with torch.no_grad():
        next(setup.model.decoder.parameters()).fill_(torch.nan)
    with pytest.raises(ConfigError, match="loss is nan at step 0"):
        train(setup)


def test_the_moving_average_forgets_where_it_started() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    average = AveragedModel(model, multi_avg_fn=moving_average(0.9))
    values = [float(value) for value in torch.randn(200, generator=seeded())]
    wanted = values[0]
    for count, value in enumerate(values):
        torch.nn.init.constant_(model.weight, value)
        average.update_parameters(model)
        decay = min(0.9, (1 + count) / (10 + count)) if count else 0.0
        wanted = decay * wanted + (1 - decay) * value
        assert average.module.weight.item() == pytest.approx(wanted, abs=1e-5)
    assert decay == 0.9


@pytest.mark.numeric
def test_bfloat16_changes_a_step_little(config: TrainConfig) -> None:
    setup = prepare(replace(config, hard_negatives=0.5), quiet)
    batch = setup.sampler[0]
    with torch.no_grad():
        plain = setup.step(batch, 0)
        with torch.autocast("cpu", torch.bfloat16):
            rough = setup.step(batch, 0)
    assert set(plain) == {"ce", "bce", "aux"}
    for name, part in plain.items():
        assert float(rough[name].mean) != float(part.mean)
        assert float(rough[name].mean) == pytest.approx(float(part.mean), rel=0.02)


def test_names_held_out_are_neither_labels_nor_prompts(config: TrainConfig) -> None:
    corpus = load_corpus(replace(config, hold_out=("blue disc",)))
    assert corpus.names == ("red square", "green stripe")
    labels = torch.cat([photo.labels.flatten() for photo in corpus.photos]).unique().tolist()
    assert labels == [NONE, IGNORE, 0, 1]
    with pytest.raises(ConfigError, match="did you mean 'blue disc'"):
        load_corpus(replace(config, hold_out=("blue disk",)))


def test_the_names_that_look_most_alike_are_the_others_that_are_decoded(config: TrainConfig) -> None:
    classes = Path(config.data_root) / "shapes" / "classes.txt"
    classes.write_text(classes.read_text() + "\nmug\nspoon\nwall\nlamp")
    setup = prepare(replace(config, classes=5, hard_negatives=1.0), quiet)
    batch = setup.sampler[0]
    dense = torch.randn(2, setup.model.encoder.embed_dim, 4, 4, generator=seeded())
    tables = tables_of(setup, batch.photos)
    hard = setup.step.harden(batch, tables, dense, seeded())
    best = cosine_volume(dense, tables.text + tables.visual)[:, :, 0].amax(dim=(2, 3))
    for crop in range(2):
        present = {name for name in batch.labels[crop].unique().tolist() if name >= 0}
        rest = [name for name in best[crop].argsort(descending=True).tolist() if name not in present]
        assert set(hard.classes[crop].tolist()) == present | set(rest[: 5 - len(present)])
        assert hard.own[crop].all()


def test_a_photo_is_never_prompted_with_itself(config: TrainConfig) -> None:
    setup = prepare(config, quiet)
    setup.prompts.regions.dense[setup.prompts.regions.photos == 2] = torch.nan
    assert torch.isfinite(tables_of(setup, [2]).visual).all()


def test_where_no_other_photo_shows_a_name_there_are_words_alone(config: TrainConfig) -> None:
    setup = prepare(config, quiet)
    tables = tables_of(setup, list(range(len(setup.corpus.photos))))
    assert not tables.has_visual.any()
    assert not tables.visual.any()
    assert tables.text.any()


def test_some_photos_are_prompted_as_in_inference_two(config: TrainConfig) -> None:
    setup = prepare(replace(config, refined=1.0, false_finds=0.0), quiet)
    batch = setup.sampler[0]
    prompts = setup.prompts.select(tables_of(setup, batch.photos), batch, setup.model.encoder, seeded(), True)
    regions = setup.prompts.regions
    for crop, photo in enumerate(batch.photos):
        for position, name in enumerate(batch.classes[crop].tolist()):
            mine = (regions.names == name) & (regions.photos == photo)
            assert mine.sum() == 1  # every photo shows every class
            expected = torch.nn.functional.normalize(regions.dense[mine], dim=-1)
            torch.testing.assert_close(prompts.visual[crop, position], expected)
            assert prompts.has_visual[crop, position]


def test_binary_cross_entropy_counts_what_is_known() -> None:
    labels = torch.tensor([[[4, NONE, IGNORE]]])
    batch = Batch(
        images=torch.zeros(1, 3, 4, 12),
        labels=labels,
        classes=torch.tensor([[4, 7]]),
        own=torch.tensor([[True, False]]),
        unsure=torch.zeros(1, 8, dtype=torch.bool),
        photos=[0],
        sources=[0],
        everyone=[0],
        part=slice(0, 1),
    )
    logits = torch.tensor([[[[2.0, -1.0, 5.0]], [[0.5, 3.0, 5.0]]]])
    target = losses.to_local(labels, batch.classes)
    assert target.tolist() == [[[0, -1, -1]]]
    counted = torch.tensor([-2.0, -1.0, 0.5])  # yes; own and none; no, for it has another label
    expected = torch.nn.functional.softplus(counted).mean().item()
    assert float(losses.binary_cross_entropy(logits, target, batch).mean) == pytest.approx(expected)


def test_class_weights_have_mean_one_and_favour_the_rare() -> None:
    labels = torch.tensor([[[0] * 9 + [1], [NONE] * 5 + [IGNORE] * 5]])
    weights = losses.class_weights(labels, 0.5)
    assert float(weights[weights > 0].mean()) == pytest.approx(1.0)
    assert float(weights[0, 0, 9] / weights[0, 0, 0]) == pytest.approx(3.0)
    assert not weights[0, 1].any()
