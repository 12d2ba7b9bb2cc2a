"""`dpseg ablate` from end to end with tiny models: what it trains, measures, keeps, refuses, and does not do twice."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import re
from collections.abc import Callable, Iterator
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
from dpseg.cli import run as dpseg
from dpseg.commands.ablate import AblateOptions, ablate
from dpseg.config import EvalConfig
from dpseg.data.folder import FolderDataset
from dpseg.errors import ConfigError, DataError
from dpseg.evaluation.evaluate import evaluate
from dpseg.recipe import TrainConfig
from dpseg.segmenter import Segmenter
from dpseg.training.record import Record
from support.labelled_set import write_set
from support.tiny_recipe import tiny_recipe, write_recipe

MODEL = {"keep_aspect": True, "logit_scale": 10.0, "widths": (8, 8, 8, 8)}
TRAININGS = ("full", "guidance=none", "guidance=visual2", "guidance=upsampled")


@pytest.fixture(scope="module", autouse=True)
def _no_curves() -> Iterator[None]:
    """Of a dozen trainings, drawing them would take longer than all steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Record, "draw", lambda self: None)
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("ablation")
    root = write_set(folder / "data" / "shapes", photos=8)
    (root / "train.txt").write_text("".join(f"photo{number}\n" for number in range(4)))
    (root / "val.txt").write_text("".join(f"photo{number}\n" for number in range(4, 8)))
    config = tiny_recipe(
        folder, MODEL, iterations=6, warmup=50, ema=0.5, lr=0.02, encoder_lr=0.5, log_steps=50, checkpoint_minutes=3.0
    )
    write_recipe(folder / "recipe.yaml", config)
    return config


@pytest.fixture(scope="module")
def recipe(config: TrainConfig) -> Path:
    return Path(config.out).with_name("recipe.yaml")


@pytest.fixture(scope="module")
def data(config: TrainConfig) -> Path:
    return Path(config.data_root) / "shapes"


def run(options: AblateOptions) -> tuple[str, str]:
    """Runs the command; returns the tables, and what was told meanwhile."""
    files = io.StringIO(), io.StringIO()
    assert ablate(options, *(Console(file=file, width=300) for file in files)) == 0
    return files[0].getvalue(), files[1].getvalue()


@dataclass(frozen=True)
class Done:
    """A finished ablation: what was asked for, printed, told meanwhile, and written."""

    options: AblateOptions
    printed: str
    told: str
    values: dict[str, Any]

    @property
    def model(self) -> Path:
        """That of the full method and the first seed."""
        return self.options.out / "full" / "seed0" / "final"


@pytest.fixture(scope="module")
def done(recipe: Path, data: Path) -> Done:
    options = AblateOptions(
        data=str(data),
        out=recipe.parent / "ablate",
        recipe=recipe,
        tables="prompts,guidance,noise,refinement",
        seeds=2,
        config=EvalConfig(references=2, limit=3),
        noise="1.0",
        device="cpu",
    )
    return Done(options, *run(options), written(options))


def written(options: AblateOptions) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((options.out / "ablation.json").read_text(encoding="utf-8"))
    return values


def row(values: dict[str, Any], table: str, variant: str) -> dict[str, Any]:
    (rows,) = [one["rows"] for one in values["tables"] if one["name"] == table]
    (found,) = [one for one in rows if one["variant"] == variant]
    return dict(found)


def seeds_of(values: dict[str, Any], table: str, variant: str) -> list[float]:
    """The mIoU of a variant, seed by seed."""
    return list(row(values, table, variant)["miou"]["seeds"])


def forbidden(*_: object) -> None:
    raise AssertionError("this was done before")


def test_each_variant_is_trained_once_for_each_seed(done: Done) -> None:
    out = done.options.out
    lines = re.findall(r"^\[(\d)/8\] (\S+) seed (\d): training$", done.told, flags=re.MULTILINE)
    assert lines == [
        (str(1 + number), TRAININGS[number % 4], str(number // 4)) for number in range(8)
    ]  # all variants of a seed, then the next
    for name in TRAININGS:
        for seed in (0, 1):
            recipe = yaml.safe_load((out / name / f"seed{seed}" / "recipe.yaml").read_text())
            assert recipe["seed"] == seed
            assert recipe["model"]["guidance"] == (name.split("=")[1] if "=" in name else "visual234")
            assert recipe["model"]["fusion"] == "average"
    objects = [out / name / f"seed{seed}" / "regions.safetensors" for name in TRAININGS for seed in (0, 1)]
    assert len({os.stat(path).st_ino for path in objects}) == 1  # encoded once for all runs


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
    path, printed, values = done.options.out / "ablation.md", done.printed, done.values
    assert path.read_text(encoding="utf-8").strip() == printed.strip()
    assert f"tables: {path}" in done.told
    assert printed.startswith(
        "# Ablations of recipe on shapes val\n\n3 photos, 4 classes, 2 reference pictures a class"
    )
    headings = re.findall(r"^## (.*)$", printed, flags=re.MULTILINE)
    assert headings == ["Prompts", "Guidance", "Noise", "Refinement", "The paper's claims"]
    assert values["seeds"] == [0, 1]
    assert [claim["answer"] == "not measured" for claim in values["claims"]] == [False, True, False, False]
    both = row(values, "prompts", "both")["miou"]
    for place in (("noise", "none"), ("guidance", "visual234"), ("refinement", "both I")):
        assert row(values, *place)["miou"] == both
    assert all(second > 0 for second in row(values, "guidance", "none")["seconds"])


@pytest.mark.parametrize(
    ("table", "variants"),
    [
        ("prompts", ("text", "pictures", "both")),
        ("guidance", ("none", "visual2", "upsampled", "visual234")),
        ("noise", ("none", "1")),
        ("refinement", ("both I", "both II")),
    ],
)
def test_variants_and_seeds_differ(done: Done, table: str, variants: tuple[str, ...]) -> None:
    """Otherwise the tests here could not tell one from another."""
    found = [value for variant in variants for value in seeds_of(done.values, table, variant)]
    assert len(set(found)) == 2 * len(variants)


def test_a_second_time_nothing_is_done(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "run_training", forbidden)
    monkeypatch.setattr(ablation_run, "run_jobs", forbidden)
    monkeypatch.setattr(ablation_run.ModelSource, "load", forbidden)
    printed, told = run(done.options)
    assert printed == done.printed
    assert len(re.findall(r"^\[\d/8\] \S+ seed \d: measured$", told, flags=re.MULTILINE)) == 8


def test_only_what_is_missing_is_done(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
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
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = replace(done.options, out=tmp_path / "out", tables="guidance", seeds=1)
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
        assert seeds_of(written(part), "guidance", variant) == seeds_of(done.values, "guidance", variant)[:1]
    assert len(json.loads((final.parent / "run.json").read_text())) == 2
    rows = (final.parent / "metrics.csv").read_text().splitlines()
    assert len(rows) == 2  # no step was taken twice


def test_a_model_counts_as_trained_when_all_of_it_is_there_and_is_of_the_same_recipe(
    done: Done, config: TrainConfig
) -> None:
    full = done.options.out / "full"
    assert is_trained(full / "seed0", config)
    assert is_trained(full / "seed1", replace(config, seed=1, workers=2, out="elsewhere"))
    assert not is_trained(full / "seed7", config)
    with pytest.raises(ConfigError, match="another recipe"):
        is_trained(full / "seed1", config)
    with pytest.raises(ConfigError, match=r"full/seed0 holds a model of another recipe; choose another --out"):
        run(replace(done.options, overrides=("--iterations", "4")))


def test_a_damaged_file_of_figures_is_named(done: Done) -> None:
    measured = (done.options.out / "guidance=none" / "seed1" / "measured").glob("*/both-I.json")
    (path,) = [path for path in measured if json.loads(path.read_text())["photos"] == 3]
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


@pytest.mark.parametrize("kind", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_processes_that_share_the_photos_have_the_same_noise(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    context = multiprocessing.get_context(kind)  # forks need not import everything again
    monkeypatch.setattr(workers.multiprocessing, "get_context", lambda _: context)
    options = replace(done.options, recipe=None, models=(str(done.model),), tables="noise", seeds=1)
    options = replace(options, out=tmp_path, processes=2, threads=1, config=replace(options.config, block=1))
    run(options)
    for variant in ("none", "1", "text"):
        assert seeds_of(written(options), "noise", variant) == seeds_of(done.values, "noise", variant)[:1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model MODEL --tables fusion", "table 'fusion' needs trainings of its own; give --config"),
        ("--model MODEL --iterations 3", "'--iterations' would change a recipe"),
        ("--model MODEL --config RECIPE", "give either a recipe"),
        ("", "give either a recipe"),
        ("--model MODEL --seeds 2", "seeds 2 with 1 models"),
        ("--config RECIPE --seeds 0", "seeds 0: give 1 or more"),
        ("--config RECIPE --tables colours", "table 'colours' is unknown"),
        ("--config RECIPE --noise loud", "noise 'loud' is no strength"),
        ("--config RECIPE --processes 0", "processes 0"),
        ("--config RECIPE --model.guidence none", "unknown key 'guidence'"),
        ("--config RECIPE --split all", "no photos for reference pictures"),
        ("--config RECIPE --references 0", "references 0"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_trained(
    words: str, message: str, recipe: Path, data: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    arguments = words.replace("MODEL", str(tmp_path)).replace("RECIPE", str(recipe)).split()
    assert message in refused("ablate", "--data", str(data), *arguments, "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out" / "full").exists()


def test_the_command_line_takes_changes_of_the_recipe(
    recipe: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"--config {recipe} --data shapes --data-root {data.parent} --out {tmp_path} --seeds 1 --limit 1 --seed 4"
    words += " --iterations 1 --model.guidance none --tables prompts --references 1 --threads 1 --device cpu"
    assert dpseg(["ablate", *words.split()]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(
        "# Ablations of recipe with --seed 4 --iterations 1 --model.guidance none on shapes val"
    )
    assert "[1/1] full seed 4: training" in captured.err
    made = yaml.safe_load((tmp_path / "full" / "seed4" / "recipe.yaml").read_text())
    assert (made["iterations"], made["seed"], made["model"]["guidance"]) == (1, 4, "none")
