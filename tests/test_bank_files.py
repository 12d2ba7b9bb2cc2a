"""The files of a bank in a folder: written together, cut off by a kill, and damaged."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

import dpseg.prompts.bank_rewrite as rewriting
from dpseg.errors import OutputError, WeightsError
from dpseg.prompts import bank_segment
from dpseg.prompts.bank_check import check_bank
from dpseg.prompts.bank_store import BankStore
from support.bank_rows import HEAD, fill, flip, rows, segments, state


def compact_late(store: BankStore) -> None:
    """Writes a bank anew as the store knows it, without a look at what others wrote since."""
    rewriting.compact(store.folder, store._contents, store._snapshot)


def test_compacting_leaves_as_few_segments_as_there_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewriting, "SEGMENT_ROWS", 4)
    for seed in range(5):
        store = fill(tmp_path, "cat", "dog", "cow", seed=seed)
    store.remove(key="2:0000000001")
    before = state(store)
    store.compact()
    assert len(segments(tmp_path)) == len(segments(tmp_path, "json")) == 4
    assert not list((tmp_path / "removed").iterdir())
    assert state(tmp_path) == before


def test_many_small_segments_are_written_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewriting, "MANY", 6)
    for seed in range(20):
        fill(tmp_path, "cat", f"thing {seed}", seed=seed)
        assert len(segments(tmp_path)) < 6
    found = state(tmp_path)
    assert len(found) == 40
    for (key, name), (_, values) in found.items():
        dense, stages = rows(2, int(key.split(":")[0]))
        number = 0 if name == "cat" else 1
        assert values == torch.cat([dense[number], *(stage[number] for stage in stages)]).tolist()


def test_a_rewriting_that_began_before_a_removal_does_not_undo_it(tmp_path: Path) -> None:
    store = fill(tmp_path, "cat", "dog")
    late = BankStore(tmp_path)
    store.remove(name="cat")
    store.compact()  # takes up the note
    compact_late(late)
    assert BankStore(tmp_path).names == ("dog",)
    BankStore(tmp_path).compact()
    assert BankStore(tmp_path).names == ("dog",)
    assert len(segments(tmp_path)) == 1


def test_two_rewritings_at_once_keep_every_entry_once(tmp_path: Path) -> None:
    for seed in range(3):
        fill(tmp_path, "cat", "dog", seed=seed)
    one, two = BankStore(tmp_path), BankStore(tmp_path)
    before = state(one)
    compact_late(one)
    compact_late(two)
    assert len(segments(tmp_path)) == 2
    both = BankStore(tmp_path)
    assert state(both) == before
    assert both.remove(name="cat") == 3
    assert BankStore(tmp_path).names == ("dog",)


@pytest.mark.parametrize("step", ["between parts", "before the old are deleted", "among them"])
def test_a_kill_during_a_rewriting_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    for seed in range(4):
        store = fill(tmp_path, "cat", "dog", "cow", seed=seed)
    store.remove(key="1:0000000000")
    before = state(store)
    monkeypatch.setattr(rewriting, "SEGMENT_ROWS", 4)
    write, calls = bank_segment.write_segment, []

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
    assert state(tmp_path) == before
    BankStore(tmp_path).compact()
    assert state(tmp_path) == before
    assert len(segments(tmp_path, "json")) == 3
    assert check_bank(tmp_path).problems == ()


def test_features_without_an_index_do_not_count_and_go_when_they_are_old(tmp_path: Path) -> None:
    fill(tmp_path, "cat")
    (first,) = segments(tmp_path)
    fill(tmp_path, "dog", seed=1)
    (cut_off,) = set(segments(tmp_path)) - {first}
    cut_off.with_suffix(".json").unlink()  # as after a kill between the two files
    store = BankStore(tmp_path)
    assert store.names == ("cat",)
    assert (check_bank(tmp_path).problems, check_bank(tmp_path).leftovers) == ((), 1)
    store.compact()
    assert cut_off.exists(), "its writer may still be at work"
    os.utime(cut_off, (1, 1))
    store.compact()
    assert not cut_off.exists()


def cut(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:-count])


def hurt_bank(bank: Path, segment: Path, damage: str) -> None:
    index = segment.with_suffix(".json")
    arrays = {"a feature": "dense", "a stage": "stage3", "a name's text": "text", "copy of the index": "index"}
    if damage in arrays:
        flip(segment, arrays[damage], 3 if damage == "copy of the index" else 0)
    elif damage == "cut off":
        cut(segment, 300)
    elif damage == "index damaged":
        cut(index, 9)
    elif damage == "index changed":
        index.write_text(index.read_text().replace("cat-0.jpg", "cat-9.jpg"))
    elif damage == "note":
        (bank / "removed" / "20200101T000000-0.json").write_text("{")
    else:
        (segment if damage == "features missing" else bank / "bank.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message", "left"),
    [
        ("a feature", "1 of 3 entries are damaged, of cat", 5),
        ("a stage", "1 of 3 entries are damaged, of cat", 5),
        ("a name's text", "2 of 3 entries are damaged, of cat", 4),
        ("cut off", "features cannot be read", 3),
        ("features missing", "is missing", 3),
        ("index damaged", "index is damaged", 6),
        ("index changed", r"index was changed after it was written \(sources\)", 6),
        ("head missing", "is no bank of pictures", 6),
        ("copy of the index", "not as it was written, but no entry is damaged", 6),
        ("note", "note of what was removed is damaged", 6),
    ],
)
def test_damage_is_found_and_the_rest_is_salvaged(tmp_path: Path, damage: str, message: str, left: int) -> None:
    bank = tmp_path / "bank"
    fill(bank, "cat", "dog", "cat")
    (segment,) = segments(bank)
    fill(bank, "cow", "cat", "owl", seed=1)
    before = state(bank)
    assert check_bank(bank).problems == ()
    hurt_bank(bank, segment, damage)
    found = check_bank(bank)
    assert len(found.problems) == 1
    assert re.search(message, found.problems[0])
    assert found.sound == left
    if damage in ("cut off", "features missing", "index damaged"):  # it is not silently used
        with pytest.raises(WeightsError, match="dpseg prompts bank verify"):
            BankStore(bank)
    saved = BankStore.create(tmp_path / "saved", HEAD)
    assert saved.merge(BankStore(bank, salvage=True))[0] == left
    after = state(tmp_path / "saved")
    assert len(after) == left
    for pair, (entry, values) in after.items():
        assert values == before[pair][1]
        if damage != "index changed":
            assert entry == before[pair][0]
    assert check_bank(tmp_path / "saved").problems == ()


def test_damaged_features_are_never_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewriting, "MANY", 3)
    fill(tmp_path, "cat")
    (segment,) = segments(tmp_path)
    flip(segment, "dense")
    for seed in range(1, 5):
        fill(tmp_path, "dog", seed=seed)
    assert segment.exists()
    with pytest.raises(WeightsError, match="is damaged"):
        BankStore(tmp_path).compact()
    assert check_bank(tmp_path).sound == 4


def test_a_bank_of_a_newer_version_is_not_read(tmp_path: Path) -> None:
    head = fill(tmp_path, "cat").folder / "bank.json"
    head.write_text(head.read_text().replace('"version":1', '"version":2'))
    with pytest.raises(WeightsError, match="version 2 is newer"):
        BankStore(tmp_path)
