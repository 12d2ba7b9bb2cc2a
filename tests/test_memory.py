"""Freed memory goes back to the system where the C library can do that."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from dpseg import memory
from support.commands import python

needs_glibc = pytest.mark.skipif(memory._glibc() is None, reason="the C library is not glibc")


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@needs_glibc
def test_pieces_are_given_back() -> None:
    memory.release_free_memory()
    before = resident()
    pieces = [np.ones(10_000) for _ in range(4_000)]  # 80 KB each: on the heap, and all touched
    kept = pieces[::50]
    assert resident() - before > 200e6
    del pieces
    assert memory.release_free_memory()
    assert resident() - before < 60e6
    assert len(kept) == 80


HEAPS_OF_THREADS = """
import ctypes, sys, tempfile, threading
from dpseg.memory import share_heaps
count, threads = int(sys.argv[1]), 12
assert not count or share_heaps(count)
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype = libc.fdopen.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
libc.fdopen.argtypes, libc.fclose.argtypes = [ctypes.c_int, ctypes.c_char_p], [ctypes.c_void_p]
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
started = threading.Barrier(threads)
def allocate():
    held = [libc.malloc(1000) for _ in range(10)]
    started.wait()
    for one in held:
        libc.free(one)
workers = [threading.Thread(target=allocate) for _ in range(threads)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
with tempfile.NamedTemporaryFile() as file:
    stream = libc.fdopen(libc.dup(file.fileno()), b"w")
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    print(open(file.name).read().count("<heap nr="))
"""


@needs_glibc
def test_threads_share_heaps() -> None:
    def heaps(count: int) -> int:
        return int(python(HEAPS_OF_THREADS, str(count)).stdout)

    assert heaps(0) > 3
    assert heaps(3) <= 3


def test_other_systems_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    memory._glibc.cache_clear()
    assert not memory.release_free_memory()
    assert not memory.share_heaps(4)
    memory._glibc.cache_clear()
