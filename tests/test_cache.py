import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import dpseg.cache
from dpseg.cache import ENVIRONMENT, MAX_SHARDS, EmbeddingCache, cache_folder, content_key

SOURCE = str(Path(dpseg.cache.__file__).parents[1])

# Entry i of every writer has the same key and the same value, so a reader can check what it finds.
WRITER = """
import sys, torch
from dpseg.cache import EmbeddingCache
cache = EmbeddingCache(sys.argv[1])
first, last, size = (int(n) for n in sys.argv[2:5])
for i in range(first, last):
    cache.put_many("encoder", {f"k{i}": torch.full((size,), float(i))})
    found = cache.get_many("encoder", [f"k{j}" for j in range(last)])
    assert f"k{i}" in found, i
    assert all((t == float(key[1:])).all() and len(t) == size for key, t in found.items())
    print(i, flush=True)
"""


def start_writer(folder: Path, first: int, last: int, size: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WRITER, str(folder), str(first), str(last), str(size)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.safetensors"))


def read(folder: Path, *keys: str) -> dict[str, list[float]]:
    """Reads with a fresh index, as another process would."""
    return {key: tensor.tolist() for key, tensor in EmbeddingCache(folder).get_many("encoder", keys).items()}


def test_entries_come_back(tmp_path: Path) -> None:
    entries = {"a": torch.randn(3, 4), "b": torch.randn(5).half(), "c": torch.tensor(2.5), "d": torch.zeros(0, 7)}
    writer = EmbeddingCache(tmp_path)
    writer.put_many("encoder", entries)
    for cache in (writer, EmbeddingCache(tmp_path)):
        found = cache.get_many("encoder", ["d", "a", "missing", "b", "c", "a"])
        assert set(found) == set(entries)
        for key, tensor in entries.items():
            assert found[key].dtype == tensor.dtype
            assert torch.equal(found[key], tensor)


def test_views_and_shared_tensors_are_kept(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    EmbeddingCache(tmp_path).put_many("encoder", {"t": base.T, "row": base[1], "again": base[1]})
    found = EmbeddingCache(tmp_path).get_many("encoder", ["t", "row", "again"])
    assert torch.equal(found["t"], base.T)
    assert torch.equal(found["row"], found["again"])


def test_encoders_do_not_share_entries(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path)
    cache.put_many("lite/1", {"a": torch.ones(1)})
    assert cache.get_many("lite/2", ["a"]) == {}
    assert set(cache.get_many("lite/1", ["a"])) == {"a"}


def test_last_put_counts(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path)
    cache.put_many("encoder", {"a": torch.zeros(1)})
    cache.put_many("encoder", {"a": torch.ones(1)})
    assert cache.get_many("encoder", ["a"])["a"].item() == 1


def test_reader_sees_what_another_cache_adds_later(tmp_path: Path) -> None:
    reader = EmbeddingCache(tmp_path)
    assert reader.get_many("encoder", ["a"]) == {}
    EmbeddingCache(tmp_path).put_many("encoder", {"a": torch.ones(1)})
    assert set(reader.get_many("encoder", ["a"])) == {"a"}


@pytest.mark.parametrize("length", [0, 4, 40, -1])
def test_truncated_shard_is_ignored_and_written_again(tmp_path: Path, length: int) -> None:
    EmbeddingCache(tmp_path).put_many("encoder", {"a": torch.ones(100)})
    EmbeddingCache(tmp_path).put_many("encoder", {"b": torch.full((2,), 2.0)})
    damaged = next(path for path in shards(tmp_path) if path.stat().st_size > 400)
    damaged.write_bytes(damaged.read_bytes()[:length])
    assert read(tmp_path, "a", "b") == {"b": [2.0, 2.0]}
    assert damaged not in shards(tmp_path)
    EmbeddingCache(tmp_path).put_many("encoder", {"a": torch.zeros(1)})
    assert read(tmp_path, "a", "b") == {"a": [0.0], "b": [2.0, 2.0]}


def test_shard_that_is_damaged_while_it_is_known_is_ignored(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path)
    cache.put_many("encoder", {"a": torch.ones(100)})
    path = shards(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:60])
    assert cache.get_many("encoder", ["a"]) == {}
    cache.put_many("encoder", {"a": torch.zeros(1)})
    assert cache.get_many("encoder", ["a"])["a"].tolist() == [0.0]


def test_changed_value_is_noticed(tmp_path: Path) -> None:
    EmbeddingCache(tmp_path).put_many("encoder", {"a": torch.ones(4)})
    path = shards(tmp_path)[0]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert read(tmp_path, "a") == {}
    assert shards(tmp_path) == []


def test_foreign_file_is_no_harm(tmp_path: Path) -> None:
    EmbeddingCache(tmp_path).put_many("encoder", {"a": torch.ones(1)})
    (shards(tmp_path)[0].parent / "notes.txt").write_text("hello")
    assert read(tmp_path, "a") == {"a": [1.0]}


def test_small_shards_are_merged_and_nothing_is_lost(tmp_path: Path) -> None:
    count = MAX_SHARDS + 5
    cache, reader = EmbeddingCache(tmp_path), EmbeddingCache(tmp_path)
    for i in range(count):
        cache.put_many("encoder", {f"k{i}": torch.full((2,), float(i))})
        if i == MAX_SHARDS - 1:
            reader.get_many("encoder", ["k0"])  # knows shards that are merged afterwards
    assert len(shards(tmp_path)) < 10
    expected = {f"k{i}": [float(i)] * 2 for i in range(count)}
    assert read(tmp_path, *expected) == expected
    assert {key: t.tolist() for key, t in reader.get_many("encoder", list(expected)).items()} == expected


def test_two_processes_write_and_read_at_once(tmp_path: Path) -> None:
    writers = [start_writer(tmp_path, first, first + 80, 64) for first in (0, 40)]  # merging happens on the way
    for writer in writers:
        _, problems = writer.communicate(timeout=120)
        assert writer.returncode == 0, problems
    assert read(tmp_path, *(f"k{i}" for i in range(120))) == {f"k{i}": [float(i)] * 64 for i in range(120)}


def test_killed_writer_leaves_nothing_half_written(tmp_path: Path) -> None:
    size = 2_000_000
    writer = start_writer(tmp_path, 0, 1000, size)
    assert writer.stdout is not None
    for line in writer.stdout:
        if int(line) == 2:
            break
    deadline = time.monotonic() + 20
    while not list(tmp_path.glob("*/.*.tmp")):  # it is now in the middle of an entry
        assert time.monotonic() < deadline
    writer.send_signal(signal.SIGKILL)
    writer.wait(timeout=60)
    found = EmbeddingCache(tmp_path).get_many("encoder", [f"k{i}" for i in range(1000)])
    assert {"k0", "k1", "k2"} <= set(found)
    for key, tensor in found.items():
        assert tensor.shape == (size,)
        assert (tensor == float(key[1:])).all()
    EmbeddingCache(tmp_path).put_many("encoder", {"k999": torch.ones(1)})
    assert read(tmp_path, "k999") == {"k999": [1.0]}


def test_remains_of_a_killed_writer_are_removed_when_they_are_old(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path)
    cache.put_many("encoder", {"a": torch.ones(1)})
    folder = shards(tmp_path)[0].parent
    old, fresh = folder / ".x.tmp", folder / ".y.tmp"
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    assert read(tmp_path, "a", "b") == {"a": [1.0]}
    assert not old.exists()
    assert fresh.exists(), "it may belong to a process that is still writing"


def test_threads_share_a_cache(tmp_path: Path) -> None:
    cache, problems = EmbeddingCache(tmp_path), []

    def work(first: int) -> None:
        try:
            for i in range(first, first + 20):
                cache.put_many("encoder", {f"k{i}": torch.full((1,), float(i))})
                assert cache.get_many("encoder", [f"k{i}"])[f"k{i}"].item() == i
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(20 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert len(read(tmp_path, *(f"k{i}" for i in range(80)))) == 80


def test_unusable_folder_is_silently_done_without(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a folder")
    cache = EmbeddingCache(in_the_way / "cache")
    cache.put_many("encoder", {"a": torch.ones(1)})
    assert cache.get_many("encoder", ["a"]) == {}
    cache.clear()
    assert in_the_way.read_text() == "not a folder"


def test_full_disk_is_silently_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, data: bytes) -> Path:
        raise dpseg.cache.OutputError("the disk is full")

    cache = EmbeddingCache(tmp_path)
    monkeypatch.setattr(dpseg.cache, "write_atomically", fail)
    cache.put_many("encoder", {"a": torch.ones(1)})
    assert cache.get_many("encoder", ["a"]) == {}


def test_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "here"))
    EmbeddingCache().put_many("encoder", {"a": torch.ones(1)})
    assert len(shards(tmp_path / "here")) == 1
    monkeypatch.setenv(ENVIRONMENT, " OFF ")
    assert cache_folder() is None
    off = EmbeddingCache()
    off.put_many("encoder", {"a": torch.ones(1)})
    off.clear()
    assert off.get_many("encoder", ["a"]) == {}
    monkeypatch.delenv(ENVIRONMENT)
    folder = cache_folder()
    assert folder is not None
    assert "dpseg" in folder.parts


def test_clear_removes_all(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path)
    cache.put_many("one", {"a": torch.ones(1)})
    cache.put_many("two", {"a": torch.ones(1)})
    cache.clear()
    assert shards(tmp_path) == []
    assert cache.get_many("one", ["a"]) == {}


def test_content_key_tells_content_apart() -> None:
    parts = [("ab", "c"), ("a", "bc"), ("abc",), (b"abc",), ("abc", ""), (), ("",)]
    assert len({content_key(*p) for p in parts}) == len(parts)
    assert content_key("cat", b"\x00") == content_key("cat", b"\x00")
    assert len(content_key("cat")) == 64


def test_import_does_not_load_torch() -> None:
    code = "import sys, dpseg.cache, dpseg.data.vocabularies, dpseg.prompts.text; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": SOURCE}, check=True)
