"""What a server does with a model, whatever it is asked through: read, prompt, segment, answer, within its limits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from starlette.concurrency import run_in_threadpool

from dpseg.model.prompt_encoding import prompt_fingerprint
from dpseg.photos import Photo, load_photo
from dpseg.prompts.prompt_set import PromptSet
from dpseg.result import Segmentation
from dpseg.segmenter import Segmenter
from dpseg.serving.batching import ModelThreads, PhotoTask
from dpseg.serving.door import Door
from dpseg.serving.metrics import Metrics
from dpseg.serving.pictures import open_picture
from dpseg.serving.prompt_requests import PromptRequest
from dpseg.serving.prompt_store import PromptMemory, PromptStore
from dpseg.serving.settings import MEGA, ServeSettings

Answer = TypeVar("Answer")


class Service:
    """A model with its threads, its prompts in memory and its limits. Its methods belong to the event loop's thread.

    Attributes:
        settings: the limits.
        model: fingerprint of the model, by which prompts are matched.
        door: who is inside.
        metrics: figures for monitoring.
        store: saved prompt sets.
        threads: that use the model.
    """

    def __init__(self, settings: ServeSettings, segmenter: Segmenter) -> None:
        """Prepares it; `start` and `stop` begin and end its work.

        Raises:
            OutputError: the folder of prompt sets cannot be made.
        """
        self.settings = settings
        self.model = prompt_fingerprint(segmenter.model.encoder)
        self.door = Door(settings.queue, settings.per_client)
        self.metrics = Metrics(lambda: self.door.count)
        memory = int(settings.prompts_memory_mb * MEGA)
        self.store = PromptStore(PromptMemory(memory), settings.prompts_dir, settings.max_saved)
        self.threads = ModelThreads(segmenter, settings.batch_size, self._worked, settings.workers)
        self._segmenter = segmenter
        self._latest = PromptMemory(memory)
        # Photos take up to a hundred times more memory decoded than sent, so only those whose turn is near are: those
        # in work, as many that wait, and one being answered.
        self._decoded = asyncio.Semaphore(2 * self.threads.batch_size * self.threads.workers + 1)

    @property
    def refines(self) -> bool:
        """Whether the model looks at a photo twice where nobody says."""
        return self._segmenter.model.config.refine

    def start(self) -> None:
        """Starts the model's threads."""
        self.threads.start()

    def stop(self) -> None:
        """Finishes what was taken, and ends the threads; blocks until then."""
        self.threads.stop()

    async def prompts(self, request: PromptRequest) -> PromptSet:
        """Encodes a caller's classes, or finds them in memory.

        Raises:
            DPSegError: they cannot be used.
        """
        found = self._latest.get(request.key)
        self.metrics.prompted(found is not None)
        if found is not None:
            return found
        return await asyncio.wrap_future(self.threads.encode(partial(self._encode, request)))

    async def save(self, request: PromptRequest) -> PromptSet:
        """Encodes a caller's classes and keeps them under `request.key`.

        Raises:
            DPSegError: they cannot be used, or kept.
        """
        prompts = await self.prompts(request)
        await run_in_threadpool(self.store.save, request.key, prompts)
        return prompts

    async def saved(self, key: str) -> PromptSet:
        """Returns a saved prompt set.

        Raises:
            RequestError: there is none of that id.
        """
        return await run_in_threadpool(self.store.get, key)

    async def segment(
        self,
        data: bytes,
        prompts: PromptSet,
        key: str,
        answer: Callable[[Segmentation], Answer],
        refine: bool | None = None,
        background: float | None = None,
    ) -> Answer:
        """Segments a photo.

        Args:
            data: its file.
            prompts: its classes.
            key: of the prompts.
            answer: makes of the result what is returned; called in another thread.
            refine: as for `Segmenter`.
            background: as for `Segmenter`.

        Raises:
            DPSegError: the photo cannot be read.
        """
        async with self._decoded:
            photo = await run_in_threadpool(self._read, data)
            task = PhotoTask(photo, prompts, key, refine, background)
            result = await asyncio.wrap_future(self.threads.segment(task))
            return await run_in_threadpool(answer, result)

    def _read(self, data: bytes) -> Photo:
        image = open_picture(data, "image", self.settings.max_pixels)
        model = self._segmenter.model
        return load_photo(image, model.config, model.encoder.strides[-1])

    def _encode(self, request: PromptRequest) -> PromptSet:
        """Runs in a thread of the model, one at a time: of waiting requests of one key only the first has work."""
        found = self._latest.get(request.key)
        if found is None:
            found = request.build(self._segmenter)
            self._latest.put(request.key, found)
        return found

    def _worked(self, step: str, count: int, seconds: float) -> None:
        self.metrics.worked(step, count, seconds)
        if step == "segment":
            self.door.worked(seconds / count / self.threads.workers)
