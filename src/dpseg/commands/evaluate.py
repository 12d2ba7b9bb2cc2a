"""`dpseg evaluate`: labelled photos in, tables of mIoU and its relatives out, for one or several data sets."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from rich.console import Console

from dpseg.commands.places import check_writable
from dpseg.commands.progress import progress
from dpseg.config import EvalConfig, PromptKind
from dpseg.errors import ConfigError, DPSegError, did_you_mean
from dpseg.files import write_atomically
from dpseg.matching import Matching
from dpseg.precision import Precision
from dpseg.rejection import Rejection

if TYPE_CHECKING:
    from dpseg.evaluation.plan import Plan
    from dpseg.evaluation.table import Report
    from dpseg.evaluation.workers import Job, ModelSource
    from dpseg.segmenter import Segmenter

PROMPT_KINDS: tuple[PromptKind, ...] = get_args(PromptKind)
_REFINE = {"off": (False,), "on": (True,), "both": (False, True)}


@dataclass(frozen=True)
class EvaluateOptions:
    """The options of `dpseg evaluate`.

    Attributes:
        data: a data set: folder, COCO file or benchmark; None: those of `sets`.
        config: which prompts, and how.
        split: which photos; None: all.
        names: vocabulary or file with other words for the classes of the only data set; None: its own.
        model: name, folder or hub id.
        untrained: measure what the model was before training, the plain cosine.
        matching: how prompts are compared with a photo; None: as the model's config says.
        rejection: which classes of a long list are given up early; None: as the model's config says.
        precision: of the numbers that the model computes in.
        device: None: CUDA where there is a GPU.
        out: a file that ends in .json, or the folder of the report and of the counts; None: nothing is written.
        sets: more data sets, each a section of the report.
        root: folder in which the benchmarks' downloads were unpacked; None: this one.
        processes: so many share the photos, 1 or more.
        threads: of each process; None: the cores are shared out.
        shard: (I, N) with I from 0: only every N-th block, from the I-th on; None: all.
        seen: vocabulary or file of the names that training had; None: what the model says.
        store: folder or file of a bank that is asked before the model's; None: there is none.
    """

    data: Path | str | None
    config: EvalConfig
    split: str | None = "val"
    names: str | None = None
    model: str = "dpseg-lite"
    untrained: bool = False
    matching: Matching | None = None
    rejection: Rejection | None = None
    precision: Precision = "32"
    device: str | None = None
    out: Path | None = None
    sets: tuple[str, ...] = ()
    root: Path | None = None
    processes: int = 1
    threads: int | None = None
    shard: tuple[int, int] | None = None
    seen: str | None = None
    store: Path | None = None

    @property
    def folder(self) -> Path | None:
        """The folder of the report; None: none is written."""
        return None if self.out is None or self.out.suffix.lower() == ".json" else self.out


def evaluate(options: EvaluateOptions, console: Console, errors: Console) -> int:
    """Measures the model, prints the tables and writes the report.

    Args:
        options: what the user asked for.
        console: where the tables are printed.
        errors: where progress is shown.

    Returns:
        The exit status, 0.

    Raises:
        DPSegError: the user's mistake.
    """
    from dpseg.evaluation.paper import common_table
    from dpseg.evaluation.report import write_report

    _check(options)
    plans = _plans(options)
    if options.out is not None:
        check_writable(options.folder or options.out.parent)
    with tempfile.TemporaryDirectory(prefix="dpseg-") as temporary:
        measured = _measure(options, plans, options.folder or Path(temporary), console, errors)
    if measured is None:
        return 0
    reports, segmenter = measured
    for plan, report in zip(plans, reports, strict=True):
        console.print(f"{_heading(options, plan, report)}\n", markup=False, soft_wrap=True)
        console.print(report.to_markdown() + ("\n" if len(reports) > 1 else ""), markup=False, soft_wrap=True)
    model = options.model + (" untrained" if options.untrained else "")
    if len(reports) > 1:
        console.print(common_table(reports, model), markup=False, soft_wrap=True)
    if options.folder is not None:
        path = write_report(options.folder, model, plans, reports, segmenter)
        console.print(f"\nreport: {path}", markup=False, soft_wrap=True)
    elif options.out is not None:
        content = json.dumps(reports[0].to_json(), ensure_ascii=False, indent=1) + "\n"
        write_atomically(options.out, content.encode())
    return 0


def prompt_kinds(text: str) -> tuple[PromptKind, ...]:
    """Reads --prompts.

    Raises:
        ConfigError: a word is unknown.
    """
    words = [word.strip().lower() for word in text.split(",") if word.strip()]
    if words == ["all"]:
        return PROMPT_KINDS
    for word in words:
        if word not in PROMPT_KINDS:
            raise ConfigError(f"prompts {word!r} is unknown; {did_you_mean(word, [*PROMPT_KINDS, 'all'])}")
    if not words:
        raise ConfigError(f"no prompts given; known: {', '.join(PROMPT_KINDS)}, all")
    return tuple(kind for kind in PROMPT_KINDS if kind in words)


def refine_rows(text: str) -> tuple[bool, ...]:
    """Reads --refine of an evaluation.

    Raises:
        ConfigError: the word is unknown.
    """
    if text.lower() not in _REFINE:
        raise ConfigError(f"refine {text!r} is unknown; {did_you_mean(text, _REFINE)}")
    return _REFINE[text.lower()]


def shard_of(text: str) -> tuple[int, int]:
    """Reads --shard, "I/N" with I from 1, and returns I from 0, and N.

    Raises:
        ConfigError: it is something else.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= count:
        raise ConfigError(f"shard {text!r} is no part of a whole; give I/N with I from 1 to N, such as 1/4")
    return number - 1, count


def _check(options: EvaluateOptions) -> None:
    """Refuses options that do not go together, before anything is read."""
    from dpseg.plots import check_matplotlib

    words = _words(options)
    if not words:
        raise ConfigError("no data set given; name a folder, or benchmarks with --data a150,pc59 --root FOLDER")
    if options.names is not None and len(words) > 1:
        raise ConfigError(f"--names with {len(words)} data sets; evaluate them one at a time")
    if options.out is not None and options.folder is None and len(words) > 1:
        raise ConfigError(f"--out {options.out} is one file for {len(words)} data sets; give a folder")
    if options.shard is not None and options.folder is None:
        raise ConfigError("--shard needs --out FOLDER, where all shards keep their counts")
    if options.store is not None and "bank" not in options.config.prompts:
        kinds = ",".join(("bank", *options.config.prompts))
        raise ConfigError(f"--bank {options.store} is asked by --prompts bank only; add it: --prompts {kinds}")
    if options.processes < 1 or (options.threads is not None and options.threads < 1):
        raise ConfigError(f"processes {options.processes}, threads {options.threads}: give numbers of 1 or more")
    if options.folder is not None:
        check_matplotlib()


def _words(options: EvaluateOptions) -> list[str]:
    return [*([] if options.data is None else [str(options.data)]), *options.sets]


def _plans(options: EvaluateOptions) -> list[Plan]:
    """Opens the data sets and draws their reference pictures."""
    from dpseg.data.benchmarks import BENCHMARKS, open_dataset
    from dpseg.data.folder import FolderDataset
    from dpseg.data.vocabularies import load_vocabulary
    from dpseg.evaluation.plan import make_plan

    names = None if options.names is None else load_vocabulary(options.names)
    needs_pictures = bool({"pictures", "both"} & set(options.config.prompts))
    plans: dict[str, Plan] = {}
    for word in _words(options):
        dataset = open_dataset(word, options.root, options.split)
        pool = None
        if needs_pictures:
            pool = open_dataset(word, options.root, None if isinstance(dataset, FolderDataset) else "train")
        known = word.strip().lower() in BENCHMARKS
        own = word.strip().lower() if known else Path(word).expanduser().resolve().name.removesuffix(".json") or "data"
        name, number = own, 2
        while name in plans:
            name, number = f"{own}-{number}", number + 1
        plans[name] = make_plan(dataset, options.config, names, pool, name)
    return list(plans.values())


def _measure(
    options: EvaluateOptions, plans: Sequence[Plan], folder: Path, console: Console, errors: Console
) -> tuple[list[Report], Segmenter] | None:
    """Counts what is not counted yet; returns the figures and the model, or None where other shards are missing."""
    from dpseg.evaluation.blocks import check_setting, describe, merge_blocks, missing_blocks
    from dpseg.evaluation.evaluate import encode_prompts, make_report
    from dpseg.evaluation.workers import Job, ModelSource

    source = ModelSource(
        options.model,
        options.device,
        options.untrained,
        options.matching,
        options.rejection,
        options.precision,
        options.store,
    )
    with errors.status(f"Loading {options.model}") if errors.is_terminal else nullcontext():
        segmenter: Segmenter | None = source.load()
    assert segmenter is not None
    training = _training(options, segmenter)
    digest = check_setting(folder, describe(segmenter, plans))
    number, count = options.shard or (0, 1)
    jobs = [Job(plan, folder, digest, missing_blocks(folder, plan, number, count)) for plan in plans]
    jobs = [job for job in jobs if job.blocks]
    if jobs and options.processes > 1:
        for job in jobs:
            encode_prompts(segmenter, job.plan)  # finds mistakes early, and leaves texts in the cache for all
        segmenter = None  # each process has its own, and this one would only take memory
    _run(options, source, jobs, segmenter, errors)
    missing = sum(len(missing_blocks(folder, plan)) for plan in plans)
    if missing:
        total = sum(len(plan.blocks) for plan in plans)
        console.print(
            f"shard {number + 1}/{count} is done: {total - missing} of {total} blocks are counted in {folder}; when the"
            " others are, the same command without --shard writes the report",
            markup=False,
            soft_wrap=True,
        )
        return None
    segmenter = segmenter or source.load()
    reports = []
    for plan in plans:
        tallies, seconds = merge_blocks(folder, plan, digest)
        reports.append(make_report(plan, segmenter, tallies, seconds, training))
    return reports, segmenter


def _run(
    options: EvaluateOptions, source: ModelSource, jobs: Sequence[Job], segmenter: Segmenter | None, errors: Console
) -> None:
    """Counts blocks, with the model in this process, or with none in several."""
    import torch

    from dpseg.evaluation.workers import run_jobs, run_processes

    if not jobs:
        return
    with progress(errors, sum(job.photos for job in jobs), "photos", lines=True) as step:
        if segmenter is None:
            threads = options.threads or max(1, torch.get_num_threads() // options.processes)
            run_processes(source, jobs, options.processes, threads, step)
        else:
            torch.set_num_threads(options.threads or torch.get_num_threads())
            run_jobs(segmenter, jobs, step)


def _training(options: EvaluateOptions, segmenter: Segmenter) -> list[str] | None:
    """Returns the names that the model was trained on; None: nobody knows."""
    from dpseg.data.vocabularies import load_vocabulary
    from dpseg.evaluation.seen import training_names
    from dpseg.pretrained import model_folder

    if options.seen is not None:
        return load_vocabulary(options.seen)
    if options.untrained:
        return None
    try:
        folder = model_folder(options.model)
    except DPSegError:  # a model without a folder of its own
        folder = None
    return training_names(segmenter.model.config, folder)


def _heading(options: EvaluateOptions, plan: Plan, report: Report) -> str:
    what = f"{plan.name} {options.split or ''}".strip()
    rate = report.seconds / max(1, report.photos)
    return (
        f"{what}: {report.photos} photos, {len(plan.names)} classes, {options.model}"
        f"{' untrained' if options.untrained else ''}, {report.seconds:.0f} s ({rate:.2f} s a photo)"
    )
