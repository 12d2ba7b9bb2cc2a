"""The threads that use the model, and requests that wait for them: photos of one size and one task go together.

Nobody waits for a batch to fill. While the model works, requests gather; then the first of them goes next, and takes
along those that wait and are like it. So an idle server answers at once, and a busy one has full batches.

On a CPU several photos are in work at a time, each on its share of the cores: cores that work on a photo together wait
for each other at every layer, and the longer the more other threads (requests, pictures, answers) come in between. A
photo that is alone has all cores.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from dpseg.errors import DPSegError
from dpseg.memory import release_free_memory
from dpseg.photos import BATCH_PIXELS, Encoded, Photo
from dpseg.prompts.prompt_set import PromptSet
from dpseg.result import Segmentation
from dpseg.segmenter import GPU_BATCH, RELEASE_EVERY, Segmenter
from dpseg.serving.problems import RequestError

Watcher = Callable[[str, int, float], None]
"""Is told of each step of the model: "prompts" or "segment", how many at once, seconds."""

MOST_WORKERS = 4
"""More photos than that are not in work at a time on a CPU, unless the operator says so: each needs memory."""

_log = logging.getLogger("dpseg.serving")


@dataclass(frozen=True, eq=False)
class PhotoTask:
    """A photo to be segmented.

    Attributes:
        photo: read already.
        prompts: its classes.
        prompts_key: equal keys mean equal prompts.
        refine: as for `Segmenter`.
        background: as for `Segmenter`.
    """

    photo: Photo
    prompts: PromptSet
    prompts_key: str
    refine: bool | None
    background: float | None

    @property
    def like(self) -> Hashable:
        """Returns what photos of one batch have in common."""
        return self.photo.tensor.shape, self.prompts_key, self.refine, self.background


@dataclass(frozen=True, eq=False)
class _Job:
    task: PhotoTask | Callable[[], PromptSet]
    future: Future[Any] = field(default_factory=Future)


class ModelThreads:
    """The threads that use a model. They can be started again after they were stopped."""

    def __init__(
        self,
        segmenter: Segmenter,
        batch_size: int | None = None,
        watcher: Watcher | None = None,
        workers: int | None = None,
    ) -> None:
        """Prepares the threads; `start` starts them.

        Args:
            segmenter: that nobody else uses meanwhile.
            batch_size: photos at a time; None: `GPU_BATCH` on a GPU, and 1 on a CPU, which gains nothing by more.
            watcher: is told of each step, in the thread that took it.
            workers: so many threads, 1 or more; None: 1 on a GPU; on a CPU one a core, `MOST_WORKERS` at most.
        """
        on_cpu = segmenter.device.type == "cpu"
        self.segmenter = segmenter
        self.batch_size = batch_size or (1 if on_cpu else GPU_BATCH)
        self.cores = torch.get_num_threads()
        self.workers = workers or (min(self.cores, MOST_WORKERS) if on_cpu else 1)
        self._watcher = watcher or (lambda step, count, seconds: None)
        self._jobs: deque[_Job] = deque()
        self._busy, self._encoding = 0, False
        self._changed = threading.Condition()
        self._stopping = False
        self._threads: list[threading.Thread] = []

    @property
    def alive(self) -> bool:
        """Whether all of them run."""
        return bool(self._threads) and all(thread.is_alive() for thread in self._threads)

    def start(self) -> None:
        """Starts the threads."""
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._run, name=f"dpseg-model-{number}", daemon=True)
            for number in range(self.workers)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Finishes what was taken, and ends the threads."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def segment(self, task: PhotoTask) -> Future[Segmentation]:
        """Takes a photo. A result that is cancelled before its turn is never computed."""
        return self._put(_Job(task))

    def encode(self, build: Callable[[], PromptSet]) -> Future[PromptSet]:
        """Takes classes to be encoded: a function that does it. There is one at a time, so that it can keep results."""
        return self._put(_Job(build))

    def _put(self, job: _Job) -> Future[Any]:
        with self._changed:
            if self._stopping:
                raise RequestError(503, "the server is being stopped; try again soon", {"Retry-After": "5"})
            self._jobs.append(job)
            self._changed.notify_all()
        return job.future

    def _run(self) -> None:
        number = 0
        while self._step():
            number += 1
            if number % RELEASE_EVERY == 0:
                release_free_memory()

    def _step(self) -> bool:
        """Does the next jobs; returns whether there were any. What they held is free when it returns."""
        jobs = self._take()
        if not jobs:
            return False
        try:
            self._answer([job for job in jobs if job.future.set_running_or_notify_cancel()])
        finally:
            with self._changed:
                self._busy -= 1
                if not isinstance(jobs[0].task, PhotoTask):
                    self._encoding = False
                self._changed.notify_all()
        return True

    def _answer(self, jobs: Sequence[_Job]) -> None:
        if not jobs:
            return
        try:
            results = self._work(jobs)
        except BaseException as error:  # the thread has to outlive whatever a request does to the model
            for job in jobs:
                job.future.set_exception(_explained(error))
        else:
            for job, result in zip(jobs, results, strict=True):
                job.future.set_result(result)

    def _take(self) -> list[_Job]:
        """Waits for the next job and returns it with those that go along; none when the thread is to end."""
        with self._changed:
            while (first := self._next()) is None:
                if self._stopping and not self._jobs:
                    return []
                self._changed.wait()
            self._jobs.remove(first)
            taken = [first]
            if isinstance(first.task, PhotoTask):
                pixels = _pixels(first.task)
                for job in list(self._jobs):
                    if len(taken) >= self.batch_size or pixels >= BATCH_PIXELS:
                        break
                    if isinstance(job.task, PhotoTask) and job.task.like == first.task.like:
                        self._jobs.remove(job)
                        taken.append(job)
                        pixels += _pixels(job.task)
            else:
                self._encoding = True
            self._busy += 1
            at_work = min(self.workers, self._busy + len(self._jobs))
        torch.set_num_threads(max(1, self.cores // at_work))  # of this thread alone
        return taken

    def _next(self) -> _Job | None:
        """Returns the first job that can be done now."""
        return next((job for job in self._jobs if isinstance(job.task, PhotoTask) or not self._encoding), None)

    def _work(self, jobs: Sequence[_Job]) -> Sequence[Any]:
        start = time.perf_counter()
        tasks = [job.task for job in jobs if isinstance(job.task, PhotoTask)]
        if tasks:
            results: Sequence[Any] = self._segment(tasks)
        else:
            results = [job.task() for job in jobs if not isinstance(job.task, PhotoTask)]
        self._watcher("segment" if tasks else "prompts", len(jobs), time.perf_counter() - start)
        return results

    @torch.inference_mode()
    def _segment(self, tasks: Sequence[PhotoTask]) -> list[Segmentation]:
        first, model = tasks[0], self.segmenter.model
        images = torch.stack([task.photo.tensor for task in tasks]).to(self.segmenter.device)
        encoded = Encoded(tuple(task.photo for task in tasks), model.encode(images))
        return self.segmenter.decode(encoded, first.prompts, first.refine, first.background)


def _pixels(task: PhotoTask) -> int:
    return task.photo.image.width * task.photo.image.height


def _explained(error: BaseException) -> BaseException:
    """Returns what the caller gets; what is nobody's fault but ours is logged."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        _log.error("out of memory: %s", error)
        return RequestError(
            503, "the server has no memory left for this; try again, or send a smaller photo", {"Retry-After": "5"}
        )
    if not isinstance(error, DPSegError):
        _log.error("the model failed", exc_info=error)
        return RuntimeError("the model failed")
    return error
