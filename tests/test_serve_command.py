"""`dpseg serve`: it listens, answers, finishes what it took when it is stopped; and its mistakes."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

from support.pictures import encoded, halves
from support.serving import ask, refuses_connections

pytest_plugins = ("support.served", "support.serving")

LARGE = encoded(halves(3000, 2000), compress_level=1)
"""A photo that takes the tiny model a while too."""


def inside(port: int) -> float:
    """How many requests are in work."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return float(text.split("\ndpseg_requests_inside ")[1].split()[0])


def test_a_stop_finishes_what_was_taken(serve: Callable[..., None]) -> None:
    ports = []

    def visit(port: int, stop: Callable[[], None]) -> None:
        ports.append(port)
        assert ask(port)[0] == 200
        with ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(ask, port, LARGE) for _ in range(4)]
            while inside(port) < 4:
                assert not any(answer.done() for answer in answers)
                time.sleep(0.02)
            stop()
            assert [answer.result(120)[0] for answer in answers] == [200] * 4
        assert {json.loads(answer.result()[1])["width"] for answer in answers} == {3000}

    serve(visit, "--api")
    assert refuses_connections(ports[0])


def test_options_count_and_ctrl_c_ends_it_too(
    serve: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def visit(port: int, stop: Callable[[], None]) -> None:
        status, answer = ask(port)
        assert (status, "error" in json.loads(answer)) == (401, True)
        status, answer = ask(port, token="open-sesame")
        assert (status, "128 x 64 = 8,192 pixels, the limit is 5,000" in answer) == (413, True)
        status, answer = ask(port, b"x" * 8_000_000, "open-sesame")  # is still being sent when it is refused
        assert (status, "more than 1 MB" in answer) == (413, True)
        with socket.create_connection(("127.0.0.1", port), 60) as slow:
            head = "POST /v1/segment HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\nAuthorization: Bearer open-sesame"
            slow.sendall(f"{head}\r\nContent-Type: multipart/form-data; boundary=b\r\n\r\n--b".encode())
            assert b"408" in slow.recv(1000).splitlines()[0]
        stop()

    kept = tmp_path / "kept"
    monkeypatch.setenv("DPSEG_TOKEN", "open-sesame")
    limits = ("--max-pixels", "0.005", "--max-body", "1", "--body-seconds", "1")
    serve(visit, "--api", *limits, "--prompts-dir", str(kept), stop=signal.SIGINT)
    assert kept.is_dir()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--port", "70000"), "port 70000 is out of range"),
        (("--api", "--port", "70000"), "port 70000 is out of range"),
        (("--api", "--host", "nowhere.invalid"), "cannot listen on nowhere.invalid port 7860"),
        (("--api", "--queue", "0"), "queue 0 is out of range"),
        (("--api", "--max-body", "nan"), "max_body_mb nan is out of range"),
        (("--api", "--token", ""), "the token is empty"),
        (("--api", "--token", "señor"), "not of plain characters"),
        (("--api", "--port", "0", "--model", "dpseg-lit"), "did you mean 'dpseg-lite'"),
        (("--api", "--port", "many"), "--port"),
    ],
)
def test_mistakes_are_one_line(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", ModuleType("gradio"))  # which takes seconds
    assert message in refused("serve", *arguments)


def test_a_port_that_is_taken_is_said_before_the_model_is_loaded(refused: Callable[..., str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        line = refused("serve", "--api", "--port", str(port), "--model", "no-such-model")
    assert f"cannot listen on 127.0.0.1 port {port} (Address already in use)" in line


@pytest.mark.parametrize(
    ("package", "arguments", "message"),
    [
        ("uvicorn", ("--api",), "serve needs the package uvicorn; pip install 'dpseg[serve]'"),
        (
            "gradio",
            (),
            "the page needs the package gradio; pip install 'dpseg[page]', or add --api for the API alone",
        ),
    ],
)
def test_a_missing_extra_is_named(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, package: str, arguments: tuple[str], message: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert message in refused("serve", *arguments)
