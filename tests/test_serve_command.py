"""`dpseg serve` as a process: it listens, answers, finishes what it took when it is stopped; and its mistakes."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
import torch

from dpseg.cli import run
from dpseg.model.dpseg import DPSeg
from support.api_client import CONFIG, PHOTO, encoded, halves

LARGE = encoded(halves(3000, 2000), compress_level=1)
"""A photo that takes the tiny model a while too."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    DPSeg(CONFIG).save_pretrained(folder)
    return str(folder)


@contextmanager
def started(
    model: str, *options: str, api: bool = True, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Starts a server, and yields its process and its port."""
    command = [sys.executable, "-m", "dpseg", "serve", "--port", "0", "--model", model, *options]
    command += ["--api"] if api else []
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "DPSEG_CACHE": "off", **environment},
    )
    try:
        yield process, _port(process.stdout)
    finally:
        process.kill()
        process.wait()


def _port(output: IO[str] | None) -> int:
    assert output is not None
    found = re.fullmatch(r"Listening on http://127\.0\.0\.1:(\d+); .*\n", output.readline())
    assert found is not None
    return int(found.group(1))


def ask(port: int, image: bytes = PHOTO, token: str = "", path: str = "/v1/segment") -> tuple[int, bytes]:
    """Posts a photo with two words, and returns the answer."""
    boundary = uuid.uuid4().hex
    part = f'--{boundary}\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n'
    body = (part % ("prompts", "")).encode() + b'{"classes": ["red", "blue"]}\r\n'
    body += (part % ("image", '; filename="a"')).encode() + image + f"\r\n--{boundary}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", path, body, headers | ({"Authorization": f"Bearer {token}"} if token else {}))
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def inside(port: int) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return float(text.split("\ndpseg_requests_inside ")[1].split()[0])


def test_a_stop_finishes_what_was_taken(model: str) -> None:
    answers: list[tuple[int, bytes]] = []
    with started(model) as (process, port):
        assert ask(port)[0] == 200
        callers = [threading.Thread(target=lambda: answers.append(ask(port, LARGE))) for _ in range(4)]
        for caller in callers:
            caller.start()
        while inside(port) < 4:
            time.sleep(0.02)
        process.terminate()
        for caller in callers:
            caller.join(120)
        assert process.wait(60) == 0
        output, errors = process.communicate()
    assert [status for status, _ in answers] == [200] * 4
    assert {json.loads(answer)["width"] for _, answer in answers} == {3000}
    assert (output, errors) == ("", "")
    with pytest.raises(ConnectionRefusedError):
        ask(port)


def test_options_count_and_ctrl_c_ends_it_too(model: str, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    options = ("--max-pixels", "0.005", "--max-body", "1", "--body-seconds", "1", "--prompts-dir", str(kept))
    with started(model, *options, DPSEG_TOKEN="open-sesame") as (process, port):
        status, answer = ask(port)
        assert (status, "error" in json.loads(answer)) == (401, True)
        status, answer = ask(port, token="open-sesame")
        assert (status, "128 x 64 = 8,192 pixels, the limit is 5,000" in answer.decode()) == (413, True)
        status, answer = ask(port, b"x" * 8_000_000, "open-sesame")  # is still being sent when it is refused
        assert (status, "more than 1 MB" in answer.decode()) == (413, True)
        with socket.create_connection(("127.0.0.1", port), 60) as slow:
            head = "POST /v1/segment HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\nAuthorization: Bearer open-sesame"
            slow.sendall(f"{head}\r\nContent-Type: multipart/form-data; boundary=b\r\n\r\n--b".encode())
            assert b"408" in slow.recv(1000).splitlines()[0]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert kept.is_dir()


@pytest.mark.slow
def test_an_open_page_does_not_hold_up_a_stop(model: str) -> None:
    with started(model, api=False) as (process, port):
        assert ask(port)[0] == 200
        page = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        page.request("GET", "/")
        assert b"dp-run" in page.getresponse().read()
        page.request("GET", "/gradio_api/heartbeat/a")  # what a page in a browser keeps open
        stream = page.getresponse()
        assert stream.readline().startswith(b"data:")
        process.terminate()
        assert process.wait(60) == 0
        page.close()
        output, errors = process.communicate()
    assert (output, errors) == ("", "")


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
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str) -> None:
    assert run(["serve", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_a_port_that_is_taken_is_said_before_the_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert run(["serve", "--api", "--port", str(port), "--model", "no-such-model"]) == 2
    assert f"cannot listen on 127.0.0.1 port {port} (Address already in use)" in capsys.readouterr().err


def test_a_missing_extra_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert run(["serve", "--api"]) == 2
    assert "serve needs the package uvicorn; pip install 'dpseg[serve]'" in capsys.readouterr().err


def test_the_page_names_its_extra(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert run(["serve"]) == 2
    message = "the page needs the package gradio; pip install 'dpseg[page]', or add --api for the API alone"
    assert message in capsys.readouterr().err
