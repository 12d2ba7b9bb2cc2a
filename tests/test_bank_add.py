"""`dpseg prompts bank add`: pictures, labelled photos and COCO files, known again by their content."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch.nn import functional as F

import dpseg.prompts.bank_store
from dpseg.cli import run
from dpseg.data.picture_features import choose
from dpseg.prompts.bank_store import BankStore
from dpseg.prompts.visual import Reference
from dpseg.segmenter import Segmenter
from support.bank_workplace import (
    BLUE,
    RED,
    add,
    count_encoded,
    enter,
    features_of,
    noisy_picture,
    save_model,
    words_of,
)
from support.coco_files import box, image, write
from support.labelled_set import NAMES, write_set

SOURCE = str(Path(dpseg.prompts.bank_store.__file__).parents[2])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter(tmp_path, monkeypatch)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return count_encoded(monkeypatch)


def test_a_folder_of_pictures_is_added(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert add(model, "pictures", "--license", "CC0") == 0
    assert "5 added, 0 were there; bank holds 5 pictures of 3 names" in capsys.readouterr().out
    store = BankStore("bank")
    assert set(store.names) == {"red wall", "blue", "leaf"}
    for entry in store.entries():
        expected = features_of(model, Reference(entry.source))
        found = store.features(entry.key)
        assert found is not None
        assert entry.license == "CC0"
        assert Path(entry.source).parent.name.replace("_", " ") == entry.name
        for ours, theirs in zip((found[0], *found[1]), (expected.dense, *expected.stages), strict=True):
            assert torch.equal(ours, theirs[0].half())
    out = store.to_bank()
    text = dict(zip(out.names, out.text, strict=True))
    torch.testing.assert_close(text["red wall"], words_of(model, "red wall")[0])


def test_pictures_are_known_again_by_their_content(
    model: str, capsys: pytest.CaptureFixture[str], encoded: list[int]
) -> None:
    Image.open("pictures/blue/0.png").save("copy.bmp")
    picture = noisy_picture(RED, 5)
    mask = np.zeros((40, 40), np.uint8)
    mask[8:30, 5:20] = 255
    picture.save("thing.png")
    Image.fromarray(mask).save("mask.png")
    references = ("--ref", "thing=thing.png:mask.png", "--ref", "thing=thing.png")
    assert add(model, "pictures", *references) == 0
    before = sum(encoded)
    assert before == 8  # the seven, and a blank one that tells the sizes of a new bank
    encoded.clear()
    assert add(model, "pictures", "--ref", "blue=copy.bmp", "--ref", "thing=thing.png:5,8,20,30") == 0
    assert encoded == []
    assert "0 added, 7 were there" in capsys.readouterr().out
    assert add(model, "--ref", "cobalt=copy.bmp") == 0  # under another name: its features are there
    assert encoded == []
    store = BankStore("bank")
    assert (len(store), [entry.source for entry in store.entries("cobalt")]) == (8, ["copy.bmp"])
    assert {entry.key for entry in store.entries("cobalt")} == {entry.key for entry in store.entries("blue")}
    with_mask = features_of(model, Reference("thing.png", mask="mask.png")).dense[0].half()
    whole = features_of(model, Reference("thing.png")).dense[0].half()
    stored = [store.features(entry.key) for entry in store.entries("thing")]
    assert all(torch.equal(row[0], own) for row, own in zip(stored, (with_mask, whole), strict=True) if row is not None)
    assert not torch.equal(with_mask, whole)


def test_unreadable_pictures_are_skipped_and_listed(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("pictures/leaf/bad.png").write_bytes(Path("pictures/leaf/0.png").read_bytes()[:90])
    assert add(model, "pictures", "--ref", "leaf=nowhere.png") == 1
    captured = capsys.readouterr()
    assert "5 added" in captured.out
    assert "2 could not be read:\n  pictures/leaf/bad.png" in captured.err
    assert "nowhere.png: no such file" in captured.err


def test_an_add_that_was_killed_goes_on_where_it_was(model: str, encoded: list[int]) -> None:
    total = 320
    for number in range(total):
        name = Path("many", f"name {number % 7}")
        name.mkdir(parents=True, exist_ok=True)
        noisy_picture(RED, 1000 + number, side=150).save(name / f"{number}.png")
    command = [sys.executable, "-m", "dpseg", "prompts", "bank", "add", "bank", "many", "--model", model]
    environment = {**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(Path("bank/segments").glob("[!.]*.json"))) < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    there = len(BankStore("bank"))
    assert 48 <= there < total
    assert run(["prompts", "bank", "verify", "bank"]) == 0
    encoded.clear()
    assert add(model, "many") == 0
    assert sum(encoded) == total - there
    store = BankStore("bank")
    assert sorted(Path(entry.source).name for entry in store.entries()) == sorted(f"{n}.png" for n in range(total))


def best_objects(model: str, root: Path, value: int, count: int) -> list[str]:
    """Photos of a class's objects, chosen anew with plain loops: large ones that differ."""
    encoder = Segmenter.from_pretrained(model).model.encoder
    found = []
    for path in sorted((root / "images").iterdir()):
        components, number = ndimage.label(np.asarray(Image.open(root / "masks" / path.name)) == value)
        if number:
            areas = [int((components == one).sum()) for one in range(1, number + 1)]
            region = components == 1 + int(np.argmax(areas))
            dense = features_of(model, Reference(path, mask=region)).dense.half().float()
            vector = F.normalize(encoder.project_visual(dense), dim=-1)[0]
            found.append((max(areas), path.name, vector))
    found.sort(key=lambda one: (-one[0], one[1]))
    kept = [found.pop(0)]
    while found and len(kept) < count:
        likeness = [max(float(one[2] @ other[2]) for other in kept) for one in found]
        kept.append(found.pop(int(np.argmin(likeness))))
    return [name for _, name, _ in kept]


def test_of_labelled_photos_the_large_and_different_objects_are_kept(
    model: str, capsys: pytest.CaptureFixture[str], encoded: list[int]
) -> None:
    root = write_set(Path("shapes"), photos=9, side=64)
    expected = {name: best_objects(model, root, value, 5) for value, name in enumerate(NAMES) if value}
    encoded.clear()
    assert add(model, "--data", "shapes", "--per-class", "3") == 0
    assert "9 added" in capsys.readouterr().out
    store = BankStore("bank")
    assert set(store.names) == set(NAMES[1:])
    for name in store.names:
        assert [Path(entry.source).name for entry in store.entries(name)] == expected[name][:3]
    assert sum(encoded) > 9
    encoded.clear()
    assert add(model, "--data", "shapes", "--per-class", "3") == 0
    assert add(model, "--data", "shapes", "--per-class", "5") == 0
    assert encoded == [], "what was compared before is kept"
    store.refresh()
    for name in store.names:
        assert {Path(entry.source).name for entry in store.entries(name)} == set(expected[name])


def test_choosing_one_takes_the_largest_and_never_too_many() -> None:
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    assert choose(vectors, 1) == [0]
    assert choose(vectors, 2) == [0, 3]
    assert choose(vectors, 3) == [0, 3, 2]
    assert sorted(choose(vectors, 9)) == [0, 1, 2, 3]


def test_objects_of_a_coco_file_are_added(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("coco").mkdir()
    for name, colour in (("a.jpg", RED), ("b.jpg", BLUE)):
        noisy_picture(colour, 3).save(f"coco/{name}")
    outlines = [
        {"id": 1, "image_id": 1, "category_id": 3, "segmentation": box(2, 2, 30, 30)},
        {"id": 2, "image_id": 2, "category_id": 4, "segmentation": box(5, 5, 35, 35)},
        {"id": 3, "image_id": 3, "category_id": 4, "segmentation": box(5, 5, 35, 35)},
    ]
    images = [image(number, name, 40, 40) for number, name in ((1, "a.jpg"), (2, "b.jpg"), (3, "gone.jpg"))]
    write(Path("coco/things.json"), images, [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}], outlines)
    assert add(model, "--data", "coco/things.json", "--per-class", "2") == 1
    captured = capsys.readouterr()
    assert captured.err.count("gone.jpg") == 1
    assert "2 added" in captured.out
    assert {(entry.name, Path(entry.source).name) for entry in BankStore("bank").entries()} == {
        ("cat", "a.jpg"),
        ("dog", "b.jpg"),
    }
