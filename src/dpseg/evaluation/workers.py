"""Several processes that share an evaluation: each takes every n-th of the blocks that are missing."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from dpseg.errors import ConfigError, DPSegError
from dpseg.evaluation.blocks import write_block
from dpseg.evaluation.evaluate import count_photos, encode_prompts
from dpseg.evaluation.plan import Plan
from dpseg.matching import Matching
from dpseg.memory import release_free_memory
from dpseg.precision import Precision
from dpseg.pretrained import untrained
from dpseg.rejection import Rejection
from dpseg.segmenter import Segmenter


@dataclass(frozen=True)
class ModelSource:
    """Where a process gets the model.

    Attributes:
        name: of a model, a folder or a hub id.
        device: None: a GPU where there is one; processes take several in turn.
        untrained: what it was before training, the plain cosine.
        matching: how prompts are compared with a photo; None: as the model's config says.
        rejection: which classes of a long list are given up early; None: as the model's config says.
        precision: of the numbers that the model computes in.
        store: folder or file of a bank that is asked before the model's; None: there is none.
    """

    name: str
    device: str | None = None
    untrained: bool = False
    matching: Matching | None = None
    rejection: Rejection | None = None
    precision: Precision = "32"
    store: Path | None = None

    def load(self, rank: int = 0) -> Segmenter:
        """Loads the model.

        Args:
            rank: number of the process, from 0.

        Raises:
            DPSegError: there is no such model, device or bank.
        """
        import torch

        device = self.device
        if device is None and torch.cuda.device_count() > 1:
            device = f"cuda:{rank % torch.cuda.device_count()}"
        segmenter = Segmenter.from_pretrained(
            self.name,
            device,
            self.store,
            matching=self.matching,
            rejection=self.rejection,
            precision=self.precision,
        )
        if self.untrained:
            plain = untrained(segmenter.model).to(segmenter.device)
            plain.set_precision(self.precision)
            segmenter = Segmenter(plain, segmenter.bank, store=segmenter.store)
        return segmenter


@dataclass(frozen=True, eq=False)
class Job:
    """Blocks of one data set that are to be counted.

    Attributes:
        plan: of the data set.
        folder: of the evaluation.
        digest: of its setting.
        blocks: their numbers.
    """

    plan: Plan
    folder: Path
    digest: str
    blocks: tuple[int, ...]

    @property
    def photos(self) -> int:
        """How many photos that are."""
        return sum(len(self.plan.blocks[number]) for number in self.blocks)

    def share(self, number: int, count: int) -> Job:
        """Returns every `count`-th of the blocks, from the `number`-th on."""
        return replace(self, blocks=self.blocks[number::count])


def run_jobs(segmenter: Segmenter, jobs: Sequence[Job], step: Callable[[], None] = lambda: None) -> None:
    """Counts blocks in this process and writes each when it is done.

    Args:
        segmenter: the model.
        jobs: what to count.
        step: called after each photo.

    Raises:
        DPSegError: a photo or a mask is not usable, or a block cannot be written.
    """
    for job in jobs:
        if not job.blocks:
            continue
        prompts = encode_prompts(segmenter, job.plan)
        for number in job.blocks:
            start = time.perf_counter()
            tallies = job.plan.tallies()
            count_photos(segmenter, job.plan, prompts, job.plan.blocks[number], tallies, step)
            write_block(job.folder, job.plan, number, tallies, time.perf_counter() - start, job.digest)
            release_free_memory()


def run_processes(
    source: ModelSource, jobs: Sequence[Job], processes: int, threads: int, step: Callable[[], None] = lambda: None
) -> None:
    """Counts blocks in several processes of this machine.

    Args:
        source: of the model; each process loads its own.
        jobs: what to count.
        processes: so many, 1 or more.
        threads: of each process, 1 or more.
        step: called after each photo.

    Raises:
        ConfigError: a number is out of range.
        DPSegError: what went wrong in a process; the others are stopped, and the blocks that are done stay.
    """
    if processes < 1 or threads < 1:
        raise ConfigError(f"processes {processes}, threads {threads}: give numbers of 1 or more")
    context = multiprocessing.get_context("spawn")
    children: dict[Connection, SpawnProcess] = {}
    try:
        for rank in range(processes):
            share = [job.share(rank, processes) for job in jobs]
            if not any(job.blocks for job in share):
                continue
            ours, theirs = context.Pipe(duplex=False)
            child = context.Process(target=_child, args=(source, share, rank, threads, theirs), daemon=True)
            child.start()
            theirs.close()  # so that the end of the child is the end of the pipe
            children[ours] = child
        _follow(children, step)
    finally:
        for child in children.values():
            child.terminate()
        for pipe, child in children.items():
            child.join()
            pipe.close()


def _follow(children: dict[Connection, SpawnProcess], step: Callable[[], None]) -> None:
    """Waits for all processes and passes on what they report."""
    open_pipes = list(children)
    while open_pipes:
        for pipe in wait(open_pipes):
            assert isinstance(pipe, Connection)
            try:
                message = pipe.recv()
            except (EOFError, ConnectionError):
                open_pipes.remove(pipe)
                children[pipe].join()
                if children[pipe].exitcode != 0:
                    raise DPSegError(
                        f"a process of the evaluation ended before its time (exit code {children[pipe].exitcode});"
                        " run the same command again: what is done is kept; with too little memory, use fewer processes"
                    ) from None
                continue
            if isinstance(message, DPSegError):
                raise message
            if isinstance(message, str):
                raise RuntimeError(message)
            step()


def _child(source: ModelSource, jobs: Sequence[Job], rank: int, threads: int, pipe: Connection) -> None:
    """Is one process: reports each photo as None, what the user can mend as an error, all else as text."""
    import torch

    torch.set_num_threads(threads)
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):  # the parent was stopped, and says so itself
        try:
            run_jobs(source.load(rank), jobs, lambda: pipe.send(None))
        except DPSegError as error:
            pipe.send(error)
        except BrokenPipeError:
            raise
        except Exception:
            pipe.send(traceback.format_exc())
    pipe.close()
