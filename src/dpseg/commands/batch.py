"""`dpseg batch`: any number of pictures, in one process or in many, resumable."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from dpseg.commands.progress import progress
from dpseg.commands.refinement import Refinement
from dpseg.errors import ConfigError, MissingExtraError, did_you_mean
from dpseg.matching import Matching
from dpseg.precision import Precision
from dpseg.rejection import Rejection

if TYPE_CHECKING:
    from dpseg.batch.sources import Item
    from dpseg.batch.work import Job
    from dpseg.segmenter import Segmenter

ENGINES = ("local", "ray")

SHOWN = 20
"""So many broken pictures are listed on the screen; the file has all."""

_Blocks = list[tuple[int, "Sequence[Item]"]]


@dataclass(frozen=True)
class BatchOptions:
    """The options of `dpseg batch`.

    Attributes:
        sources: folders, globs, lists and shards, as paths or addresses.
        prompts: file of a saved prompt set.
        out: folder of the results, a path or an address.
        formats: of `dpseg.batch.work.FORMATS`.
        block: pictures a block, 1 or more.
        retry_broken: segment blocks again that have pictures which could not be read.
        background: threshold in [0, 1]; None: no pixel is "none".
        matching: how prompts are compared with a picture; None: as the model's config says.
        rejection: which classes of a long list are given up early; None: as the model's config says.
        precision: of the numbers that the model computes in.
        model: name, folder or hub id.
        refine: whether Inference II runs, and how; not as a sequence.
        device: None: CUDA where there is a GPU.
        batch_size: pictures at a time; None: as suits the device.
        size: encoder's input size in pixels; None: the model's own.
        engine: of `ENGINES`.
        workers: of Ray; None: as suits the machines.
        threads: cores of each worker; None: as suits the machines.
        cluster: address of an existing Ray.
    """

    sources: tuple[str, ...]
    prompts: Path
    out: str
    formats: tuple[str, ...] = ("parquet",)
    block: int = 64
    retry_broken: bool = False
    background: float | None = None
    matching: Matching | None = None
    rejection: Rejection | None = None
    precision: Precision = "32"
    model: str = "dpseg-lite"
    refine: Refinement = field(default_factory=Refinement)
    device: str | None = None
    batch_size: int | None = None
    size: int | None = None
    engine: str = "local"
    workers: int | None = None
    threads: int | None = None
    cluster: str | None = None


def batch(options: BatchOptions, console: Console, errors: Console) -> int:
    """Segments all pictures that no earlier run of the same command finished, and writes the results.

    Args:
        options: what the user asked for.
        console: where progress and the summary are printed.
        errors: where pictures that cannot be read are reported.

    Returns:
        The exit status: 0, or 1 where a picture could not be read, in this run or an earlier one.

    Raises:
        DPSegError: the user's mistake.
    """
    _check(options)
    from dpseg.batch.manifest import check_manifest, cut, describe, finished_blocks, forget_broken, list_broken
    from dpseg.batch.sources import list_items
    from dpseg.batch.store import Store

    job = _job(options)
    store = Store(job.out)
    with errors.status("Listing the pictures") if errors.is_terminal else nullcontext():
        items = list_items(options.sources, store.address)
    with errors.status(f"Loading {options.model}") if errors.is_terminal else nullcontext():
        segmenter = job.segmenter("cpu" if options.engine == "ray" else None)
    segmenter.usable(job.prompts)
    check_manifest(store, describe(segmenter, job.prompts, items, job.results() | {"block": options.block}))
    blocks = cut(items, options.block)
    finished = finished_blocks(store) & set(range(len(blocks)))
    if options.retry_broken:
        finished = forget_broken(store, finished)
    todo = [(number, block) for number, block in enumerate(blocks) if number not in finished]
    pictures = sum(len(block) for _, block in todo)
    console.print(
        f"{_count(len(items), 'picture')} in {_count(len(blocks), 'block')}; {len(items) - pictures} finished before",
        markup=False,
        soft_wrap=True,
    )
    start = time.perf_counter()
    if todo:
        with progress(console, pictures, "pictures", lines=True) as step:
            (_run_ray if options.engine == "ray" else _run_here)(options, job, segmenter, todo, step)
    took = f"{_count(pictures, 'picture')} in {time.perf_counter() - start:.1f} s" if todo else "nothing was left to do"
    broken = list_broken(store, len(blocks))
    console.print(f"{took}; results in {store.address}", markup=False, soft_wrap=True)
    _report(broken, len(items), f"{store.address}/broken.jsonl", errors)
    return 1 if broken else 0


def _check(options: BatchOptions) -> None:
    """Checks what can be checked before anything is loaded."""
    if options.engine not in ENGINES:
        raise ConfigError(f"engine {options.engine!r} is unknown; {did_you_mean(options.engine, ENGINES)}")
    _need(("fsspec", "pyarrow"), "batch")
    if options.engine == "ray":
        _need(("ray", "ray.data"), "ray")
    for name, value in (("workers", options.workers), ("threads", options.threads), ("cluster", options.cluster)):
        if value is not None and options.engine != "ray":
            raise ConfigError(f"--{name} {value} is for Ray; add --engine ray, or leave it out")
    from dpseg.batch.work import FORMATS

    if not options.formats:
        raise ConfigError(f"no format is given; known: {', '.join(FORMATS)}")
    for name in options.formats:
        if name not in FORMATS:
            raise ConfigError(f"format {name!r} is unknown; {did_you_mean(name, FORMATS)}")
    if options.block < 1:
        raise ConfigError(f"block {options.block} is out of range; give 1 picture or more")
    if options.refine.refine == "sequence":
        raise ConfigError("--refine sequence needs the pictures one after the other; use dpseg predict for a sequence")


def _need(packages: Sequence[str], extra: str) -> None:
    for package in packages:
        try:
            import_module(package)
        except ImportError as error:
            raise MissingExtraError(
                f"this needs the package {error.name or package}; pip install 'dpseg[{extra}]'"
            ) from error


def _job(options: BatchOptions) -> Job:
    from dpseg.batch.work import Job
    from dpseg.prompts.prompt_set import PromptSet

    refine = options.refine.refine
    return Job(
        out=options.out if "://" in options.out else os.path.abspath(os.path.expanduser(options.out)),
        prompts=PromptSet.load(options.prompts),
        model=os.path.abspath(options.model) if Path(options.model).is_dir() else options.model,
        formats=options.formats,
        refine=None if refine is None else bool(refine),
        refinement=options.refine.config,
        background=options.background,
        size=options.size,
        matching=options.matching,
        rejection=options.rejection,
        precision=options.precision,
        device=options.device,
        batch_size=options.batch_size,
    )


def _run_here(options: BatchOptions, job: Job, segmenter: Segmenter, todo: _Blocks, step: Callable[[], None]) -> None:
    from dpseg.batch.work import BlockWork

    work = BlockWork(job, segmenter)
    for number, items in todo:
        work(number, items, step)


def _run_ray(options: BatchOptions, job: Job, segmenter: Segmenter, todo: _Blocks, step: Callable[[], None]) -> None:
    from dpseg.batch.ray_engine import run_ray

    for count in run_ray(job, todo, options.cluster, options.workers, options.threads):
        for _ in range(count):
            step()


def _report(broken: Sequence[tuple[str, str]], total: int, place: str, errors: Console) -> None:
    if not broken:
        return
    errors.print(
        f"{len(broken)} of {_count(total, 'picture')} could not be read; {place} lists them:",
        markup=False,
        soft_wrap=True,
    )
    for _, error in broken[:SHOWN]:
        errors.print(f"  {error}", markup=False, soft_wrap=True)
    if len(broken) > SHOWN:
        errors.print(f"  and {len(broken) - SHOWN} more", markup=False)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
