"""`dpseg ablate`: the paper's ablations on any recipe, or on trained models: runs, tables, and the claims they bear."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from dpseg import __version__
from dpseg.ablation.variants import (
    FULL,
    Measurement,
    Table,
    Training,
    make_tables,
    read_strengths,
    read_tables,
    trainings,
)
from dpseg.commands.places import check_writable
from dpseg.commands.progress import progress
from dpseg.commands.train import TrainOptions, with_overrides
from dpseg.commands.train import train as run_training
from dpseg.config import EvalConfig
from dpseg.errors import ConfigError
from dpseg.files import write_atomically
from dpseg.plain_values import read_yaml
from dpseg.recipe import TrainConfig

if TYPE_CHECKING:
    from dpseg.ablation.run import Plans
    from dpseg.ablation.tables import Results
    from dpseg.evaluation.plan import Plan

DEFAULT_SEEDS = 3


@dataclass(frozen=True)
class AblateOptions:
    """The options of `dpseg ablate`.

    Attributes:
        data: the data set that is measured: folder, COCO file or benchmark.
        out: folder of all runs and tables.
        recipe: YAML file; None: `models` are given.
        overrides: changes to the recipe, as `with_overrides`.
        models: folders of trained models, one a seed, in place of a recipe.
        data_root: folder below which the data sets are; None: the recipe's.
        split: which photos; None: all.
        tables: names with commas, or all.
        seeds: so many trainings of each variant; None: `DEFAULT_SEEDS`, or one for each of `models`.
        config: how it is measured; the tables and the seeds decide about prompts, inference and seed.
        noise: strengths with commas.
        processes: so many share the photos, 1 or more.
        threads: of each process; None: the cores are shared out.
        device: None: a GPU where there is one.
    """

    data: str
    out: Path
    recipe: Path | None = None
    overrides: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    data_root: Path | None = None
    split: str | None = "val"
    tables: str = "all"
    seeds: int | None = None
    config: EvalConfig = field(default_factory=EvalConfig)
    noise: str = "0.5,1.0"
    processes: int = 1
    threads: int | None = None
    device: str | None = None


@dataclass(frozen=True)
class Run:
    """One training and the measurements of its model.

    Attributes:
        number: from 1 ...
        total: ... to this.
        training: which.
        seed: of it, and of the reference pictures.
        wanted: how its model is tested.
        folder: of the run.
        model: a trained one; None: it is trained in `folder`.
    """

    number: int
    total: int
    training: Training
    seed: int
    wanted: tuple[Measurement, ...]
    folder: Path
    model: str | None = None

    def line(self, what: str) -> str:
        """Returns a line that says what goes on."""
        return f"[{self.number}/{self.total}] {self.training.name} seed {self.seed}: {what}"


def ablate(options: AblateOptions, console: Console, errors: Console) -> int:
    """Trains and measures every variant for every seed, as far as that is not done, and prints the tables.

    Args:
        options: what the user asked for.
        console: where the tables are printed.
        errors: where it is told what goes on.

    Returns:
        The exit status, 0.

    Raises:
        DPSegError: the user's mistake. What is done stays, and the same command goes on.
    """
    from dpseg.ablation.tables import to_json, to_markdown

    _check(options)
    config = None if options.recipe is None else _recipe(options, FULL)
    names = read_tables(options.tables, config)
    tables = make_tables(names, config, read_strengths(options.noise) if "noise" in names else ())
    runs = _runs(options, tables, config)
    check_writable(options.out)
    plans = _plans(options, config)
    results = _results(options, runs, plans, errors)
    plan = plans.of(runs[-1].seed)
    text = f"{_heading(options, plan, runs)}\n\n{to_markdown(tables, results)}\n"
    content = {**_about(options, plan, runs), **to_json(tables, results)}
    write_atomically(options.out / "ablation.json", (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())
    path = write_atomically(options.out / "ablation.md", text.encode())
    console.print(text, markup=False, soft_wrap=True)
    errors.print(f"tables: {path}", markup=False, soft_wrap=True)
    return 0


def _check(options: AblateOptions) -> None:
    """Refuses options that do not go together, before anything is read."""
    if (options.recipe is None) == (not options.models):
        raise ConfigError("give either a recipe, --config configs/lite-small.yaml, or trained models, --model FOLDER")
    if options.models and options.overrides:
        raise ConfigError(f"{options.overrides[0]!r} would change a recipe, and --model takes models as they are")
    seeds = options.seeds
    if seeds is not None and seeds < 1:
        raise ConfigError(f"seeds {seeds}: give 1 or more")
    if options.models and seeds not in (None, len(options.models)):
        raise ConfigError(f"seeds {seeds} with {len(options.models)} models; --model stands once for each seed")
    if options.processes < 1 or (options.threads is not None and options.threads < 1):
        raise ConfigError(f"processes {options.processes}, threads {options.threads}: give numbers of 1 or more")


def _recipe(options: AblateOptions, training: Training, seed: int | None = None) -> TrainConfig:
    """Returns the recipe of a training; without a seed, the recipe's own."""
    assert options.recipe is not None
    words = _words(options, training) + ([] if seed is None else ["--seed", str(seed)])
    return TrainConfig.from_dict(with_overrides(read_yaml(options.recipe), words))


def _words(options: AblateOptions, training: Training) -> list[str]:
    """Returns a training's changes to the recipe, as words of a command line."""
    words = list(options.overrides)
    if options.data_root is not None:
        words += ["--data_root", _quoted(options.data_root)]
    for name, value in training.changes:
        words += [f"--{name}", json.dumps(value)]
    return words


def _quoted(path: Path) -> str:
    """Returns a path as a value of YAML."""
    return json.dumps(str(path), ensure_ascii=False)


def _runs(options: AblateOptions, tables: Sequence[Table], config: TrainConfig | None) -> list[Run]:
    """Lists all runs: one seed after the other, so that all variants of the first are there early."""
    wanted = trainings(tables)
    first = 0 if config is None else config.seed
    seeds = range(first, first + (len(options.models) or options.seeds or DEFAULT_SEEDS))
    pairs = [(seed, training) for seed in seeds for training in wanted]
    return [
        Run(
            number,
            len(pairs),
            training,
            seed,
            wanted[training],
            options.out / training.name / f"seed{seed}",
            options.models[seed - first] if options.models else None,
        )
        for number, (seed, training) in enumerate(pairs, start=1)
    ]


def _plans(options: AblateOptions, config: TrainConfig | None) -> Plans:
    """Opens the data set: where it lies, or below the recipe's folder."""
    from dpseg.ablation.run import Plans

    root = options.data_root
    if root is None and config is not None and not Path(options.data).expanduser().exists():
        root = Path(config.data_root)
    return Plans(options.data, root, options.split, options.config)


def _results(options: AblateOptions, runs: Sequence[Run], plans: Plans, errors: Console) -> Results:
    """Trains and measures what is missing, and gathers the figures of all runs."""
    from dpseg.ablation.run import Sharing, is_measured, measure
    from dpseg.ablation.tables import Figures, Results
    from dpseg.memory import release_free_memory

    sharing = Sharing(options.processes, options.threads, options.device)
    figures: dict[tuple[Training, Measurement], list[Figures]] = {}
    seconds: dict[Training, list[float | None]] = {}

    def say(line: str) -> None:
        errors.print(line, markup=False, soft_wrap=True)

    def show(photos: int) -> AbstractContextManager[Callable[[], None]]:
        return progress(errors, photos, "photos", lines=True)

    for run in runs:
        plan = plans.of(run.seed)  # before the first training, for it finds what is wrong with the data
        model, took = _train(options, run, runs, say, errors)
        done = is_measured(model, plan, run.wanted, run.folder)
        say(run.line("measured" if done else f"measuring {', '.join(one.name for one in run.wanted)}"))
        for measurement, found in measure(model, plan, run.wanted, run.folder, sharing, show).items():
            figures.setdefault((run.training, measurement), []).append(found)
        seconds.setdefault(run.training, []).append(took)
        release_free_memory()
    return Results(figures, seconds)


def _train(
    options: AblateOptions, run: Run, runs: Sequence[Run], say: Callable[[str], None], errors: Console
) -> tuple[str, float | None]:
    """Trains a run's model where there is none; returns it and the seconds of its steps."""
    from dpseg.ablation.run import is_trained, share_regions, training_seconds

    if run.model is not None:
        return run.model, None
    assert options.recipe is not None
    config = _recipe(options, run.training, run.seed)
    if not is_trained(run.folder, config):
        say(run.line("training"))
        nearest = sorted(runs, key=lambda other: other.seed != run.seed)
        share_regions(run.folder, [other.folder for other in nearest])
        words = [*_words(options, run.training), "--seed", str(run.seed), "--out", _quoted(run.folder)]
        words += ["--log_steps", str(min(config.log_steps, config.iterations))]  # so that there is a record of the pace
        accelerator = (options.device or "auto").split(":")[0]
        run_training(TrainOptions(options.recipe, words, accelerator=accelerator), errors)
    return str(run.folder / "final"), training_seconds(run.folder, config.iterations)


def _heading(options: AblateOptions, plan: Plan, runs: Sequence[Run]) -> str:
    """Returns the title, and what the figures are."""
    seeds = sorted({run.seed for run in runs})
    what = options.recipe.stem if options.recipe is not None else ", ".join(options.models)
    changed = f" with {' '.join(options.overrides)}" if options.overrides else ""
    spread = "one seed, so that nothing is known about chance" if len(seeds) == 1 else f"{len(seeds)} seeds"
    return (
        f"# Ablations of {what}{changed} on {' '.join(filter(None, (plan.name, options.split)))}\n\n"
        f"{len(plan.photos)} photos, {len(plan.names)} classes, {plan.config.references} reference pictures a class,"
        f" {spread}. Figures are in %; ± is the sample standard deviation over the seeds, and differences are taken"
        " seed by seed. Seconds are those of a training's steps, the mean over the seeds."
    )


def _about(options: AblateOptions, plan: Plan, runs: Sequence[Run]) -> dict[str, object]:
    """Returns what is needed to repeat it, as JSON values."""
    return {
        "recipe": None if options.recipe is None else str(options.recipe),
        "overrides": list(options.overrides),
        "models": list(options.models),
        "data": plan.name,
        "split": options.split,
        "photos": len(plan.photos),
        "references": plan.config.references,
        "seeds": sorted({run.seed for run in runs}),
        "dpseg": __version__,
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
