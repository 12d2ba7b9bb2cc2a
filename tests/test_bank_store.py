"""A bank in a folder: what is kept, looked up, removed and merged."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dpseg.errors import PromptError, WeightsError
from dpseg.prompts.bank import Bank
from dpseg.prompts.bank_contents import BankEntry, picture_key
from dpseg.prompts.bank_segment import BankHead
from dpseg.prompts.bank_store import BankStore
from dpseg.prompts.banks import chain, check_encoder, open_bank
from support.bank_rows import HEAD, fill, rows, segments, state, words


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
