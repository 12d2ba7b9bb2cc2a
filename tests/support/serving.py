"""`dpseg serve` until a visitor stops it, in this process or in one of its own: pytest_plugins brings `serve`."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from dpseg.cli import run
from support.served import PHOTO

Visit = Callable[[int, Callable[[], None]], None]
"""Is called with the port, and with what stops the server."""


@pytest.fixture(params=["here", pytest.param("apart", marks=pytest.mark.slow)])
def serve(request: pytest.FixtureRequest, model: str, capfd: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """`serve(visit, *options, stop=SIGTERM)` runs the command, which ends with 0 and prints its address alone."""
    ways = {"here": _serve_here, "apart": _serve_apart}

    def run_it(visit: Visit, *options: str, stop: signal.Signals = signal.SIGTERM) -> None:
        ways[request.param](visit, ["serve", "--port", "0", "--model", model, *options], stop)
        if request.param == "here":
            output, errors = capfd.readouterr()
            assert (len(_ADDRESS.findall(output)), output.count("\n"), errors) == (1, 1, "")

    return run_it


_ADDRESS = re.compile(r"Listening on http://127\.0\.0\.1:(\d+); .*\n")


def _serve_here(visit: Visit, command: list[str], stop: signal.Signals) -> None:
    from dpseg.commands import serve

    listening = serve.listen("127.0.0.1", 0)
    shared: list[int] = []

    ended = threading.Event()

    def call() -> None:
        try:
            visit(listening.getsockname()[1], end)
        finally:
            end()  # where the visit failed

    def end() -> None:
        if not ended.is_set():
            ended.set()
            os.kill(os.getpid(), stop)

    before = signal.signal(stop, lambda number, frame: None)  # for a signal before the server listens to it, or after
    try:
        with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as pool:
            patch.setattr(serve, "listen", lambda host, port: listening)
            patch.setattr(serve, "share_heaps", shared.append)  # for good, in this process
            visiting = pool.submit(call)
            assert run(command) == 0
            visiting.result(120)
    finally:
        listening.close()
        signal.signal(stop, before)
    assert shared == [serve.HEAPS]


def _serve_apart(visit: Visit, command: list[str], stop: signal.Signals) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-m", "dpseg", *command], stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            found = _ADDRESS.fullmatch(process.stdout.readline())
            assert found is not None
            visit(int(found[1]), lambda: process.send_signal(stop))
            assert process.wait(60) == 0
            assert process.communicate() == ("", "")
        finally:
            process.kill()


def ask(port: int, image: bytes = PHOTO, token: str = "") -> tuple[int, str]:
    """Posts a photo with two words, and returns the status and the answer."""
    boundary = uuid.uuid4().hex
    part = f'--{boundary}\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n'
    body = (part % ("prompts", "")).encode() + b'{"classes": ["red", "blue"]}\r\n'
    body += (part % ("image", '; filename="a"')).encode() + image + f"\r\n--{boundary}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(
            "POST", "/v1/segment", body, headers | {"Authorization": f"Bearer {token}"} if token else headers
        )
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def refuses_connections(port: int) -> bool:
    """Whether nobody listens at a port."""
    try:
        socket.create_connection(("127.0.0.1", port), 60).close()
    except ConnectionRefusedError:
        return True
    return False
