"""Embeddings on the disk: they come back, whoever else writes, and whatever is killed, damaged or full."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

import dpseg.cache
from dpseg.cache import ENVIRONMENT, MAX_SHARDS, EmbeddingCache, cache_folder, content_key
from dpseg.errors import OutputError
from support.commands import python
from support.writers import kill_in_an_entry, start_writer, wait_for, write_cache


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.safetensors"))


def put(cache: EmbeddingCache | Path, **entries: Tensor) -> None:
    """Puts entries into a cache, or as another process would into the one in a folder."""
    (cache if isinstance(cache, EmbeddingCache) else EmbeddingCache(cache)).put_many("encoder", entries)


def read(cache: EmbeddingCache | Path, *keys: str) -> dict[str, list[float]]:
    """Reads what is there of some entries, as above."""
    cache = cache if isinstance(cache, EmbeddingCache) else EmbeddingCache(cache)
    return {key: values.tolist() for key, values in cache.get_many("encoder", keys).items()}


def test_entries_come_back_whatever_their_memory(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    entries = {"a": torch.randn(3, 4), "b": torch.randn(5).half(), "c": torch.tensor(2.5), "d": torch.zeros(0, 7)}
    entries |= {"turned": base.T, "row": base[1], "again": base[1]}
    writer = EmbeddingCache(tmp_path)
    put(writer, **entries)
    for cache in (writer, EmbeddingCache(tmp_path)):
        found = cache.get_many("encoder", ["d", "a", "missing", "b", "c", "a", "turned", "row", "again"])
        assert set(found) == set(entries)
        for key, tensor in entries.items():
            assert found[key].dtype == tensor.dtype
            assert torch.equal(found[key], tensor)


def test_the_last_entry_of_a_key_and_an_encoder_counts_until_all_is_cleared(tmp_path: Path) -> None:
    reader, cache = EmbeddingCache(tmp_path), EmbeddingCache(tmp_path)
    assert read(reader, "a") == {}
    put(cache, a=torch.zeros(1))
    assert read(reader, "a") == {"a": [0.0]}  # what another has added since
    put(cache, a=torch.ones(1))
    assert read(cache, "a") == {"a": [1.0]}
    assert cache.get_many("another encoder", ["a"]) == {}
    cache.put_many("another encoder", {"a": torch.ones(1)})
    cache.clear()
    assert shards(tmp_path) == []
    assert read(cache, "a") == {}


@pytest.mark.parametrize("length", [0, 4, 40, 60, -1])
def test_a_truncated_shard_is_ignored_and_written_again(tmp_path: Path, length: int) -> None:
    put(tmp_path, a=torch.ones(100))
    (damaged,) = shards(tmp_path)
    put(tmp_path, b=torch.full((2,), 2.0))
    knows_it = EmbeddingCache(tmp_path)
    assert len(read(knows_it, "a", "b")) == 2
    damaged.write_bytes(damaged.read_bytes()[:length])
    for cache in (EmbeddingCache(tmp_path), knows_it):
        assert read(cache, "a", "b") == {"b": [2.0, 2.0]}
        assert damaged not in shards(tmp_path)
    put(knows_it, a=torch.zeros(1))
    assert read(knows_it, "a", "b") == read(tmp_path, "a", "b") == {"a": [0.0], "b": [2.0, 2.0]}


def test_a_changed_value_is_noticed_and_a_foreign_file_no_harm(tmp_path: Path) -> None:
    put(tmp_path, a=torch.ones(4))
    (path,) = shards(tmp_path)
    (path.parent / "notes.txt").write_text("hello")
    assert read(tmp_path, "a") == {"a": [1.0] * 4}
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert read(tmp_path, "a") == {}
    assert shards(tmp_path) == []


def test_small_shards_are_merged_and_nothing_is_lost(tmp_path: Path) -> None:
    cache, reader = EmbeddingCache(tmp_path), EmbeddingCache(tmp_path)
    expected = {f"k{i}": [float(i)] * 2 for i in range(MAX_SHARDS + 5)}
    for number, (key, values) in enumerate(expected.items()):
        put(cache, **{key: torch.tensor(values)})
        if number == MAX_SHARDS - 1:
            read(reader, "k0")  # knows shards that are merged afterwards
    assert len(shards(tmp_path)) < 10
    assert read(tmp_path, *expected) == read(reader, *expected) == expected


def test_processes_and_threads_write_and_read_at_once(tmp_path: Path) -> None:
    writers = [start_writer(write_cache, tmp_path, first, first + 80, 64) for first in (0, 40)]  # and merge
    wait_for(*writers)
    assert read(tmp_path, *(f"k{i}" for i in range(120))) == {f"k{i}": [float(i)] * 64 for i in range(120)}
    cache = EmbeddingCache(tmp_path / "threads")

    def work(i: int) -> None:
        put(cache, **{f"k{i}": torch.full((1,), float(i))})
        assert read(cache, f"k{i}") == {f"k{i}": [i]}

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(80)))
    assert len(read(tmp_path / "threads", *(f"k{i}" for i in range(80)))) == 80


def test_a_killed_writer_leaves_nothing_half_written(tmp_path: Path) -> None:
    size, first = 2_000_000, ("k0", "k1", "k2")
    writer = start_writer(write_cache, tmp_path, 0, 1000, size)
    kill_in_an_entry(writer, tmp_path, lambda: len(shards(tmp_path)) >= len(first))
    found = EmbeddingCache(tmp_path).get_many("encoder", [f"k{i}" for i in range(1000)])
    assert set(first) <= set(found)
    for key, tensor in found.items():
        assert tensor.shape == (size,)
        assert (tensor == float(key[1:])).all()
    put(tmp_path, k999=torch.ones(1))
    assert read(tmp_path, "k999") == {"k999": [1.0]}


def test_remains_of_a_killed_writer_are_removed_when_they_are_old(tmp_path: Path) -> None:
    put(tmp_path, a=torch.ones(1))
    folder = shards(tmp_path)[0].parent
    old, fresh = folder / ".x.tmp", folder / ".y.tmp"
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    assert read(tmp_path, "a", "b") == {"a": [1.0]}
    assert not old.exists()
    assert fresh.exists(), "it may belong to a process that is still writing"


def test_an_unusable_folder_or_a_full_disk_is_silently_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a folder")
    unusable, full = EmbeddingCache(in_the_way / "cache"), EmbeddingCache(tmp_path)

    def fail(path: Path, data: bytes) -> Path:
        raise OutputError("the disk is full")

    put(unusable, a=torch.ones(1))
    monkeypatch.setattr(dpseg.cache, "write_atomically", fail)
    put(full, a=torch.ones(1))
    assert read(unusable, "a") == read(full, "a") == {}
    unusable.clear()
    assert in_the_way.read_text() == "not a folder"


def test_the_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "here"))
    put(EmbeddingCache(), a=torch.ones(1))
    assert len(shards(tmp_path / "here")) == 1
    monkeypatch.setenv(ENVIRONMENT, " OFF ")
    assert cache_folder() is None
    off = EmbeddingCache()
    put(off, a=torch.ones(1))
    off.clear()
    assert read(off, "a") == {}
    monkeypatch.delenv(ENVIRONMENT)
    folder = cache_folder()
    assert folder is not None
    assert "dpseg" in folder.parts


def test_content_key_tells_content_apart() -> None:
    parts: list[tuple[str | bytes, ...]] = [("ab", "c"), ("a", "bc"), ("abc",), (b"abc",), ("abc", ""), (), ("",)]
    assert len({content_key(*p) for p in parts}) == len(parts)
    assert content_key("cat", b"\x00") == content_key("cat", b"\x00")
    assert len(content_key("cat")) == 64


def test_import_does_not_load_torch() -> None:
    python("import sys, dpseg.cache, dpseg.data.vocabularies, dpseg.prompts.text; assert 'torch' not in sys.modules")
