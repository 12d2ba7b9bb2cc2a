"""A bank in a folder: what is kept, looked up, removed and merged, by writers that are killed or many at once."""

from __future__ import annotations

import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dpseg.errors import DPSegError, PromptError, WeightsError
from dpseg.prompts.bank import Bank
from dpseg.prompts.bank_check import check_bank
from dpseg.prompts.bank_contents import BankEntry, picture_key
from dpseg.prompts.bank_segment import BankHead
from dpseg.prompts.bank_store import BankStore
from support.bank_rows import HEAD, fill, rows, state, words
from support.writers import kill_in_an_entry, start_writer, wait_for, write_bank


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
        for found, given in zip((features[0], *features[1]), (dense, *stages), strict=True):
            assert torch.equal(found.float(), given[number])
    assert store.features("d" * 64) is None


def test_a_picture_counts_once_under_a_name(tmp_path: Path) -> None:
    entries = [BankEntry("1", "cat"), BankEntry("1", "cat"), BankEntry("1", "pet"), BankEntry("2", "cat")]
    store = BankStore.create(tmp_path, HEAD)
    assert store.add(entries, *rows(4), words("cat", "pet")) == 3
    files = sorted(tmp_path.rglob("*"))
    assert store.add(entries, *rows(4), {}) == 0
    assert sorted(tmp_path.rglob("*")) == files
    assert state(tmp_path).keys() == {("1", "cat"), ("1", "pet"), ("2", "cat")}


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
            for name, share in zip(near, shares, strict=True):  # the pictures of a name are averaged first
                own = [given[n].numpy() for n in range(60) if names[n] == name]
                expected += share * sum(own) / len(own)
            np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)
        blended += len(near) > 1
    assert blended >= 3
    assert not match.found.all()


def test_no_classes_and_no_entries_give_nothing(tmp_path: Path) -> None:
    store = BankStore.create(tmp_path, HEAD)
    match = store.lookup(torch.rand(2, 6))
    assert (match.found.tolist(), match.names, match.dense.shape) == ([False, False], ((), ()), (2, 7))
    assert store.search(torch.rand(6)) == []
    assert fill(tmp_path, "cat").lookup(torch.rand(0, 6)).dense.shape == (0, 7)


def test_search_lists_neighbours_with_their_shares(tmp_path: Path) -> None:
    first, second = torch.eye(6)[:2]
    store = BankStore.create(tmp_path, HEAD)
    text = {name: first + step * second for step, name in enumerate("abcd")}
    store.add([BankEntry(str(n), name) for n, name in enumerate("abcda")], *rows(5), text)
    found = store.search(4 * first, top=3)
    assert [(one.name, one.pictures, one.share) for one in found] == [("a", 2, 1.0), ("b", 1, 0.0), ("c", 1, 0.0)]
    assert [one.cosine for one in found] == pytest.approx([1.0, 1 / 2**0.5, 1 / 5**0.5], abs=1e-6)
    (near,) = store.search(first + 0.5 * second, top=1)
    match = store.lookup((first + 0.5 * second)[None])
    assert near.share == pytest.approx(match.weights[0][match.names[0].index(near.name)])


def test_a_bank_in_one_file_goes_in_and_comes_out(tmp_path: Path) -> None:
    names = ("cat", "sofa", "cat", "lamp")
    dense, stages = rows(4)
    text = F.normalize(torch.stack([words(name)[name] for name in names]), dim=-1)
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


def test_removed_entries_do_not_count_and_may_come_again(tmp_path: Path) -> None:
    store = fill(tmp_path, "cat", "dog", "cat", "cow")
    assert store.remove(name="cat") == 2
    assert store.remove(key="0:0000000003") == 1
    assert BankStore(tmp_path).names == store.names == ("dog",)
    assert not store.lookup(words("cat")["cat"][None]).found.any()
    assert store.add([BankEntry("0:0000000000", "cat")], *rows(1, seed=5), words("cat")) == 1
    assert [(entry.key, entry.name) for entry in BankStore(tmp_path).entries("cat")] == [("0:0000000000", "cat")]


def test_merging_takes_each_entry_once_and_brings_back_what_was_removed(tmp_path: Path) -> None:
    fill(tmp_path / "a", "cat", "dog")
    fill(tmp_path / "b", "cat", "dog")  # the same
    other = fill(tmp_path / "b", "owl", seed=1)
    out = BankStore.create(tmp_path / "out", HEAD)
    assert [out.merge(BankStore(tmp_path / name)) for name in ("a", "b", "a")] == [(2, 0), (1, 0), (0, 0)]
    found, given = (
        {pair: (entry.source, values) for pair, (entry, values) in state(one).items()} for one in (out, other)
    )
    assert found == given
    out.remove(name="cat")
    assert out.merge(BankStore(tmp_path / "a")) == (1, 0)
    assert set(BankStore(tmp_path / "out").names) == {"cat", "dog", "owl"}


def test_compacting_keeps_what_counts_and_forgets_the_rest(tmp_path: Path) -> None:
    for seed in range(5):
        store = fill(tmp_path, "cat", "dog", "cow", seed=seed)
    reader, secret = BankStore(tmp_path), store.features("2:0000000001")
    assert secret is not None
    store.remove(key="2:0000000001")
    before = state(store)
    assert len(before) == 14
    store.compact()
    assert state(store) == state(tmp_path) == before
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(secret[0].numpy().tobytes() in content for content in files)
    assert len(state(reader)) == 15, "what it has open stays readable"
    reader.refresh()
    assert state(reader) == before


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    store, empty = fill(tmp_path / "bank", "cat", "dog"), BankStore.create(tmp_path / "empty", HEAD)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    dense, stages = rows(1)
    strange, one = BankHead("tiny-2", 6, 7, (3, 4, 5)), [BankEntry("1", "cat")]
    refusals = (
        (lambda: store.add(one, dense + 1e6, stages, {}), WeightsError, "half precision"),
        (lambda: store.add(one, dense[:, :4], stages, {}), WeightsError, "another size"),
        (lambda: store.lookup(torch.rand(2, 5)), PromptError, r"do not fit the bank's, \(K, 6\)"),
        (lambda: list(store.entries("dogs")), PromptError, "no pictures of 'dogs'; did you mean 'dog'"),
        (lambda: store.remove(), PromptError, "say what to remove"),
        (lambda: store.remove("cot"), PromptError, "did you mean 'cat'"),
        (lambda: store.remove(key="0:00"), PromptError, "too short"),
        (lambda: store.remove(key="0:000000000"), PromptError, "of several pictures"),
        (lambda: store.remove(key="f" * 12), PromptError, "no picture has the key"),
        (lambda: store.remove("cat", "0:0000000001"), PromptError, "no picture has the key"),
        (lambda: BankStore.create(store.folder, strange), WeightsError, "encoder 'tiny-1', not 'tiny-2'"),
        (
            lambda: store.merge(BankStore.create(tmp_path / "strange", strange)),
            WeightsError,
            "several encoders cannot be merged",
        ),
        (empty.to_bank, WeightsError, "is empty"),
        (lambda: BankStore(tmp_path / "nowhere"), WeightsError, "is no bank of pictures"),
        (lambda: BankStore.create(tmp_path / "photos", HEAD), WeightsError, r"holds other files, such as cat\.jpg"),
    )
    before = state(store)
    for act, kind, message in refusals:
        with pytest.raises(DPSegError, match=message) as refusal:
            act()
        assert refusal.type is kind
    assert state(tmp_path / "bank") == before


def test_a_killed_writer_leaves_what_it_had_written(tmp_path: Path) -> None:
    size = 1_000_000
    BankStore.create(tmp_path, BankHead("tiny-1", 6, size, (3, 4, 5)))
    writer = start_writer(write_bank, tmp_path, 0, 1000, size)
    kill_in_an_entry(writer, tmp_path, lambda: len(BankStore(tmp_path)) >= 3)
    store = BankStore(tmp_path)
    keys = [entry.key for entry in store.entries()]
    assert {"key 0", "key 1", "key 2"} <= set(keys)
    for key in keys:
        features = store.features(key)
        assert features is not None
        assert features[0].shape == (size,)
        assert (features[0] == float(key.split()[1])).all()
    found = check_bank(tmp_path)
    assert (found.problems, found.sound) == ((), len(keys))  # leftovers: none, where the kill fell between two entries
    write_bank(tmp_path, 0, len(keys) + 1, size)
    assert len(BankStore(tmp_path)) == len(keys) + 1


def test_two_writers_and_a_reader_at_once(tmp_path: Path) -> None:
    reader = BankStore.create(tmp_path, HEAD)
    seen, known = 0, 0
    # Both write 25 to 49, and enough that files are written together.
    writers = [start_writer(write_bank, tmp_path, first, first + 50, HEAD.dense) for first in (0, 25)]
    while any(writer.is_alive() for writer in writers):
        fresh = len(BankStore(tmp_path))
        assert fresh >= seen, "an entry was missing for a moment"
        reader.refresh()
        assert len(reader) >= known
        seen, known = fresh, len(reader)
    wait_for(*writers)
    store, keys = BankStore(tmp_path), sorted(f"key {i}" for i in range(75))
    assert sorted(entry.key for entry in store.entries()) == keys
    assert all(len(list(store.entries(name))) in (7, 8) for name in store.names)
    assert check_bank(tmp_path).problems == ()
    store.compact()
    assert sorted(entry.key for entry in BankStore(tmp_path).entries()) == keys


def fill_large(folder: Path, count: int, part: int) -> torch.Tensor:
    """Adds so many names with a picture each, with features of dpseg-lite's sizes; returns their text (N, 384)."""
    store = BankStore.create(folder, BankHead("lite", 384, 1280, (24, 40, 112)))
    text = torch.randn(part, 384, generator=torch.Generator().manual_seed(0))
    turned = [text.roll(number, dims=1) for number in range(count // part)]
    dense, *stages = (torch.ones(part, size) for size in store.head.sizes)
    for start, rows_of_part in zip(range(0, count, part), turned, strict=True):
        names = [f"name {number}" for number in range(start, start + part)]
        entries = [BankEntry(f"{start + n:064x}", name, f"folder/{n}.jpg") for n, name in enumerate(names)]
        store.add(entries, dense, stages, dict(zip(names, rows_of_part, strict=True)))
    return torch.cat(turned)


def test_features_stay_on_the_disk_when_a_bank_is_opened_and_searched(tmp_path: Path) -> None:
    text = fill_large(tmp_path, 6000, 2000)
    tracemalloc.start()
    try:
        store = BankStore(tmp_path)
        for number in (7, 3007, 5999):
            found = store.search(text[number])
            assert (found[0].name, len(found)) == (f"name {number}", 5)
        assert len(store) == 6000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    print(f"{peak / 1e6:.1f} MB at most")
    assert peak - text.nbytes < 6000 * 2 * sum(store.head.sizes) / 2


@pytest.mark.slow
def test_a_hundred_thousand_names_are_opened_and_searched_quickly(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:  # 300 MB
        begin = time.process_time()
        text = fill_large(Path(folder), 100_000, 20_000)
        filling = time.process_time() - begin
        opening, searching, product = [], [], []
        for number in (7, 70_007, 99_999):
            begin = time.process_time()
            store = BankStore(folder)
            opening.append(time.process_time() - begin)
            begin = time.process_time()
            found = store.search(text[number])
            searching.append(time.process_time() - begin)
            begin = time.process_time()
            assert (text @ text[number]).argmax() == number
            product.append(time.process_time() - begin)
            assert (found[0].name, len(found)) == (f"name {number}", 5)
        assert len(store) == 100_000
    print(f"filled in {filling:.3f} s of the processor, opened in {min(opening):.3f} s")
    print(f"searched in {min(searching) * 1000:.1f} ms, the bare product {min(product) * 1000:.1f} ms")
    assert min(opening) < filling / 5
    assert min(searching) < 5 * min(product)
