"""A bank in a folder of which a part is damaged."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import dpseg.prompts.bank_rewrite as rewriting
from dpseg.errors import WeightsError
from dpseg.prompts.bank_check import check_bank
from dpseg.prompts.bank_store import BankStore
from support.bank_rows import HEAD, fill, segments, state


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def position(path: Path, name: str) -> int:
    """The first byte of an array in a safetensors file."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return 8 + length + int(json.loads(data[8 : 8 + length])[name]["data_offsets"][0])


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
    fill(bank, ["cat", "dog", "cat"])
    (hurt,) = segments(bank)
    fill(bank, ["cow", "cat", "owl"], seed=1)
    before = state(BankStore(bank))
    assert check_bank(bank).problems == ()
    index = hurt.with_suffix(".json")
    if damage in ("a feature", "a stage", "a name's text", "copy of the index"):
        array = {"a feature": "dense", "a stage": "stage3", "a name's text": "text"}.get(damage, "index")
        flip(hurt, position(hurt, array) + (3 if damage == "copy of the index" else 0))
    elif damage == "cut off":
        hurt.write_bytes(hurt.read_bytes()[:-300])
    elif damage == "index damaged":
        index.write_text(index.read_text()[:-9])
    elif damage == "index changed":
        index.write_text(index.read_text().replace("cat-0.jpg", "cat-9.jpg"))
    elif damage == "note":
        (bank / "removed" / "20200101T000000-0.json").write_text("{")
    else:
        (hurt if damage == "features missing" else bank / "bank.json").unlink()
    found = check_bank(bank)
    assert len(found.problems) == 1
    assert re.search(message, found.problems[0])
    assert found.sound == left
    saved = BankStore.create(tmp_path / "saved", HEAD)
    assert saved.merge(BankStore(bank, salvage=True))[0] == left
    after = state(BankStore(tmp_path / "saved"))
    assert len(after) == left
    for pair, (entry, values) in after.items():
        assert values == before[pair][1]
        if damage != "index changed":
            assert entry == before[pair][0]
    assert check_bank(tmp_path / "saved").problems == ()


@pytest.mark.parametrize("damage", ["cut off", "features missing", "index damaged"])
def test_a_damaged_bank_is_not_silently_used(tmp_path: Path, damage: str) -> None:
    fill(tmp_path, ["cat"])
    (path,) = segments(tmp_path)
    if damage == "features missing":
        path.unlink()
    else:
        path = path if damage == "cut off" else path.with_suffix(".json")
        path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(WeightsError, match="dpseg prompts bank verify"):
        BankStore(tmp_path)


def test_damaged_features_are_never_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewriting, "MANY", 3)
    fill(tmp_path, ["cat"])
    (hurt,) = segments(tmp_path)
    flip(hurt, position(hurt, "dense"))
    for seed in range(1, 5):
        fill(tmp_path, ["dog"], seed)
    assert hurt.exists()
    with pytest.raises(WeightsError, match="is damaged"):
        BankStore(tmp_path).compact()
    assert check_bank(tmp_path).sound == 4
