"""One thread for the model, and requests that wait for it: photos of one size and one task go together.

Nobody waits for a batch to fill. While the model works, requests gather; then the first of them goes next, and takes
along those that wait and are like it. So an idle server answers at once, and a busy one has full batches.
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


class ModelThread:
    """The one thread that uses a model. It can be started again after it was stopped."""

    def __init__(self, segmenter: Segmenter, batch_size: int | None = None, watcher: Watcher | None = None) -> None:
        """Prepares the thread; `start` starts it.

        Args:
            segmenter: that nobody else uses meanwhile.
            batch_size: photos at a time; None: `GPU_BATCH` on a GPU, and 1 on a CPU, which gains nothing by more.
            watcher: is told of each step, in the thread.
        """
        self.segmenter = segmenter
        self.batch_size = batch_size or (1 if segmenter.device.type == "cpu" else GPU_BATCH)
        self._watcher = watcher or (lambda step, count, seconds: None)
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Starts the thread."""
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="dpseg-model", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Finishes what was taken, and ends the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def segment(self, task: PhotoTask) -> Future[Segmentation]:
        """Takes a photo. A result that is cancelled before its turn is never computed."""
        return self._put(_Job(task))

    def encode(self, build: Callable[[], PromptSet]) -> Future[PromptSet]:
        """Takes classes to be encoded: a function that does it."""
        return self._put(_Job(build))

    def _put(self, job: _Job) -> Future[Any]:
        with self._changed:
            if self._stopping:
                raise RequestError(503, "the server is being stopped; try again soon", {"Retry-After": "5"})
            self._jobs.append(job)
            self._changed.notify()
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
        wanted = [job for job in jobs if job.future.set_running_or_notify_cancel()]
        if not wanted:
            return bool(jobs)
        try:
            results = self._work(wanted)
        except BaseException as error:  # the thread has to outlive whatever a request does to the model
            for job in wanted:
                job.future.set_exception(_explained(error))
        else:
            for job, result in zip(wanted, results, strict=True):
                job.future.set_result(result)
        return True

    def _take(self) -> list[_Job]:
        """Waits for the next job and returns it with those that go along; none when the thread is to end."""
        with self._changed:
            while not self._jobs and not self._stopping:
                self._changed.wait()
            if not self._jobs:
                return []
            taken = [self._jobs.popleft()]
            first = taken[0].task
            if isinstance(first, PhotoTask):
                pixels = _pixels(first)
                for job in list(self._jobs):
                    if len(taken) >= self.batch_size or pixels >= BATCH_PIXELS:
                        break
                    if isinstance(job.task, PhotoTask) and job.task.like == first.like:
                        self._jobs.remove(job)
                        taken.append(job)
                        pixels += _pixels(job.task)
            return taken

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
