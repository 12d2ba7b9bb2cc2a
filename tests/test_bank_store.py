"""A bank in a folder: what is kept, looked up, removed and written anew, by one process, several, or killed ones."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import dpseg.prompts.bank_rewrite as rewriting
from dpseg.errors import OutputError, PromptError, WeightsError
from dpseg.prompts.bank import Bank
from dpseg.prompts.bank_check import check_bank
from dpseg.prompts.bank_contents import BankEntry, picture_key
from dpseg.prompts.bank_segment import BankHead
from dpseg.prompts.bank_store import BankStore
from dpseg.prompts.banks import chain, check_encoder, open_bank

SOURCE = str(Path(rewriting.__file__).parents[2])
HEAD = BankHead("tiny-1", 6, 7, (3, 4, 5))

# Entry i of every writer is the same: its features are all i, so that a reader can check what it finds.
WRITER = """
import sys, torch
from dpseg.prompts.bank_contents import BankEntry
from dpseg.prompts.bank_segment import BankHead
from dpseg.prompts.bank_store import BankStore
first, last, size = (int(n) for n in sys.argv[2:5])
store = BankStore.create(sys.argv[1], BankHead("tiny-1", 6, size, (3, 4, 5)))
for i in range(first, last):
    rows = [torch.full((1, n), float(i)) for n in (size, 3, 4, 5)]
    text = torch.eye(6)[i % 6] + 0.01 * i
    store.add([BankEntry(f"key {i}", f"name {i % 10}")], rows[0], rows[1:], {f"name {i % 10}": text})
    assert (f"key {i}", f"name {i % 10}") in store
    print(i, flush=True)
"""


def start_writer(folder: Path, first: int, last: int, size: int = 7) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WRITER, str(folder), str(first), str(last), str(size)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def rows(count: int, seed: int = 0) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Features that half precision holds exactly."""
    generator = torch.Generator().manual_seed(seed)
    dense, s2, s3, s4 = (torch.randn(count, size, generator=generator).half().float() for size in HEAD.sizes)
    return dense, (s2, s3, s4)


def words(*names: str) -> dict[str, Tensor]:
    """The same text features for the same name, of any length."""
    return {name: torch.randn(6, generator=torch.Generator().manual_seed(sum(name.encode()))) for name in names}


def fill(folder: Path, names: list[str], seed: int = 0) -> BankStore:
    """Adds a picture a name."""
    store = BankStore.create(folder, HEAD)
    dense, stages = rows(len(names), seed)
    entries = [BankEntry(f"{seed}:{number:010d}", name, f"{name}-{number}.jpg") for number, name in enumerate(names)]
    store.add(entries, dense, stages, words(*names))
    return store


def state(store: BankStore) -> dict[tuple[str, str], tuple[BankEntry, list[float]]]:
    """All that a bank says, by key and name."""
    found = {}
    for entry in store.entries():
        features = store.features(entry.key)
        assert features is not None
        found[entry.key, entry.name] = (entry, torch.cat([features[0], *features[1]]).tolist())
    return found


def segments(folder: Path, ending: str = "safetensors") -> list[Path]:
    return sorted((folder / "segments").glob(f"*.{ending}"))


def test_entries_come_back(tmp_path: Path) -> None:
    dense, stages = rows(3)
    entries = [BankEntry("a" * 64, "cat", "x/cat.jpg", "CC0"), BankEntry("b" * 64, "dog"), BankEntry("c" * 64, "cat")]
    assert BankStore.create(tmp_path / "bank", HEAD).add(entries, dense, stages, words("cat", "dog")) == 3
    store = BankStore(tmp_path / "bank")
    assert (len(store), store.names, store.encoder) == (3, ("cat", "dog"), "tiny-1")
    assert [(e.key[0], e.name, e.source, e.license) for e in store.entries("cat")] == [
        ("a", "cat", "x/cat.jpg", "CC0"),
        ("c", "cat", "", ""),
    ]
    assert all(time.strptime(entry.when, "%Y-%m-%dT%H:%M:%SZ") for entry in store.entries())
    for number, entry in enumerate(entries):
        features = store.features(entry.key)
        assert features is not None
        for found, expected in zip(
            (features[0], *features[1]), (dense[number], *(s[number] for s in stages)), strict=True
        ):
            assert torch.equal(found.float(), expected)
    assert store.features("d" * 64) is None
    with pytest.raises(PromptError, match="no pictures of 'dogs'; did you mean 'dog'"):
        list(store.entries("dogs"))


def test_a_picture_counts_once_under_a_name(tmp_path: Path) -> None:
    dense, stages = rows(4)
    entries = [BankEntry("1", "cat"), BankEntry("1", "cat"), BankEntry("1", "pet"), BankEntry("2", "cat")]
    store = BankStore.create(tmp_path, HEAD)
    assert store.add(entries, dense, stages, words("cat", "pet")) == 3
    files = segments(tmp_path)
    assert store.add(entries, dense, stages, {}) == 0
    assert segments(tmp_path) == files
    assert {(entry.key, entry.name) for entry in BankStore(tmp_path).entries()} == {
        ("1", "cat"),
        ("1", "pet"),
        ("2", "cat"),
    }


def test_keys_are_of_the_content(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    for name in ("a.png", "b.bmp"):
        Image.fromarray(pixels).save(tmp_path / name)
    whole, part, other = np.ones((6, 4), bool), np.zeros((6, 4), bool), np.zeros((6, 4), bool)
    part[1:3], other[1:4] = True, True
    image = Image.open(tmp_path / "a.png").convert("RGB")
    changed = pixels.copy()
    changed[5, 3, 2] ^= 1
    pictures = [(image, None), (image, whole), (image, part), (image, other), (Image.fromarray(changed), None)]
    pictures += [(Image.fromarray(pixels.reshape(4, 6, 3)), None)]
    keys = [picture_key(encoder, *picture) for encoder in ("one", "two") for picture in pictures]
    assert len(set(keys)) == 12
    assert keys[2] == picture_key("one", Image.open(tmp_path / "b.bmp").convert("RGB"), part.copy())


def test_blending_is_that_of_a_loop_over_all_entries(tmp_path: Path) -> None:
    names = [f"thing {number % 17}" for number in range(60)]
    centre = torch.randn(6, generator=torch.Generator().manual_seed(7))
    text = {name: 3 * centre + 0.8 * vector for name, vector in words(*names).items()}
    dense, stages = rows(60)
    store = BankStore.create(tmp_path, HEAD)
    for start in range(0, 60, 13):
        part = slice(start, start + 13)
        entries = [BankEntry(str(start + n), name) for n, name in enumerate(names[part])]
        store.add(entries, dense[part], [stage[part] for stage in stages], text)
    queries = torch.stack([*list(text.values())[:5], centre, -centre, 9 * torch.eye(6)[0]])
    match = BankStore(tmp_path).lookup(queries, top=4, floor=0.7)
    blended = 0
    for k, query in enumerate(queries.numpy()):
        cosines = {n: float(query @ v.numpy() / np.linalg.norm(query) / np.linalg.norm(v)) for n, v in text.items()}
        near = sorted((name for name in cosines if cosines[name] >= 0.7), key=lambda name: -cosines[name])[:4]
        assert match.names[k] == tuple(near)
        assert bool(match.found[k]) == bool(near)
        shares = np.exp([cosines[name] / 0.05 for name in near])
        shares = shares / shares.sum()
        assert match.weights[k] == pytest.approx(tuple(shares), abs=1e-4)
        for got, given in zip((match.dense[k], *(s[k] for s in match.stages)), (dense, *stages), strict=True):
            expected = np.zeros(given.shape[1])
            for name, share in zip(near, shares, strict=True):
                own = [given[n].numpy() for n in range(60) if names[n] == name]
                expected += share * sum(own) / len(own)
            np.testing.assert_allclose(got.numpy(), expected, atol=1e-4)
        blended += len(near) > 1
    assert blended >= 3
    assert not match.found.all()


def test_a_name_is_averaged_before_it_is_blended(tmp_path: Path) -> None:
    store = fill(tmp_path, ["cat", "dog", "cat", "cat"])
    dense, _ = rows(4)
    match = store.lookup(words("cat")["cat"][None], floor=0.99)
    assert match.names == (("cat",),)
    torch.testing.assert_close(match.dense[0], dense[[0, 2, 3]].mean(0))


def test_no_classes_and_no_entries_give_nothing(tmp_path: Path) -> None:
    store = BankStore.create(tmp_path, HEAD)
    match = store.lookup(torch.rand(2, 6))
    assert (match.found.tolist(), match.names, match.dense.shape) == ([False, False], ((), ()), (2, 7))
    assert store.search(torch.rand(6)) == []
    with pytest.raises(WeightsError, match="is empty"):
        store.to_bank()
    assert fill(tmp_path, ["cat"]).lookup(torch.rand(0, 6)).dense.shape == (0, 7)
    with pytest.raises(PromptError, match=r"do not fit the bank's, \(K, 6\)"):
        store.lookup(torch.rand(2, 5))


def test_search_lists_neighbours_with_their_shares(tmp_path: Path) -> None:
    dense, stages = rows(5)
    text = {name: torch.eye(6)[0] + step * torch.eye(6)[1] for step, name in enumerate(("a", "b", "c", "d"))}
    store = BankStore.create(tmp_path, HEAD)
    store.add([BankEntry(str(n), name) for n, name in enumerate("abcda")], dense, stages, text)
    found = store.search(torch.eye(6)[0] * 4, top=3)
    cosines = [1.0, 1 / 2**0.5, 1 / 5**0.5]
    assert [(one.name, one.pictures) for one in found] == [("a", 2), ("b", 1), ("c", 1)]
    assert [one.cosine for one in found] == pytest.approx(cosines, abs=1e-6)
    assert [one.share for one in found] == [1.0, 0.0, 0.0]
    near = store.search(torch.eye(6)[0] + 0.5 * torch.eye(6)[1], top=1)
    match = store.lookup((torch.eye(6)[0] + 0.5 * torch.eye(6)[1])[None])
    assert near[0].share == pytest.approx(match.weights[0][match.names[0].index(near[0].name)])


def test_a_bank_in_one_file_goes_in_and_comes_out(tmp_path: Path) -> None:
    names = ("cat", "sofa", "cat", "lamp")
    dense, stages = rows(4)
    vectors = words(*names)
    text = F.normalize(torch.stack([vectors[name] for name in names]), dim=-1)
    bank = Bank(names, text, dense, stages, "tiny-1")
    store = BankStore.from_bank(tmp_path / "bank", bank, "lite")
    assert store.add_bank(bank, "again") == 0
    assert [entry.source for entry in store.entries("cat")] == ["lite", "lite"]
    out = BankStore(tmp_path / "bank").to_bank()
    assert (out.names, out.encoder) == (("cat", "sofa", "lamp"), "tiny-1")
    torch.testing.assert_close(out.text, text[[0, 1, 3]])
    for got, given in zip((out.dense, *out.stages), (dense, *stages), strict=True):
        torch.testing.assert_close(got, torch.stack([(given[0] + given[2]) / 2, given[1], given[3]]))
    queries = torch.randn(9, 6, generator=torch.Generator().manual_seed(3))
    ours, file = store.lookup(queries, floor=0.1), out.lookup(queries, floor=0.1)
    assert ours.names == file.names
    torch.testing.assert_close(ours.dense, file.dense)
    with pytest.raises(WeightsError, match="is of the encoder 'other'"):
        store.add_bank(Bank(names, text, dense, stages, "other"))


def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    dense, stages = rows(1)
    store = BankStore.create(tmp_path, HEAD)
    with pytest.raises(WeightsError, match="half precision"):
        store.add([BankEntry("1", "cat")], dense + 1e6, stages, words("cat"))
    with pytest.raises(WeightsError, match="another size"):
        store.add([BankEntry("1", "cat")], dense[:, :4], stages, words("cat"))
    assert segments(tmp_path) == []
    with pytest.raises(WeightsError, match="encoder 'tiny-1', not 'tiny-2'"):
        BankStore.create(tmp_path, BankHead("tiny-2", 6, 7, (3, 4, 5)))


def test_foreign_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is no bank of pictures"):
        BankStore(tmp_path / "nowhere")
    (tmp_path / "cat.jpg").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"holds other files, such as cat\.jpg"):
        BankStore.create(tmp_path, HEAD)
    newer = fill(tmp_path / "bank", ["cat"]).folder / "bank.json"
    newer.write_text(newer.read_text().replace('"version":1', '"version":2'))
    with pytest.raises(WeightsError, match="version 2 is newer"):
        BankStore(tmp_path / "bank")


def test_removed_entries_do_not_count_and_may_come_again(tmp_path: Path) -> None:
    store = fill(tmp_path, ["cat", "dog", "cat", "cow"])
    assert store.remove(name="cat") == 2
    assert store.remove(key="0:0000000003") == 1
    assert BankStore(tmp_path).names == store.names == ("dog",)
    assert not store.lookup(words("cat")["cat"][None]).found.any()
    dense, stages = rows(1, seed=5)
    assert store.add([BankEntry("0:0000000000", "cat")], dense, stages, words("cat")) == 1
    assert [(entry.key, entry.name) for entry in BankStore(tmp_path).entries("cat")] == [("0:0000000000", "cat")]


def test_removing_says_what_is_missing(tmp_path: Path) -> None:
    store = fill(tmp_path, ["cat", "dog"])
    for name, key, message in (
        (None, None, "say what to remove"),
        ("cot", None, "did you mean 'cat'"),
        (None, "0:00", "too short"),
        (None, "0:000000000", "of several pictures"),
        (None, "f" * 12, "no picture has the key"),
        ("cat", "0:0000000001", "no picture has the key"),
    ):
        with pytest.raises(PromptError, match=message):
            store.remove(name, key)
    assert len(BankStore(tmp_path)) == 2


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
    assert (found.problems, found.sound, found.leftovers >= 1) == ((), len(keys), True)
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


def test_merging_takes_each_entry_once_and_brings_back_what_was_removed(tmp_path: Path) -> None:
    fill(tmp_path / "a", ["cat", "dog"])
    fill(tmp_path / "b", ["cat", "dog"])  # the same
    fill(tmp_path / "b", ["owl"], seed=1)
    out = BankStore.create(tmp_path / "out", HEAD)
    assert [out.merge(BankStore(tmp_path / name)) for name in ("a", "b", "a")] == [(2, 0), (1, 0), (0, 0)]
    expected = state(BankStore(tmp_path / "b"))
    assert {pair: (entry.source, values) for pair, (entry, values) in state(out).items()} == {
        pair: (entry.source, values) for pair, (entry, values) in expected.items()
    }
    out.remove(name="cat")
    assert out.merge(BankStore(tmp_path / "a")) == (1, 0)
    assert set(BankStore(tmp_path / "out").names) == {"cat", "dog", "owl"}
    other = BankStore.create(tmp_path / "other", BankHead("tiny-2", 6, 7, (3, 4, 5)))
    with pytest.raises(WeightsError, match="several encoders cannot be merged"):
        out.merge(other)


def test_banks_are_asked_in_turn(tmp_path: Path) -> None:
    own = fill(tmp_path / "own", ["cat", "owl"])
    vectors = words("cat", "dog")
    dense, stages = rows(2, seed=9)
    shipped = Bank(("cat", "dog"), F.normalize(torch.stack(list(vectors.values())), dim=-1), dense, stages, "tiny-1")
    queries = torch.stack([vectors["dog"], vectors["cat"], -vectors["cat"]])
    both = chain(None, own, shipped)
    assert both is not None
    match = both.lookup(queries, floor=0.95)
    assert match.found.tolist() == [True, True, False]
    assert match.names == (("dog",), ("cat",), ())
    torch.testing.assert_close(match.dense, torch.stack([dense[1], rows(2)[0][0], torch.zeros(7)]))
    torch.testing.assert_close(match.stages[1], torch.stack([stages[1][1], rows(2)[1][1][0], torch.zeros(4)]))
    assert [sum(weights) for weights in match.weights] == pytest.approx([1.0, 1.0, 0.0])
    assert chain(None, own) is own
    assert chain(None, None) is None
    with pytest.raises(WeightsError, match="encoder 'tiny-1', the model has 'lite'"):
        check_encoder("lite", None, both)


def test_any_place_of_a_bank_is_opened(tmp_path: Path) -> None:
    store = fill(tmp_path / "own", ["cat"])
    (tmp_path / "model").mkdir()
    file = store.to_bank().save(tmp_path / "model" / "bank.safetensors")
    assert isinstance(open_bank(tmp_path / "own"), BankStore)
    for place in (file, tmp_path / "model"):
        assert open_bank(place).lookup(words("cat")["cat"][None]).names == (("cat",),)
    with pytest.raises(WeightsError, match="no such file"):
        open_bank(tmp_path / "nothing")


def test_a_hundred_thousand_entries_open_and_are_searched_quickly(tmp_path: Path) -> None:
    folder, count, part = tmp_path / "bank", 100_000, 20_000
    store = BankStore.create(folder, BankHead("lite", 384, 1280, (24, 40, 112)))
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(part, 384, generator=generator)
    features = [torch.ones(part, size) for size in store.head.sizes]
    try:
        for start in range(0, count, part):
            names = [f"name {number}" for number in range(start, start + part)]
            entries = [BankEntry(f"{start + n:064x}", name, f"folder/{n}.jpg") for n, name in enumerate(names)]
            turned = text.roll(start // part, dims=1)
            store.add(entries, features[0], features[1:], dict(zip(names, turned, strict=True)))
        opening, searching = [], []
        for _ in range(3):
            begin = time.process_time()
            store = BankStore(folder)
            opening.append(time.process_time() - begin)
        for number in (7, 70_007, 99_999):
            query = text.roll(number // part, dims=1)[number % part]
            begin = time.process_time()
            found = store.search(query)
            searching.append(time.process_time() - begin)
            assert (found[0].name, len(found)) == (f"name {number}", 5)
        assert len(store) == count
    finally:
        shutil.rmtree(folder)
    print(f"processor time: opened in {min(opening):.3f} s, searched in {min(searching) * 1000:.1f} ms")
    assert min(opening) < 2 * 1.0
    assert min(searching) < 2 * 0.050
