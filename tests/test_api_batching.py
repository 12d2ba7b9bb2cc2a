"""Many requests at a time: which photos go together, who is refused, who has hung up, and what a stop finishes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dpseg.errors import PromptError
from dpseg.photos import load_photo
from dpseg.prompts.prompt_set import PromptSet
from dpseg.segmenter import Segmenter
from dpseg.serving.batching import ModelThreads, PhotoTask
from dpseg.serving.door import Door
from dpseg.serving.problems import RequestError
from support.pictures import encoded, halves
from support.served import PHOTO, client_of, post, refusal, send_colours
from support.tiny import tiny_config


@pytest.fixture
def batches(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of what the encoder was given."""
    shapes: list[tuple[int, ...]] = []
    original = segmenter.model.encode

    def encode(images: torch.Tensor) -> Any:
        shapes.append(tuple(images.shape))
        return original(images)

    monkeypatch.setattr(segmenter.model, "encode", encode)
    return shapes


class Held:
    """Holds the model's thread at its first task until `release`."""

    def __init__(self, thread: ModelThreads) -> None:
        self._gate, begun = threading.Event(), threading.Event()

        def wait_here() -> Any:
            begun.set()
            assert self._gate.wait(30)

        self.future = thread.encode(wait_here)
        assert begun.wait(30)

    def release(self) -> None:
        self._gate.set()


@contextmanager
def running(threads: ModelThreads) -> Iterator[ModelThreads]:
    threads.start()
    try:
        yield threads
    finally:
        threads.stop()
    assert not threads.alive


@pytest.fixture
def thread(segmenter: Segmenter) -> Iterator[ModelThreads]:
    """One thread, which takes three photos at a time."""
    with running(ModelThreads(segmenter, batch_size=3, workers=1)) as started:
        yield started


def task(prompts: PromptSet, image: Image.Image | None = None, key: str = "", background: float | None = None) -> Any:
    photo = load_photo(halves() if image is None else image, tiny_config(), 32)
    return PhotoTask(photo, prompts, key, False, background)


@pytest.mark.numeric
def test_photos_that_are_alike_go_together(
    thread: ModelThreads, colours: PromptSet, segmenter: Segmenter, batches: list[tuple[int, ...]]
) -> None:
    held = Held(thread)
    photos = [halves(), halves(64, 64), halves(128, 64), halves(256, 128), halves(128, 64), halves(64, 64)]
    futures = [thread.segment(task(colours, photo)) for photo in photos]
    held.release()
    results = [future.result(30) for future in futures]
    assert batches == [(3, 3, 64, 128), (2, 3, 64, 64), (1, 3, 64, 128)]
    for photo, result in zip(photos, results, strict=True):
        assert result.labels.shape == (photo.height, photo.width)
        assert np.array_equal(result.labels, segmenter(photo, prompts=colours).labels)


def test_other_prompts_and_options_go_apart_and_what_is_cancelled_is_not_computed(
    thread: ModelThreads, colours: PromptSet, batches: list[tuple[int, ...]]
) -> None:
    held = Held(thread)
    other = task(colours.select(["blue", "red"]), key="other")
    tasks = (task(colours), other, task(colours, background=1.0), task(colours), task(colours))
    *kept, dropped = [thread.segment(one) for one in tasks]
    assert dropped.cancel()
    held.release()
    first, swapped, none, last = (future.result(30).labels for future in kept)
    assert [shape[0] for shape in batches] == [2, 1, 1]
    assert np.array_equal(first, last)
    assert np.array_equal(swapped, 1 - first)
    assert (none == -1).all()


def test_a_cpu_takes_a_photo_at_a_time_and_works_on_one_a_core(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ModelThreads(segmenter).batch_size == 1
    for cores, workers in ((1, 1), (2, 2), (16, 4)):
        monkeypatch.setattr(torch, "get_num_threads", lambda cores=cores: cores)
        assert ModelThreads(segmenter).workers == workers


def test_photos_at_work_share_the_cores(
    segmenter: Segmenter, colours: PromptSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = segmenter(halves(), prompts=colours).labels
    before, seen = torch.get_num_threads(), list[int]()
    together, original = threading.Barrier(2), segmenter.model.encode

    def encode(images: torch.Tensor) -> Any:
        seen.append(torch.get_num_threads())
        together.wait(30)  # both are here, or this fails
        return original(images)

    monkeypatch.setattr(segmenter.model, "encode", encode)
    threads = ModelThreads(segmenter, workers=2)
    threads.cores = 4
    futures = [threads.segment(task(colours)) for _ in range(2)]
    try:
        with running(threads):
            assert all(np.array_equal(future.result(30).labels, expected) for future in futures)
            assert seen == [2, 2]
            together = threading.Barrier(1)
            assert np.array_equal(threads.segment(task(colours)).result(30).labels, expected)
            assert seen == [2, 2, 4]
            assert torch.get_num_threads() == before, "of those threads alone"
    finally:
        torch.set_num_threads(before)  # new threads take the number that any thread chose last


def test_classes_are_encoded_one_at_a_time_beside_photos(segmenter: Segmenter, colours: PromptSet) -> None:
    with running(ModelThreads(segmenter, workers=2)) as threads:
        held = Held(threads)
        second = threads.encode(lambda: colours)
        assert threads.segment(task(colours)).result(30).names == ("red", "blue")
        assert not second.done()
        held.release()
        assert second.result(30) is colours


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (PromptError("mine"), PromptError, "mine"),
        (torch.OutOfMemoryError("CUDA"), RequestError, "no memory"),
        (ZeroDivisionError("secret"), RuntimeError, "^the model failed$"),
        (SystemExit(), RuntimeError, "^the model failed$"),
    ],
)
def test_an_error_is_its_batch_s_alone(
    thread: ModelThreads, colours: PromptSet, caplog: pytest.LogCaptureFixture, error: Any, kind: Any, text: str
) -> None:
    def build() -> PromptSet:
        raise error

    with pytest.raises(kind, match=text) as caught:
        thread.encode(build).result(30)
    assert kind is not RequestError or caught.value.status == 503
    assert bool(caplog.records) == (kind is not PromptError)  # the caller's own mistakes are no news
    assert thread.segment(task(colours)).result(30).names == ("red", "blue")


def test_a_stop_finishes_what_was_taken(segmenter: Segmenter, colours: PromptSet) -> None:
    thread = ModelThreads(segmenter, workers=1)
    thread.start()
    held = Held(thread)
    futures = [thread.segment(task(colours)) for _ in range(4)]
    stopping = threading.Thread(target=thread.stop)
    stopping.start()
    while not thread._stopping:
        time.sleep(0.01)
    with pytest.raises(RequestError, match="being stopped"):
        thread.segment(task(colours))
    held.release()
    stopping.join(30)
    assert not thread.alive
    assert all(future.result(0).names == ("red", "blue") for future in futures)


def test_the_door_says_when_to_come_again() -> None:
    door = Door(room=3, per_client=2)
    door.seconds = 4.0
    with door.enter("a"), door.enter("a"):
        with pytest.raises(RequestError, match="2 requests of yours") as one:
            door.enter("a").__enter__()
        with door.enter("b"), pytest.raises(RequestError, match="3 requests are in work") as all_:
            door.enter("c").__enter__()
    assert (one.value.status, one.value.headers) == (429, {"Retry-After": "8"})
    assert (all_.value.status, all_.value.headers) == (503, {"Retry-After": "12"})
    assert door.count == 0
    for _ in range(200):
        door.worked(1.0)
    assert door.seconds == pytest.approx(1.0)


@pytest.mark.parametrize(("limit", "status"), [("queue", 503), ("per_client", 429)])
def test_too_many_requests_are_refused(segmenter: Segmenter, limit: str, status: int) -> None:
    with client_of(segmenter, **{limit: 2}) as client, ThreadPoolExecutor() as pool:
        service = client.app.state.service  # type: ignore[attr-defined]
        held = Held(service.threads)
        waiting = [pool.submit(send_colours, client) for _ in range(2)]
        while service.door.count < 2:
            assert not any(future.done() for future in waiting)
            time.sleep(0.01)
        response = send_colours(client)
        assert int(response.headers["retry-after"]) >= 1
        assert "the limit" in refusal(response, status)
        assert client.get("/readyz").status_code == (503 if status == 503 else 200)
        assert client.get("/healthz").status_code == 200
        held.release()
        assert [future.result(30).status_code for future in waiting] == [200, 200]
        assert send_colours(client).status_code == 200


def test_requests_at_once_share_prompts(segmenter: Segmenter, batches: list[tuple[int, ...]]) -> None:
    with client_of(segmenter, batch_size=2) as client, ThreadPoolExecutor(8) as pool:
        service = client.app.state.service  # type: ignore[attr-defined]
        held = Held(service.threads)
        wide = encoded(halves(256, 64))
        futures = [pool.submit(send_colours, client, wide if number % 2 else PHOTO) for number in range(8)]
        while service.door.count < 8:
            time.sleep(0.01)
        held.release()
        wait(futures, 60)
        widths = [future.result().json()["width"] for future in futures]
        encodings = service.metrics.registry.get_sample_value("dpseg_model_seconds_count", {"step": "prompts"})
    assert widths == [128, 256] * 4
    assert sum(shape[0] for shape in batches) == 8
    assert encodings == 1 + 8  # the one that held, and of the eight only the first had work to do
    assert len(service._latest) == 1


def test_who_has_hung_up_takes_no_turn(segmenter: Segmenter, batches: list[tuple[int, ...]]) -> None:
    with client_of(segmenter) as client:
        kept = post(client, {"classes": ["cat"]}, None, path="/v1/prompts").json()["id"]
        service = client.app.state.service  # type: ignore[attr-defined]
        held = Held(service.threads)
        assert client.portal is not None
        client.portal.call(_hang_up, client.app, kept)
        assert service.door.count == 0
        held.release()
        assert post(client, prompts_id=kept, image=encoded(halves(64, 64))).status_code == 200
    assert [shape[-1] for shape in batches] == [64]


async def _hang_up(app: Any, kept: str) -> None:
    """Sends a whole request, waits until it is in work, and closes the connection."""
    part = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
    photo = part.replace(b'"%s"', b'"%s"; filename="a"') % (b"image", PHOTO)
    body = part % (b"prompts_id", kept.encode()) + photo + b"--b--\r\n"
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Any:
        message = next(messages, None)
        if message is None:
            while not app.state.service.threads._jobs:
                await asyncio.sleep(0.01)
        return message or {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        assert message.get("status", 499) == 499

    headers = [(b"content-type", b"multipart/form-data; boundary=b")]
    scope = {"type": "http", "asgi": {"version": "3.0"}, "method": "POST", "path": "/v1/segment", "headers": headers}
    scope |= {"http_version": "1.1", "scheme": "http", "query_string": b"", "root_path": "", "client": ("c", 1)}
    await asyncio.wait_for(app(scope, receive, send), 30)
