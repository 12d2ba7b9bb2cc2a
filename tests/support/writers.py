"""Writers of a bank and of a cache, for processes that write at once or are killed.

Entry i of every writer is the same, and its values are all i, so that a reader can check what it finds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from dpseg.cache import EmbeddingCache
from dpseg.prompts.bank_contents import BankEntry
from dpseg.prompts.bank_segment import BankHead
from dpseg.prompts.bank_store import BankStore
from support import forked


def write_bank(folder: Path, first: int, last: int, size: int) -> None:
    """Adds the pictures "key i" of ten names one by one, with so many features each."""
    store = BankStore.create(folder, BankHead("tiny-1", 6, size, (3, 4, 5)))
    for i in range(first, last):
        dense, *stages = (torch.full((1, columns), float(i)) for columns in store.head.sizes)
        name = f"name {i % 10}"
        store.add([BankEntry(f"key {i}", name)], dense, stages, {name: torch.eye(6)[i % 6] + 0.01 * i})
        assert (f"key {i}", name) in store


def write_cache(folder: Path, first: int, last: int, size: int) -> None:
    """Puts vectors of so many values under "k0", "k1" ... one by one, and reads all that are there each time."""
    cache = EmbeddingCache(folder)
    for i in range(first, last):
        cache.put_many("encoder", {f"k{i}": torch.full((size,), float(i))})
        found = cache.get_many("encoder", [f"k{j}" for j in range(last)])
        assert f"k{i}" in found
        assert all(len(values) == size and (values == float(key[1:])).all() for key, values in found.items())


def start_writer(writer: Callable[[Path, int, int, int], None], folder: Path, *numbers: int) -> BaseProcess:
    """Starts a writer in a process of its own."""
    return forked.start(writer, folder, *numbers)


def wait_for(*processes: BaseProcess) -> None:
    """Waits for the end of processes, which went well."""
    for process in processes:
        process.join(120)
        assert process.exitcode == 0


def kill_in_an_entry(process: BaseProcess, folder: Path, is_begun: Callable[[], bool]) -> None:
    """Kills a writer in the middle of a file below a folder, once `is_begun` finds what it wrote before."""
    deadline = time.monotonic() + 60
    begun = False
    while not (begun and any(folder.rglob(".*.tmp"))):
        begun = begun or is_begun()
        assert process.is_alive()
        assert time.monotonic() < deadline
    process.kill()
    process.join(60)
