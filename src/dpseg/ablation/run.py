"""One model of an ablation: what is trained and measured is on disk, and is not done again.

OUT/TRAINING/seedS/                            a run of `dpseg train`
OUT/TRAINING/seedS/measured/HASH/both-I.json   the figures of one measurement
OUT/TRAINING/seedS/measured/HASH/counts/       the counts behind them, block by block

HASH is of the model's files and of what is measured: other photos or reference pictures have figures of their own.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from dpseg import __version__
from dpseg.ablation.noise import Noise, NoisySource
from dpseg.ablation.tables import Figures
from dpseg.ablation.variants import Measurement
from dpseg.config import EvalConfig, PromptKind
from dpseg.data.benchmarks import BENCHMARKS, open_dataset
from dpseg.data.folder import FolderDataset
from dpseg.errors import ConfigError, DataError
from dpseg.evaluation.blocks import check_setting, describe, merge_blocks, missing_blocks
from dpseg.evaluation.evaluate import encode_prompts, make_report
from dpseg.evaluation.plan import Plan, make_plan
from dpseg.evaluation.seen import training_names
from dpseg.evaluation.table import Report
from dpseg.evaluation.workers import Job, ModelSource, run_jobs, run_processes
from dpseg.files import make_folder, write_atomically
from dpseg.plain_values import read_yaml
from dpseg.pretrained import model_folder
from dpseg.recipe import TrainConfig
from dpseg.training.checkpoint import describe as describe_recipe

REGIONS = "regions.safetensors"
_MODEL_FILES = ("config.json", "model.safetensors", "names.txt", "bank.safetensors")

Show = Callable[[int], AbstractContextManager[Callable[[], None]]]
"""Number of photos -> shows progress, and gives a function to call after each of them."""


@dataclass(frozen=True)
class Sharing:
    """Who counts.

    Attributes:
        processes: so many share the photos, 1 or more.
        threads: of each process, 1 or more; None: the cores are shared out.
        device: None: a GPU where there is one.
    """

    processes: int = 1
    threads: int | None = None
    device: str | None = None


class Plans:
    """What is measured: one data set, whose reference pictures are drawn anew for each seed."""

    def __init__(self, data: str, root: Path | None, split: str | None, config: EvalConfig) -> None:
        """Opens the data set.

        Args:
            data: folder, COCO file or benchmark.
            root: where that is; None: this folder.
            split: which photos; None: all.
            config: how it is measured; its kinds of prompts, inference and seed are replaced.

        Raises:
            DPSegError: there is none, or a part of it is missing.
        """
        word = data.strip()
        known = word.lower() in BENCHMARKS
        self.name = word.lower() if known else Path(word).expanduser().resolve().name.removesuffix(".json") or "data"
        self.config = config
        self.dataset = open_dataset(word, root, split)
        self.pool = open_dataset(word, root, None if isinstance(self.dataset, FolderDataset) else "train")
        self.last: Plan | None = None

    def of(self, seed: int) -> Plan:
        """Returns the plan of a seed; the last one is kept, for drawing reads all masks.

        Raises:
            DPSegError: there is nothing to cut reference pictures from, or a number is out of range.
        """
        if self.last is None or self.last.config.seed != seed:
            config = replace(self.config, prompts=("both",), refine=(False,), seed=seed)
            self.last = make_plan(self.dataset, config, None, self.pool, self.name)
        return self.last


def is_trained(folder: Path, config: TrainConfig) -> bool:
    """Returns whether a run has left its whole model.

    Args:
        folder: of the run.
        config: its recipe.

    Raises:
        ConfigError: there is a model, of another recipe.
    """
    needed = _MODEL_FILES if config.model.encoder == "lite" else _MODEL_FILES[:3]
    if not all((folder / "final" / name).is_file() for name in needed):
        return False
    recipe = TrainConfig.from_dict(read_yaml(folder / "recipe.yaml"))
    if describe_recipe(_without_names(recipe)) != describe_recipe(_without_names(config)):
        raise ConfigError(f"{folder} holds a model of another recipe; choose another --out, or delete that folder")
    return True


def share_regions(folder: Path, donors: Iterable[Path]) -> None:
    """Gives a run the encoded regions of another, which training takes if corpus and encoder are the same.

    Args:
        folder: of the run; made where it is missing.
        donors: folders of other runs, the likeliest first.

    Raises:
        OutputError: the folder cannot be written.
    """
    own = make_folder(folder) / REGIONS
    donor = next((place / REGIONS for place in donors if (place / REGIONS).is_file()), None)
    if donor is None or own.exists():
        return
    try:
        os.link(donor, own)  # training replaces the file and never changes it
    except OSError:
        write_atomically(own, donor.read_bytes())


def training_seconds(folder: Path, iterations: int) -> float | None:
    """Returns what a run's steps took, interruptions left out; None where nobody kept a record.

    Args:
        folder: of the run.
        iterations: all its steps; those after the last line of the record count as the average of the others.
    """
    path = folder / "metrics.csv"
    if not path.is_file():
        return None
    seconds, last = 0.0, 0.0
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            step = float(row["step"])
            seconds += float(row["seconds_a_step"]) * (step - last)
            last = step
    return seconds * iterations / last if last else None


def measure(
    model: str, plan: Plan, wanted: Sequence[Measurement], folder: Path, sharing: Sharing, show: Show
) -> dict[Measurement, Figures]:
    """Measures a model in all ways in which it is not measured yet, and returns the figures of all.

    Args:
        model: name, folder or hub id.
        plan: of the data set, with reference pictures; its kinds of prompts and inferences are replaced.
        wanted: in which ways.
        folder: of the run.
        sharing: who counts.
        show: shows progress.

    Raises:
        DPSegError: the model, a photo or a mask is not usable, or something cannot be written.
    """
    place = folder / "measured" / _digest(model, plan)
    missing = [one for one in dict.fromkeys(wanted) if not (place / f"{one.name}.json").is_file()]
    for noise, kinds, refines in group(missing):
        part = replace(plan, config=replace(plan.config, prompts=kinds, refine=refines))
        name = "+".join(Measurement(kind, refine, noise).name for kind in kinds for refine in refines)
        report = _count(_source(model, sharing, noise, plan), part, place / "counts" / name, sharing, show)
        content = report.to_json()
        for (kind, refine), row in zip(part.rows, content.pop("rows"), strict=True):
            about = {**content, "noise": noise, "figures": row}
            path = place / f"{Measurement(kind, refine, noise).name}.json"
            write_atomically(path, (json.dumps(about, ensure_ascii=False, indent=1) + "\n").encode())
    return {one: _read(place / f"{one.name}.json") for one in wanted}


def is_measured(model: str, plan: Plan, wanted: Sequence[Measurement], folder: Path) -> bool:
    """Returns whether `measure` would have nothing to count."""
    place = folder / "measured" / _digest(model, plan)
    return all((place / f"{one.name}.json").is_file() for one in wanted)


def group(wanted: Sequence[Measurement]) -> list[tuple[float, tuple[PromptKind, ...], tuple[bool, ...]]]:
    """Gathers measurements into evaluations, in each of which a photo is encoded once.

    Returns:
        Noise, kinds of prompts and inferences: together, all pairs of a kind and an inference are what is wanted, each
        once.
    """
    refines: dict[tuple[float, PromptKind], set[bool]] = {}
    for one in wanted:
        refines.setdefault((one.noise, one.kind), set()).add(one.refine)
    kinds: dict[tuple[float, tuple[bool, ...]], list[PromptKind]] = {}
    for (noise, kind), several in refines.items():
        kinds.setdefault((noise, tuple(sorted(several))), []).append(kind)
    return [(noise, tuple(names), both) for (noise, both), names in kinds.items()]


def _source(model: str, sharing: Sharing, noise: float, plan: Plan) -> ModelSource:
    if not noise:
        return ModelSource(model, sharing.device)
    return NoisySource(model, sharing.device, noise=Noise(noise, plan.config.seed))


def _count(source: ModelSource, plan: Plan, folder: Path, sharing: Sharing, show: Show) -> Report:
    """Counts the blocks that are missing, as `dpseg evaluate` does, and adds them up."""
    segmenter = source.load()
    noise = {"noise": asdict(source.noise)} if isinstance(source, NoisySource) else {}
    digest = check_setting(folder, describe(segmenter, [plan]) | noise)
    job = Job(plan, folder, digest, missing_blocks(folder, plan))
    if job.blocks:
        with show(job.photos) as step:
            if sharing.processes > 1:
                encode_prompts(segmenter, plan)  # finds mistakes early, and leaves texts in the cache for all
                threads = sharing.threads or max(1, torch.get_num_threads() // sharing.processes)
                run_processes(source, [job], sharing.processes, threads, step)
            else:
                with _threads(sharing.threads):
                    run_jobs(segmenter, [job], step)
    tallies, seconds = merge_blocks(folder, plan, digest)
    names = training_names(segmenter.model.config, model_folder(source.name))
    return make_report(plan, segmenter, tallies, seconds, names)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Works with so many threads for a while; training afterwards has its own number again."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _digest(model: str, plan: Plan) -> str:
    """Returns a hash of a model's files, and of what is measured with which pictures."""
    digest = hashlib.sha256(__version__.encode())
    folder = model_folder(model)
    for path in (folder / name for name in _MODEL_FILES):
        digest.update(path.read_bytes() if path.is_file() else b"-")
    options = {key: value for key, value in asdict(plan.config).items() if key not in ("prompts", "refine", "block")}
    photos = [plan.dataset.stems[index] for index in plan.photos]
    drawn = {} if plan.pool is None else {k: [plan.pool.stems[i] for i in one] for k, one in plan.drawn.items()}
    digest.update(json.dumps([plan.name, plan.prompt_names, photos, drawn, options]).encode())
    return digest.hexdigest()[:16]


def _read(path: Path) -> Figures:
    try:
        row = json.loads(path.read_text(encoding="utf-8"))["figures"]
        return Figures(float(row["miou"]), float(row["pixel_accuracy"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is damaged; delete it and run the same command again") from error


def _without_names(config: TrainConfig) -> TrainConfig:
    """Leaves out the number of names, which a run finds in its photos."""
    return replace(config, model=replace(config.model, text_names=0))
