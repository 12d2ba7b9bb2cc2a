"""Processes that start at once, as forks of the test's own, and ones that are killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn


def start(work: Callable[..., Any], *arguments: Any, trains: bool = False, **environment: str) -> BaseProcess:
    """Starts a process that does some work, with variables added to its environment.

    Args:
        work: of a module, not of a test, so that another Python finds it.
        arguments: of it.
        trains: it computes gradients, which no fork of a process can that has started autograd's threads; so it is a
            fork of a process that has imported everything, and done nothing.
        environment: the variables.
    """
    import torch

    if trains and not torch.cuda.is_available():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["lightning_fabric", "dpseg.commands.train", "dpseg.training.loop"])
    else:  # a Python of its own takes seconds to import everything, and is needed where there is a GPU
        context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    process = context.Process(target=_child, args=(work, arguments, {**os.environ, **environment}))  # type: ignore[attr-defined]
    process.start()
    return process  # type: ignore[no-any-return]


def killed(work: Callable[..., Any], *arguments: Any, trains: bool = False) -> bool:
    """Does some work in a process of its own, as `start` does, and returns whether SIGKILL ended that."""
    process = start(work, *arguments, trains=trains)
    process.join(240)
    return process.exitcode == -signal.SIGKILL


def kill_me() -> NoReturn:
    """Ends this process as the kernel or a user would: nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def _child(work: Callable[..., Any], arguments: tuple[Any, ...], environment: dict[str, str]) -> None:
    import torch

    torch.set_num_threads(1)  # the threads of the parent are not here
    os.environ.update(environment)
    work(*arguments)
