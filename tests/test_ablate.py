"""`dpseg ablate` from end to end with tiny models: what it trains, measures, keeps, and does not do twice."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

import dpseg.ablation.run as ablation_run
import dpseg.commands.ablate as command
import dpseg.evaluation.workers as workers
from dpseg.ablation.noise import Noise, NoisySegmenter
from dpseg.ablation.run import is_trained
from dpseg.ablation.variants import Measurement
from dpseg.commands.ablate import AblateOptions, ablate
from dpseg.config import EvalConfig
from dpseg.data.folder import FolderDataset
from dpseg.errors import ConfigError, DataError
from dpseg.evaluation.evaluate import evaluate
from dpseg.recipe import TrainConfig
from dpseg.segmenter import Segmenter
from support.labelled_set import write_set

MODEL: dict[str, Any] = {"encoder": "tiny", "image_size": 128, "keep_aspect": True, "templates": 1, "logit_scale": 10.0}
MODEL |= {"widths": [8, 8, 8, 8], "image_widths": [4, 4, 4], "heads": 2, "train_pool": 1}
SMALL = {
    "batch_size": 2,
    "crop": 64,
    "photo_size": 64,
    "classes": 3,
    "ema": 0.5,
    "lr": 0.02,
    "encoder_lr": 0.5,
    "log_steps": 50,
}
TRAININGS = ("full", "guidance=none", "guidance=visual2", "guidance=upsampled")


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPSEG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_set(tmp_path_factory.mktemp("data") / "shapes", photos=8)
    (root / "train.txt").write_text("".join(f"photo{number}\n" for number in range(4)))
    (root / "val.txt").write_text("".join(f"photo{number}\n" for number in range(4, 8)))
    return root


@pytest.fixture(scope="module")
def recipe(data: Path) -> Path:
    path = data.parent / "recipe.yaml"
    values = {"model": MODEL, "data": [{"name": "shapes"}], "data_root": str(data.parent), "iterations": 12, **SMALL}
    path.write_text(yaml.safe_dump(values))
    return path


def run(options: AblateOptions) -> tuple[str, str]:
    """Runs the command; returns the tables, and what was told meanwhile."""
    consoles = Console(file=io.StringIO(), width=300), Console(file=io.StringIO(), width=300)
    assert ablate(options, *consoles) == 0
    printed = [console.file for console in consoles]
    assert all(isinstance(file, io.StringIO) for file in printed)
    return printed[0].getvalue(), printed[1].getvalue()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def options(recipe: Path, data: Path) -> AblateOptions:
    return AblateOptions(
        data=str(data),
        out=data.parent / "ablate",
        recipe=recipe,
        tables="prompts,guidance,noise,refinement",
        seeds=2,
        config=EvalConfig(references=2, limit=3),
        noise="1.0",
        device="cpu",
    )


@dataclass(frozen=True)
class Done:
    """A finished ablation: what was asked for, printed, told meanwhile, and written."""

    options: AblateOptions
    printed: str
    told: str
    values: dict[str, Any]


@pytest.fixture(scope="module")
def done(options: AblateOptions) -> Done:
    return Done(options, *run(options), written(options))


def written(options: AblateOptions) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((options.out / "ablation.json").read_text(encoding="utf-8"))
    return values


def row(values: dict[str, Any], table: str, variant: str) -> dict[str, Any]:
    (rows,) = [one["rows"] for one in values["tables"] if one["name"] == table]
    (found,) = [one for one in rows if one["variant"] == variant]
    return dict(found)


def test_each_variant_is_trained_once_for_each_seed(done: Done) -> None:
    options, told = done.options, done.told
    lines = re.findall(r"^\[(\d)/8\] (\S+) seed (\d): training$", told, flags=re.MULTILINE)
    assert lines == [
        (str(1 + number), TRAININGS[number % 4], str(number // 4)) for number in range(8)
    ]  # all variants of a seed, then the next
    for name in TRAININGS:
        for seed in (0, 1):
            recipe = yaml.safe_load((options.out / name / f"seed{seed}" / "recipe.yaml").read_text())
            assert recipe["seed"] == seed
            assert recipe["model"]["guidance"] == (name.split("=")[1] if "=" in name else "visual234")
            assert recipe["model"]["fusion"] == "average"


@pytest.mark.parametrize(
    ("place", "measured"),
    [
        (("prompts", "pictures"), Measurement("pictures")),
        (("refinement", "both II"), Measurement("both", refine=True)),
        (("guidance", "upsampled"), Measurement("both")),
        (("noise", "1"), Measurement("both", noise=1.0)),
    ],
)
def test_figures_are_those_of_an_evaluation_of_the_trained_model(
    done: Done, data: Path, place: tuple[str, str], measured: Measurement
) -> None:
    found = row(done.values, *place)
    for seed in (0, 1):
        folder = done.options.out / found["training"] / f"seed{seed}" / "final"
        segmenter = Segmenter.from_pretrained(folder, "cpu")
        if measured.noise:
            segmenter = NoisySegmenter(segmenter.model)
            segmenter.noise = Noise(measured.noise, seed)
        config = EvalConfig(prompts=(measured.kind,), refine=(measured.refine,), references=2, limit=3, seed=seed)
        report = evaluate(segmenter, FolderDataset(data, "val"), config, pool=FolderDataset(data))
        assert report.photos == 3
        assert found["miou"]["seeds"][seed] == pytest.approx(report.rows[0].matrix.mean_iou, abs=1e-12)
        assert found["pixel_accuracy"]["seeds"][seed] == pytest.approx(report.rows[0].matrix.pixel_accuracy, abs=1e-12)


def test_the_tables_are_printed_and_written(done: Done) -> None:
    options, printed = done.options, done.printed
    assert (options.out / "ablation.md").read_text(encoding="utf-8").strip() == printed.strip()
    assert printed.startswith(
        "# Ablations of recipe on shapes val\n\n3 photos, 4 classes, 2 reference pictures a class"
    )
    headings = re.findall(r"^## (.*)$", printed, flags=re.MULTILINE)
    assert headings == ["Prompts", "Guidance", "Noise", "Refinement", "The paper's claims"]
    values = done.values
    assert values["seeds"] == [0, 1]
    assert [claim["answer"] == "not measured" for claim in values["claims"]] == [False, True, False, False]
    both = row(values, "prompts", "both")["miou"]
    assert row(values, "noise", "none")["miou"] == row(values, "guidance", "visual234")["miou"] == both
    assert row(values, "refinement", "both I")["miou"] == both
    assert all(second > 0 for second in row(values, "guidance", "none")["seconds"])
    assert f"tables: {options.out / 'ablation.md'}" in done.told


def test_variants_and_seeds_differ(done: Done) -> None:
    """Otherwise the tests here could not tell one from another."""
    for table, variants in (
        ("prompts", ("text", "pictures", "both")),
        ("guidance", ("none", "visual2", "upsampled", "visual234")),
        ("noise", ("none", "1")),
        ("refinement", ("both I", "both II")),
    ):
        found = [tuple(row(done.values, table, variant)["miou"]["seeds"]) for variant in variants]
        assert len({value for seeds in found for value in seeds}) == 2 * len(variants)


def test_objects_are_encoded_once_for_all_runs(done: Done) -> None:
    files = [done.options.out / name / f"seed{seed}" / "regions.safetensors" for name in TRAININGS for seed in (0, 1)]
    assert len({os.stat(path).st_ino for path in files}) == 1


def test_a_second_time_nothing_is_done(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "run_training", forbidden)
    monkeypatch.setattr(ablation_run, "run_jobs", forbidden)
    monkeypatch.setattr(ablation_run.ModelSource, "load", forbidden)
    printed, told = run(done.options)
    assert printed == done.printed
    assert len(re.findall(r"^\[\d/8\] \S+ seed \d: measured$", told, flags=re.MULTILINE)) == 8


def forbidden(*_: object) -> None:
    raise AssertionError("this was done before")


def test_only_what_is_missing_is_done(done: Done, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = replace(done.options, tables="noise", noise="0.5,1.0")
    monkeypatch.setattr(command, "run_training", forbidden)
    counted: list[tuple[tuple[str, ...], float]] = []
    count = workers.count_photos

    def count_photos(segmenter: Any, plan: Any, *rest: Any) -> None:
        counted.append((plan.config.prompts, getattr(segmenter, "noise", Noise()).strength))
        count(segmenter, plan, *rest)

    monkeypatch.setattr(workers, "count_photos", count_photos)
    run(options)
    assert counted == [(("both",), 0.5)] * 2
    run(replace(options, config=replace(options.config, limit=2), seeds=1))  # other photos have figures of their own
    assert counted[2:] == [(("both", "text"), 0.0), (("both",), 0.5), (("both",), 1.0)]


def test_a_stopped_ablation_goes_on_and_ends_the_same(
    options: AblateOptions, done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = replace(options, out=tmp_path / "out", tables="guidance", seeds=1)
    train, started = command.run_training, []

    def stop_at_third(asked: Any, console: Console) -> int:
        started.append(asked.overrides[asked.overrides.index("--out") + 1])
        if len(started) == 3:
            raise KeyboardInterrupt
        return train(asked, console)

    monkeypatch.setattr(command, "run_training", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        run(part)
    final = part.out / "guidance=none" / "seed0" / "final"
    (final / "names.txt").unlink()  # stopped while it was written: its checkpoint is there
    run(part)
    folders = [Path(json.loads(words)).parent.name for words in started]
    assert folders == ["full", "guidance=none", "guidance=visual2", "guidance=none", "guidance=visual2", TRAININGS[3]]
    for variant in ("none", "visual2", "upsampled", "visual234"):
        own = row(written(part), "guidance", variant)["miou"]["seeds"]
        whole = row(done.values, "guidance", variant)["miou"]["seeds"]
        assert own[0] == whole[0]
    starts = json.loads((final.parent / "run.json").read_text())
    assert len(starts) == 2
    rows = (final.parent / "metrics.csv").read_text().splitlines()
    assert len(rows) == 2  # no step was taken twice


def test_another_recipe_in_the_same_folder_is_refused(done: Done) -> None:
    with pytest.raises(ConfigError, match=r"full/seed0 holds a model of another recipe; choose another --out"):
        run(replace(done.options, overrides=("--iterations", "4")))


def test_a_damaged_file_of_figures_is_named(done: Done) -> None:
    (path,) = [
        path
        for path in (done.options.out / "guidance=none" / "seed1" / "measured").glob("*/both-I.json")
        if json.loads(path.read_text())["photos"] == 3
    ]
    before = path.read_text()
    path.write_text(before[:100])
    with pytest.raises(DataError, match=r"both-I\.json: is damaged; delete it"):
        run(done.options)
    path.unlink()
    assert run(done.options)[0] == done.printed
    assert json.loads(path.read_text())["figures"] == json.loads(before)["figures"]


def test_trained_models_have_the_tables_that_need_no_training(done: Done, tmp_path: Path) -> None:
    models = tuple(str(done.options.out / "full" / f"seed{seed}" / "final") for seed in (0, 1))
    options = replace(done.options, recipe=None, models=models, tables="all", seeds=None, out=tmp_path / "out")
    printed, _ = run(options)
    assert re.findall(r"^## (.*)$", printed, flags=re.MULTILINE)[:3] == ["Prompts", "Noise", "Refinement"]
    for place in (("prompts", "text"), ("noise", "1"), ("refinement", "both II")):
        assert row(written(options), *place)["miou"] == row(done.values, *place)["miou"]
    assert row(written(options), "prompts", "text")["seconds"] == [None, None]


def test_processes_that_share_the_photos_have_the_same_noise(done: Done, tmp_path: Path) -> None:
    model = str(done.options.out / "full" / "seed0" / "final")
    options = replace(done.options, recipe=None, models=(model,), tables="noise", seeds=1, out=tmp_path / "out")
    run(replace(options, processes=2, threads=1, config=replace(options.config, block=1)))
    for variant in ("none", "1", "text"):
        assert row(written(options), "noise", variant)["miou"]["seeds"] == [
            row(done.values, "noise", variant)["miou"]["seeds"][0]
        ]


def test_a_model_counts_as_trained_when_all_of_it_is_there(done: Done, recipe: Path) -> None:
    config = TrainConfig.from_dict(yaml.safe_load(recipe.read_text()))
    assert is_trained(done.options.out / "full" / "seed0", config)
    assert is_trained(done.options.out / "full" / "seed1", replace(config, seed=1, workers=2, out="elsewhere"))
    assert not is_trained(done.options.out / "full" / "seed7", config)
    with pytest.raises(ConfigError, match="another recipe"):
        is_trained(done.options.out / "full" / "seed1", config)
