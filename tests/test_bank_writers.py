"""A bank in a folder that is written anew, by several processes at once, or by killed ones."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

import dpseg.prompts.bank_rewrite as rewriting
from dpseg.errors import OutputError
from dpseg.prompts.bank_check import check_bank
from dpseg.prompts.bank_store import BankStore
from support.bank_rows import HEAD, fill, rows, segments, start_writer, state


def test_compacting_keeps_what_counts_and_forgets_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewriting, "SEGMENT_ROWS", 4)
    for seed in range(5):
        fill(tmp_path, ["cat", "dog", "cow"], seed)
    store, reader = BankStore(tmp_path), BankStore(tmp_path)
    secret = store.features("2:0000000001")
    assert secret is not None
    store.remove(key="2:0000000001")
    before = state(store)
    assert len(before) == 14
    store.compact()
    assert len(segments(tmp_path)) == len(segments(tmp_path, "json")) == 4
    assert not list((tmp_path / "removed").iterdir())
    assert state(store) == state(BankStore(tmp_path)) == before
    assert not any(secret[0].numpy().tobytes() in path.read_bytes() for path in segments(tmp_path))
    assert len(state(reader)) == 15, "files that it has open stay readable"
    reader.refresh()
    assert state(reader) == before


def test_many_small_segments_are_written_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewriting, "MANY", 6)
    for seed in range(20):
        fill(tmp_path, ["cat", f"thing {seed}"], seed)
        assert len(segments(tmp_path)) < 6
    store = BankStore(tmp_path)
    assert len(store) == 40
    for (key, name), (_, values) in state(store).items():
        dense, stages = rows(2, int(key.split(":")[0]))
        number = 0 if name == "cat" else 1
        assert values == torch.cat([dense[number], *(stage[number] for stage in stages)]).tolist()


def test_a_rewriting_that_began_before_a_removal_does_not_undo_it(tmp_path: Path) -> None:
    fill(tmp_path, ["cat", "dog"])
    late, store = BankStore(tmp_path), BankStore(tmp_path)
    store.remove(name="cat")
    store.compact()  # takes up the note
    rewriting.compact(late.folder, late._contents, late._snapshot)  # as of before
    assert BankStore(tmp_path).names == ("dog",)
    BankStore(tmp_path).compact()
    assert BankStore(tmp_path).names == ("dog",)
    assert len(segments(tmp_path)) == 1


def test_two_rewritings_at_once_keep_every_entry_once(tmp_path: Path) -> None:
    for seed in range(3):
        fill(tmp_path, ["cat", "dog"], seed)
    one, two = BankStore(tmp_path), BankStore(tmp_path)
    before = state(one)
    for store in (one, two):
        rewriting.compact(store.folder, store._contents, store._snapshot)
    assert len(segments(tmp_path)) == 2
    both = BankStore(tmp_path)
    assert state(both) == before
    assert both.remove(name="cat") == 3
    assert BankStore(tmp_path).names == ("dog",)


@pytest.mark.parametrize("step", ["between parts", "before the old are deleted", "among them"])
def test_a_kill_during_a_rewriting_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    for seed in range(4):
        fill(tmp_path, ["cat", "dog", "cow"], seed)
    store = BankStore(tmp_path)
    store.remove(key="1:0000000000")
    before = state(store)
    monkeypatch.setattr(rewriting, "SEGMENT_ROWS", 4)
    write, calls = rewriting.write_segment, []

    def stop_writing(*arguments: object) -> str:
        calls.append(arguments)
        if len(calls) == 3:
            raise OutputError("killed")
        return write(*arguments)  # type: ignore[arg-type]

    def stop_deleting(folder: Path, old: set[str], notes: object) -> None:
        for name in sorted(old)[: 0 if step.startswith("before") else 2]:
            (folder / "segments" / f"{name}.json").unlink()
        raise OutputError("killed")

    with monkeypatch.context() as patch:
        if step == "between parts":
            patch.setattr(rewriting, "write_segment", stop_writing)
        else:
            patch.setattr(rewriting, "delete", stop_deleting)
        with pytest.raises(OutputError):
            store.compact()
    assert state(BankStore(tmp_path)) == before
    BankStore(tmp_path).compact()
    assert state(BankStore(tmp_path)) == before
    assert len(segments(tmp_path, "json")) == 3
    assert check_bank(tmp_path).problems == ()


def test_a_killed_writer_leaves_what_it_had_written(tmp_path: Path) -> None:
    size = 1_000_000
    writer = start_writer(tmp_path, 0, 1000, size)
    assert writer.stdout is not None
    for line in writer.stdout:
        if int(line) == 2:
            break
    deadline = time.monotonic() + 60
    while not list((tmp_path / "segments").glob(".*.tmp")):  # it is now in the middle of an entry
        assert time.monotonic() < deadline
    writer.send_signal(signal.SIGKILL)
    writer.wait(timeout=60)
    store = BankStore(tmp_path)
    keys = sorted(entry.key for entry in store.entries())
    assert {"key 0", "key 1", "key 2"} <= set(keys)
    for key in keys:
        features = store.features(key)
        assert features is not None
        assert features[0].shape == (size,)
        assert (features[0] == float(key.split()[1])).all()
    found = check_bank(tmp_path)
    assert (found.problems, found.sound) == ((), len(keys))  # leftovers: none, where the kill fell between two entries
    again = start_writer(tmp_path, 0, len(keys) + 1, size)
    _, problems = again.communicate(timeout=120)
    assert again.returncode == 0, problems
    assert len(BankStore(tmp_path)) == len(keys) + 1


def test_features_without_an_index_do_not_count_and_go_when_they_are_old(tmp_path: Path) -> None:
    fill(tmp_path, ["cat"])
    fill(tmp_path, ["dog"], seed=1)
    cut_off = segments(tmp_path, "json")[1 if "cat" in segments(tmp_path, "json")[0].read_text() else 0]
    cut_off.unlink()  # as after a kill between the two files
    store = BankStore(tmp_path)
    assert store.names == ("cat",)
    assert (check_bank(tmp_path).problems, check_bank(tmp_path).leftovers) == ((), 1)
    store.compact()
    assert cut_off.with_suffix(".safetensors").exists(), "its writer may still be at work"
    os.utime(cut_off.with_suffix(".safetensors"), (1, 1))
    store.compact()
    assert not cut_off.with_suffix(".safetensors").exists()


def test_two_writers_and_a_reader_at_once(tmp_path: Path) -> None:
    BankStore.create(tmp_path, HEAD)
    writers = [start_writer(tmp_path, first, first + 50) for first in (0, 25)]  # both write 25 to 49, and roll up
    seen, known = 0, 0
    reader = BankStore(tmp_path)
    while any(writer.poll() is None for writer in writers):
        fresh = len(BankStore(tmp_path))
        assert fresh >= seen, "an entry was missing for a moment"
        seen = fresh
        reader.refresh()
        assert len(reader) >= known
        known = len(reader)
    for writer in writers:
        _, problems = writer.communicate(timeout=120)
        assert writer.returncode == 0, problems
    store = BankStore(tmp_path)
    assert sorted(entry.key for entry in store.entries()) == sorted(f"key {i}" for i in range(75))
    assert all(len(list(store.entries(name))) in (7, 8) for name in store.names)
    assert check_bank(tmp_path).problems == ()
    store.compact()
    assert sorted(entry.key for entry in BankStore(tmp_path).entries()) == sorted(f"key {i}" for i in range(75))
