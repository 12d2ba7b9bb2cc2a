"""Freed memory goes back to the system where the C library can do that."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import numpy as np
import pytest

from dpseg import memory


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
def test_pieces_are_given_back() -> None:
    if memory._glibc() is None:
        pytest.skip("the C library is not glibc")
    memory.release_free_memory()
    before = resident()
    pieces = [np.ones(10_000) for _ in range(4_000)]  # 80 KB each: on the heap, and all touched
    kept = pieces[::50]
    assert resident() - before > 200e6
    del pieces
    assert memory.release_free_memory()
    assert resident() - before < 60e6
    assert len(kept) == 80


def test_other_systems_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    memory._glibc.cache_clear()
    assert not memory.release_free_memory()
    memory._glibc.cache_clear()
