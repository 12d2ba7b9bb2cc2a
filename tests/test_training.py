"""Training, on a miniature data set and the tiny encoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from dpseg.config import ModelConfig
from dpseg.errors import ConfigError
from dpseg.model.cost_volume import cosine_volume
from dpseg.model.dpseg import DPSeg
from dpseg.recipe import DataSource, TrainConfig
from dpseg.training import losses
from dpseg.training.average import moving_average
from dpseg.training.corpus import IGNORE, NONE, load_corpus
from dpseg.training.export import export
from dpseg.training.loop import Progress, Setup, Watch, launch, prepare
from dpseg.training.loop import train as run_training
from dpseg.training.sampler import Batch
from support.labelled_set import write_set

MODEL = ModelConfig(
    encoder="tiny", image_size=64, templates=1, widths=(16, 12, 8, 8), image_widths=(4, 4, 4), train_pool=1, heads=2
)


def quiet(line: str) -> None:
    """Takes log lines and says nothing."""


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    write_set(tmp_path / "data" / "shapes")
    return TrainConfig(
        model=MODEL,
        data=(DataSource("shapes"),),
        data_root=str(tmp_path / "data"),
        out=str(tmp_path / "run"),
        iterations=6,
        batch_size=2,
        crop=64,
        photo_size=64,
        classes=3,
        retention=0.0,
        warmup=1,
        ema=0.0,
        lr=0.01,
        encoder_lr=1.0,
        checkpoint_minutes=0.0,
        log_steps=2,
    )


def train(setup: Setup, resume: bool, watch: Watch | None = None, lines: list[str] | None = None) -> DPSeg:
    log = quiet if lines is None else lines.append
    return run_training(setup, launch(setup.config, "cpu"), resume, log, watch)


class StopAfter:
    """Interrupts a run after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def start(self, step: int) -> None:
        assert step < self.step

    def add(self, progress: Progress) -> None:
        if progress.step == self.step:
            raise KeyboardInterrupt


def weights(model: DPSeg) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_model_learns_the_shapes(config: TrainConfig) -> None:
    config = replace(config, iterations=150, colour_jitter=0.1, paste=0.0, scale=(0.9, 1.2), checkpoint_minutes=9.0)
    setup = prepare(config, quiet)
    model = train(setup, False)
    batch = setup.sampler[10_000]
    tables = setup.prompts.tables(model.encoder, [], torch.Generator().manual_seed(0))
    prompts = setup.prompts.select(tables, batch, model.encoder, torch.Generator().manual_seed(0), True)
    with torch.no_grad():
        labels = model(batch.images, prompts).argmax(dim=1)
    target = losses.to_local(batch.labels, batch.classes)
    known = batch.labels >= 0
    assert (labels == target)[known].float().mean() > 0.95


def test_a_resumed_run_equals_an_uninterrupted_one(config: TrainConfig, tmp_path: Path) -> None:
    config = replace(config, ema=0.9)
    whole = train(prepare(replace(config, out=str(tmp_path / "whole")), quiet), False)
    with pytest.raises(KeyboardInterrupt):
        train(prepare(config, quiet), True, StopAfter(4))
    lines: list[str] = []
    resumed = train(prepare(config, quiet), True, lines=lines)
    assert lines[0] == "resumed at step 3"
    assert torch.equal(weights(whole), weights(resumed))


def test_the_moving_average_forgets_where_it_started() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    average = AveragedModel(model, multi_avg_fn=moving_average(0.9))
    values = [float(value) for value in torch.randn(200, generator=torch.Generator().manual_seed(0))]
    wanted = values[0]
    for count, value in enumerate(values):
        torch.nn.init.constant_(model.weight, value)
        average.update_parameters(model)
        decay = min(0.9, (1 + count) / (10 + count)) if count else 0.0
        wanted = decay * wanted + (1 - decay) * value
        assert float(average.module.weight) == pytest.approx(wanted, abs=1e-5)
    assert decay == 0.9


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


def test_a_checkpoint_of_another_recipe_is_refused(config: TrainConfig) -> None:
    train(prepare(config, quiet), False)
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
        train(setup, False)


def test_an_exported_model_loads(config: TrainConfig, tmp_path: Path) -> None:
    setup = prepare(replace(config, iterations=1), quiet)
    model = train(setup, False)
    again = DPSeg.from_pretrained(export(model, setup, tmp_path / "final"))
    torch.testing.assert_close(weights(again), weights(model), atol=2e-3, rtol=1e-3)


def test_names_held_out_are_neither_labels_nor_prompts(config: TrainConfig) -> None:
    corpus = load_corpus(replace(config, hold_out=("blue disc",)))
    assert corpus.names == ("red square", "green stripe")
    labels = torch.cat([photo.labels.flatten() for photo in corpus.photos]).unique().tolist()
    assert labels == [NONE, IGNORE, 0, 1]
    with pytest.raises(ConfigError, match="did you mean 'blue disc'"):
        load_corpus(replace(config, hold_out=("blue disk",)))


def test_batches_depend_on_the_step_alone(config: TrainConfig) -> None:
    setup = prepare(config, quiet)
    first = setup.sampler[3]
    setup.sampler[9]
    again = setup.sampler[3]
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.classes, again.classes)
    assert not torch.equal(first.images, setup.sampler[4].images)


def test_crops_keep_their_labels_in_place(config: TrainConfig) -> None:
    setup = prepare(replace(config, colour_jitter=0.0), quiet)
    for step in range(4):
        batch = setup.sampler[step]
        small = batch.images[:, :, 2::4, 2::4]
        red = (small[:, 0] > 0.6) & (small[:, 1] < 0.3)
        inside = batch.labels == setup.corpus.names.index("red square")
        assert (red == inside).float().mean() > 0.95
        assert inside.any()


def test_present_classes_are_always_decoded(config: TrainConfig) -> None:
    batch = prepare(config, quiet).sampler[0]
    for labels, classes in zip(batch.labels, batch.classes, strict=True):
        present = set(labels.unique().tolist()) - {IGNORE, NONE}
        assert present <= set(classes.tolist())
        assert len(set(classes.tolist())) == len(classes)


def test_the_names_that_look_most_alike_are_the_others_that_are_decoded(config: TrainConfig) -> None:
    classes = Path(config.data_root) / "shapes" / "classes.txt"
    classes.write_text(classes.read_text() + "\nmug\nspoon\nwall\nlamp")
    setup = prepare(replace(config, classes=5, hard_negatives=1.0), quiet)
    batch = setup.sampler[0]
    dense = torch.randn(2, setup.model.encoder.embed_dim, 4, 4, generator=torch.Generator().manual_seed(0))
    tables = setup.prompts.tables(setup.model.encoder, batch.photos, torch.Generator().manual_seed(0))
    hard = setup.step.harden(batch, tables, dense, torch.Generator().manual_seed(0))
    best = cosine_volume(dense, tables.text + tables.visual)[:, :, 0].amax(dim=(2, 3))
    for crop in range(2):
        present = {name for name in batch.labels[crop].unique().tolist() if name >= 0}
        rest = [name for name in best[crop].argsort(descending=True).tolist() if name not in present]
        assert set(hard.classes[crop].tolist()) == present | set(rest[: 5 - len(present)])
        assert hard.own[crop].all()


def tables_have_no_leak(setup: Setup, photo: int) -> bool:
    regions = replace_features(setup, photo)
    return bool(torch.isfinite(regions).all())


def replace_features(setup: Setup, photo: int) -> torch.Tensor:
    """Makes the photo's own regions poisonous, and returns V of all names when it is in the batch."""
    setup.prompts.regions.dense[setup.prompts.regions.photos == photo] = torch.nan
    tables = setup.prompts.tables(setup.model.encoder, [photo], torch.Generator().manual_seed(0))
    return tables.visual


def test_a_photo_is_never_prompted_with_itself(config: TrainConfig) -> None:
    assert tables_have_no_leak(prepare(config, quiet), 2)


def test_where_no_other_photo_shows_a_name_there_are_words_alone(config: TrainConfig) -> None:
    setup = prepare(config, quiet)
    everyone = list(range(len(setup.corpus.photos)))
    tables = setup.prompts.tables(setup.model.encoder, everyone, torch.Generator().manual_seed(0))
    assert not tables.has_visual.any()
    assert not tables.visual.any()
    assert tables.text.any()


def test_some_photos_are_prompted_as_in_inference_two(config: TrainConfig) -> None:
    setup = prepare(replace(config, refined=1.0, false_finds=0.0), quiet)
    encoder, batch = setup.model.encoder, setup.sampler[0]
    tables = setup.prompts.tables(encoder, batch.photos, torch.Generator().manual_seed(0))
    prompts = setup.prompts.select(tables, batch, encoder, torch.Generator().manual_seed(0), True)
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

    def softplus(x: float) -> float:
        return float(torch.nn.functional.softplus(torch.tensor(x)))

    expected = (softplus(-2.0) + softplus(-1.0) + softplus(0.5)) / 3  # yes; own and none; no, for it has another label
    assert float(losses.binary_cross_entropy(logits, target, batch).mean) == pytest.approx(expected)


def test_class_weights_have_mean_one_and_favour_the_rare() -> None:
    labels = torch.tensor([[[0] * 9 + [1], [NONE] * 5 + [IGNORE] * 5]])
    weights = losses.class_weights(labels, 0.5)
    assert float(weights[weights > 0].mean()) == pytest.approx(1.0)
    assert float(weights[0, 0, 9] / weights[0, 0, 0]) == pytest.approx(3.0)
    assert not weights[0, 1].any()
