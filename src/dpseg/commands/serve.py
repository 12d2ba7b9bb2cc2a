"""`dpseg serve`: loads a model and listens until it is told to stop; then finishes what it has taken."""

from __future__ import annotations

import math
import signal
import socket
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from dpseg.errors import ConfigError, MissingExtraError
from dpseg.memory import share_heaps
from dpseg.precision import Precision
from dpseg.serving.settings import ServeSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

KEEP_ALIVE = 75
"""Seconds until an idle connection is closed: more than the 60 of common proxies, which would else use it meanwhile."""

HEAPS = 4
"""Of the C library, for all threads: with as many as it likes the server grew, and with two it was slower."""

_LOCAL = ("127.0.0.1", "::1", "localhost")
_STOPS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class ServeOptions:
    """The options of `dpseg serve`.

    Attributes:
        settings: limits of the server.
        api: the HTTP API alone, without the page.
        host: address to listen on.
        port: 0: any that is free.
        grace: seconds for requests in work when the server is stopped; None: as long as they need.
        model: name, folder or hub id.
        device: None: CUDA where there is a GPU.
        store: folder or file of a bank of one's own, which is asked before the model's.
        bank: use the model's bank.
        precision: of the numbers that the model computes in.
    """

    settings: ServeSettings
    api: bool = False
    host: str = "127.0.0.1"
    port: int = 7860
    grace: float | None = None
    model: str = "dpseg-lite"
    device: str | None = None
    store: Path | None = None
    bank: bool = True
    precision: Precision = "32"


def serve(options: ServeOptions, console: Console, errors: Console) -> int:
    """Serves until SIGTERM or Ctrl-C.

    Args:
        options: what the user asked for.
        console: where the address is printed.
        errors: where warnings are printed.

    Returns:
        The exit status, 0.

    Raises:
        DPSegError: the user's mistake.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(f"serve needs the package {error.name}; pip install 'dpseg[serve]'") from error
    if not options.api:
        _need_page()
    share_heaps(HEAPS)
    with listen(options.host, options.port) as listening:
        app = _application(options, errors)
        host, port = listening.getsockname()[:2]
        if options.settings.token is None and options.host not in _LOCAL:
            errors.print("No token is set: whoever reaches this address can use the model.", soft_wrap=True)
        shown = f"[{host}]" if ":" in host else host
        what = "/openapi.json describes the API" if options.api else "open it in a browser, Ctrl-C ends it"
        console.print(f"Listening on http://{shown}:{port}; {what}", markup=False, soft_wrap=True)
        _run(app, listening, options.grace)
    return 0


def listen(host: str, port: int) -> socket.socket:
    """Takes an address, before the model is loaded.

    Raises:
        ConfigError: it cannot be had.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"port {port} is out of range; give 1 to 65535, or 0 for any that is free")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        why = (error.strerror or str(error)).partition(" (while")[0]  # what follows repeats the address
        raise ConfigError(f"cannot listen on {host} port {port} ({why}); give another --host or --port") from error


def _application(options: ServeOptions, errors: Console) -> FastAPI:
    from dpseg.segmenter import Segmenter
    from dpseg.serving.app import create_app

    with errors.status(f"Loading {options.model}") if errors.is_terminal else nullcontext():
        segmenter = Segmenter.from_pretrained(options.model, options.device, options.store, precision=options.precision)
    if not options.bank:
        segmenter.bank = None
    app = create_app(options.settings, segmenter)
    if options.api:
        return app
    from dpseg.serving.page.mount import mount_page

    return mount_page(app)


def _need_page() -> None:
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"the page needs the package {error.name}; pip install 'dpseg[page]', or add --api for the API alone"
        ) from error


def _run(app: FastAPI, listening: socket.socket, grace: float | None) -> None:
    import uvicorn

    config = uvicorn.Config(
        app,
        http="h11",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=None if grace is None else math.ceil(grace),
    )

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            if (end := getattr(app.state, "end_streams", None)) is not None:
                end()  # an open page holds a connection, for which uvicorn would wait
            await super().shutdown(sockets)

    # uvicorn sends itself the signal again once it has finished, which would end the program with that signal.
    before = {number: signal.signal(number, lambda number, frame: None) for number in _STOPS}
    try:
        Server(config).run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
