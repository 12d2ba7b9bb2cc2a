"""Processes that start at once, as forks of the test's own, and ones that are killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn


def start(work: Callable[..., Any], *arguments: Any, **environment: str) -> BaseProcess:
    """Starts a process that does some work, with variables added to its environment.

    Args:
        work: of a module, not of a test, so that another Python finds it.
        arguments: of it.
        environment: the variables.
    """
    import torch

    # Autograd takes no fork where there is a GPU; a Python of its own takes seconds to import everything.
    context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    process = context.Process(target=_child, args=(work, arguments, environment))  # type: ignore[attr-defined]
    process.start()
    return process  # type: ignore[no-any-return]


def killed(work: Callable[..., Any], *arguments: Any) -> bool:
    """Does some work in a process of its own, and returns whether SIGKILL ended that."""
    process = start(work, *arguments)
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
