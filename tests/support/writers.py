"""Writers of a bank and of a cache, which run in the test's process or in one of their own, where they may be killed.

Entry i of every writer is the same, and its values are all i, so that a reader can check what it finds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

Writer = Callable[[Path, int, int, int], None]


def write_bank(folder: Path, first: int, last: int, size: int) -> None:
    """Adds the pictures "key i" of ten names one by one, each with so many features, and prints i."""
    import torch

    from dpseg.prompts.bank_contents import BankEntry
    from dpseg.prompts.bank_segment import BankHead
    from dpseg.prompts.bank_store import BankStore

    store = BankStore.create(folder, BankHead("tiny-1", 6, size, (3, 4, 5)))
    for i in range(first, last):
        dense, *stages = (torch.full((1, columns), float(i)) for columns in store.head.sizes)
        name = f"name {i % 10}"
        store.add([BankEntry(f"key {i}", name)], dense, stages, {name: torch.eye(6)[i % 6] + 0.01 * i})
        assert (f"key {i}", name) in store
        print(i, flush=True)


def write_cache(folder: Path, first: int, last: int, size: int) -> None:
    """Puts vectors of so many values under "k0", "k1" ... one by one, reads all that are there, and prints i."""
    import torch

    from dpseg.cache import EmbeddingCache

    cache = EmbeddingCache(folder)
    for i in range(first, last):
        cache.put_many("encoder", {f"k{i}": torch.full((size,), float(i))})
        found = cache.get_many("encoder", [f"k{j}" for j in range(last)])
        assert f"k{i}" in found
        assert all(len(values) == size and (values == float(key[1:])).all() for key, values in found.items())
        print(i, flush=True)


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Starts code in a Python of its own that finds the package and this one."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def start_writer(writer: Writer, *arguments: object) -> subprocess.Popen[str]:
    """Starts a writer in a process of its own."""
    code = f"import sys; from support.writers import {writer.__name__} as write; "
    return start(code + "write(sys.argv[1], *map(int, sys.argv[2:]))", *arguments)


def in_process(writer: Writer) -> Writer:
    """The same writer; each call of it runs in a process of its own."""

    def write(folder: Path, first: int, last: int, size: int) -> None:
        process = start_writer(writer, folder, first, last, size)
        _, problems = process.communicate(timeout=120)
        assert process.returncode == 0, problems

    return write


def kill_while(busy: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Waits until `busy` says that a process is in the middle of something, and kills it."""
    deadline = time.monotonic() + 60
    while not busy():
        assert process.poll() is None
        assert time.monotonic() < deadline
    process.kill()
    process.wait(timeout=60)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def kill_in_an_entry(writer: Writer, folder: Path, size: int) -> None:
    """Kills a writer of long entries that has written the first three, while it writes another one."""
    process = start_writer(writer, folder, 0, 1000, size)
    assert process.stdout is not None
    assert any(int(line) == 2 for line in process.stdout)
    kill_while(lambda: any(folder.rglob(".*.tmp")), process)
