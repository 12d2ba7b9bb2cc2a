"""`dpseg prompts bank` and `dpseg predict --bank` as a user meets them."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from dpseg.cli import run
from dpseg.data.picture_features import BATCH, choose
from dpseg.model.encoders import Encoder
from dpseg.model.prompt_encoding import name_features
from dpseg.prompts.bank import Bank
from dpseg.prompts.bank_store import BankStore
from dpseg.prompts.text import parse_classes
from dpseg.prompts.visual import Reference
from dpseg.segmenter import Segmenter
from support import forked
from support.bank_rows import flip, segments
from support.bank_workplace import add_and_die, count_encoded, enter, features_of
from support.coco_files import box, image, write
from support.labelled_set import NAMES, write_set
from support.pictures import BLUE, RED, noisy, write_damaged
from support.tiny import tiny_model

Refused = Callable[..., str]
Command = Callable[..., str]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with another encoder."""
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.encoder.parameters():  # type: ignore[attr-defined]
            parameter.mul_(0.9)
    folder = tmp_path_factory.mktemp("models") / "other"
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def encoder(segmenter: Segmenter) -> Encoder:
    """That of `model`."""
    return segmenter.model.encoder


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter(tmp_path, monkeypatch)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return count_encoded(monkeypatch)


@pytest.fixture
def bank(capsys: pytest.CaptureFixture[str], refused: Refused) -> Command:
    """Runs a command of `dpseg prompts bank`, and returns what it prints; with status 2: the one line of a mistake."""

    def bank(*arguments: str, status: int = 0) -> str:
        if status == 2:
            return refused("prompts", "bank", *arguments)
        capsys.readouterr()
        assert run(["prompts", "bank", *arguments]) == status
        return "".join(capsys.readouterr())

    return bank


@pytest.fixture
def add(bank: Command, model: str) -> Command:
    """Adds pictures to the bank `bank` or another one, and returns what is printed."""
    return lambda *arguments, to="bank", model=model, status=0: bank(
        "add", to, *arguments, "--model", model, status=status
    )


def words_of(segmenter: Segmenter, *names: str) -> Tensor:
    return name_features(segmenter.model.encoder, parse_classes(names), segmenter.cache)


def test_a_folder_of_pictures_is_added_and_listed(segmenter: Segmenter, bank: Command, add: Command) -> None:
    said = add("pictures", "--license", "CC0")
    assert "5 added, 0 were there; bank holds 5 pictures of 3 names" in said
    store = BankStore("bank")
    assert set(store.names) == {"red wall", "blue", "leaf"}
    for entry in store.entries():
        expected = features_of(segmenter.model.encoder, Reference(entry.source))
        found = store.features(entry.key)
        assert found is not None
        assert entry.license == "CC0"
        assert Path(entry.source).parent.name.replace("_", " ") == entry.name
        for ours, theirs in zip((found[0], *found[1]), (expected.dense, *expected.stages), strict=True):
            assert torch.equal(ours, theirs[0].half())
    out = store.to_bank()
    torch.testing.assert_close(out.text[out.names.index("red wall")], words_of(segmenter, "red wall")[0])
    head, *lines = bank("list", "bank").splitlines()
    assert head.split() == ["name", "pictures", "sources"]
    assert lines == [
        "blue      1         pictures/blue/0.png",
        "leaf      2         pictures/leaf/0.png, pictures/leaf/1.png",
        "red wall  2         pictures/red_wall/0.png, pictures/red_wall/1.png",
        "5 pictures of 3 names",
    ]
    content = json.loads(bank("list", "bank", "--json"))
    assert content["encoder"] == store.encoder
    assert content["entries"][0] == {"name": "blue", "pictures": 1, "sources": ["pictures/blue/0.png"]}
    own = json.loads(bank("list", "bank", "--name", "leaf", "--json"))["entries"]
    assert [entry["source"] for entry in own] == ["pictures/leaf/0.png", "pictures/leaf/1.png"]
    assert bank("list", "bank", "--name", "leaf").splitlines()[2].startswith(own[1]["key"][:12])


def test_pictures_are_known_again_by_their_content(encoder: Encoder, add: Command, encoded: list[int]) -> None:
    Image.open("pictures/blue/0.png").save("copy.bmp")
    noisy(RED, 5).save("thing.png")
    mask = np.zeros((40, 40), np.uint8)
    mask[8:30, 5:20] = 255
    Image.fromarray(mask).save("mask.png")
    add("pictures", "--ref", "thing=thing.png:mask.png", "--ref", "thing=thing.png")
    assert sum(encoded) == 8  # the seven, and a blank one that tells the sizes of a new bank
    encoded.clear()
    again = add("pictures", "--ref", "blue=copy.bmp", "--ref", "thing=thing.png:5,8,20,30")
    assert "0 added, 7 were there" in again
    add("--ref", "cobalt=copy.bmp")  # under another name: its features are there
    assert encoded == []
    store = BankStore("bank")
    assert (len(store), [entry.source for entry in store.entries("cobalt")]) == (8, ["copy.bmp"])
    assert {entry.key for entry in store.entries("cobalt")} == {entry.key for entry in store.entries("blue")}
    references = (Reference("thing.png", mask="mask.png"), Reference("thing.png"))
    with_mask, whole = (features_of(encoder, one).dense[0].half() for one in references)
    stored = [store.features(entry.key) for entry in store.entries("thing")]
    assert all(torch.equal(row[0], own) for row, own in zip(stored, (with_mask, whole), strict=True) if row is not None)
    assert not torch.equal(with_mask, whole)


def test_unreadable_pictures_are_skipped_and_listed(add: Command) -> None:
    write_damaged(Path("pictures/leaf/bad.png"))
    said = add("pictures", "--ref", "leaf=nowhere.png", status=1)
    assert "5 added" in said
    assert "2 could not be read:\n  pictures/leaf/bad.png" in said
    assert "nowhere.png: no such file" in said


def test_an_add_that_was_killed_goes_on_where_it_was(
    model: str, bank: Command, add: Command, encoded: list[int]
) -> None:
    total = 5 * BATCH
    for number in range(total):
        name = Path("many", f"name {number % 7}")
        name.mkdir(parents=True, exist_ok=True)
        noisy(RED, 1000 + number).save(name / f"{number}.png")
    assert forked.killed(add_and_die, model, "many", 3 * BATCH)
    there = len(BankStore("bank"))
    assert 2 * BATCH <= there <= 3 * BATCH  # a batch is what a kill can lose
    bank("verify", "bank")
    encoded.clear()
    add("many")
    assert sum(encoded) == total - there
    sources = [Path(entry.source).name for entry in BankStore("bank").entries()]
    assert sorted(sources) == sorted(f"{number}.png" for number in range(total))


def best_objects(encoder: Encoder, root: Path, value: int, count: int) -> list[str]:
    """Photos of a class's objects, chosen anew with plain loops: large ones that differ."""
    found = []
    for path in sorted((root / "images").iterdir()):
        components, number = ndimage.label(np.asarray(Image.open(root / "masks" / path.name)) == value)
        if number:
            areas = [int((components == one).sum()) for one in range(1, number + 1)]
            region = components == 1 + int(np.argmax(areas))
            dense = features_of(encoder, Reference(path, mask=region)).dense.half().float()
            vector = F.normalize(encoder.project_visual(dense), dim=-1)[0]
            found.append((max(areas), path.name, vector))
    found.sort(key=lambda one: (-one[0], one[1]))
    kept = [found.pop(0)]
    while found and len(kept) < count:
        likeness = [max(float(one[2] @ other[2]) for other in kept) for one in found]
        kept.append(found.pop(int(np.argmin(likeness))))
    return [name for _, name, _ in kept]


def test_of_labelled_photos_the_large_and_different_objects_are_kept(
    encoder: Encoder, add: Command, encoded: list[int]
) -> None:
    root = write_set(Path("shapes"), photos=9, side=64)
    expected = {name: best_objects(encoder, root, value, 5) for value, name in enumerate(NAMES) if value}
    encoded.clear()
    assert "9 added" in add("--data", "shapes", "--per-class", "3")
    store = BankStore("bank")
    assert set(store.names) == set(NAMES[1:])
    for name in store.names:
        assert [Path(entry.source).name for entry in store.entries(name)] == expected[name][:3]
    assert sum(encoded) > 9
    encoded.clear()
    add("--data", "shapes", "--per-class", "3")
    add("--data", "shapes", "--per-class", "5")
    assert encoded == [], "what was compared before is kept"
    store.refresh()
    for name in store.names:
        assert {Path(entry.source).name for entry in store.entries(name)} == set(expected[name])


def test_choosing_one_takes_the_largest_and_never_too_many() -> None:
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    assert [choose(vectors, count) for count in (1, 2, 3)] == [[0], [0, 3], [0, 3, 2]]
    assert sorted(choose(vectors, 9)) == [0, 1, 2, 3]


def test_objects_of_a_coco_file_are_added(add: Command) -> None:
    Path("coco").mkdir()
    for name, colour in (("a.jpg", RED), ("b.jpg", BLUE)):
        noisy(colour, 3).save(f"coco/{name}")
    outlines = [
        {"id": number, "image_id": number, "category_id": category, "segmentation": outline}
        for number, category, outline in ((1, 3, box(2, 2, 30, 30)), (2, 4, box(5, 5, 35, 35)), (3, 4, box(5, 5, 9, 9)))
    ]
    images = [image(number, name, 40, 40) for number, name in ((1, "a.jpg"), (2, "b.jpg"), (3, "gone.jpg"))]
    write(Path("coco/things.json"), images, [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}], outlines)
    said = add("--data", "coco/things.json", "--per-class", "2", status=1)
    assert said.count("gone.jpg") == 1
    assert "2 added" in said
    found = {(entry.name, Path(entry.source).name) for entry in BankStore("bank").entries()}
    assert found == {("cat", "a.jpg"), ("dog", "b.jpg")}


def test_remove_and_compact(add: Command, bank: Command) -> None:
    add("pictures")
    key = next(entry.key for entry in BankStore("bank").entries("leaf"))
    assert "2 removed; bank holds 3 pictures of 2 names" in bank("remove", "bank", "--name", "red wall")
    assert "1 removed; bank holds 2 pictures of 2 names" in bank("remove", "bank", "--key", key[:12])
    size = sum(path.stat().st_size for path in Path("bank").rglob("*"))
    bank("compact", "bank")
    assert sum(path.stat().st_size for path in Path("bank").rglob("*")) < size
    assert [entry.source for entry in BankStore("bank").entries()] == ["pictures/blue/0.png", "pictures/leaf/1.png"]
    assert "did you mean 'leaf'" in bank("remove", "bank", "--name", "leaves", status=2)


def test_merge_takes_folders_and_files_of_one_encoder(other: str, bank: Command, add: Command) -> None:
    add("pictures")
    add("--ref", "mug=pictures/leaf/1.png", "--ref", "blue=pictures/blue/0.png", to="second")
    add("pictures", to="strange", model=other)
    bank("export", "second", "kept/second.safetensors")
    assert len(Bank.load("kept/second.safetensors")) == 2
    merged = bank("merge", "all", "bank", "second")
    assert "bank: 5 added\nsecond: 1 added\nall holds 6 pictures of 4 names" in merged
    assert "all holds 8 pictures of 4 names" in bank("merge", "all", "kept/second.safetensors")
    assert "several encoders cannot be merged" in bank("merge", "new", "bank", "strange", status=2)
    assert not Path("new").exists()
    assert "make it again" in add("pictures", model=other, status=2)


def test_verify_names_the_damage_and_merge_saves_the_rest(add: Command, bank: Command) -> None:
    add("pictures")
    add("--ref", "mug=pictures/leaf/1.png")
    assert "bank is sound: 6 pictures of 4 names" in bank("verify", "bank")
    hurt = max(segments(Path("bank")), key=lambda path: path.stat().st_size)
    flip(hurt, "dense")
    error = bank("verify", "bank", status=1)
    assert f"{hurt.stem}: 1 of 5 entries are damaged, of blue" in error
    assert "5 of the 6 pictures that can be read are sound; save them with: dpseg prompts bank merge NEW bank" in error
    assert "bank: 1 left out, they are damaged" in bank("merge", "new", "bank", status=1)
    bank("verify", "new")
    assert set(BankStore("new").names) == {"red wall", "leaf", "mug"}
    hurt.write_bytes(hurt.read_bytes()[:-100])
    assert "dpseg prompts bank verify" in bank("list", "bank", status=2)


def test_search_shows_cosines_and_weights(
    model: str, other: str, segmenter: Segmenter, bank: Command, add: Command
) -> None:
    add("pictures", "--ref", "red walls=pictures/red_wall/0.png")
    head, *lines = bank("search", "bank", "red wall", "--top", "3", "--model", model).splitlines()
    assert head.split() == ["name", "pictures", "cosine", "weight"]
    query, *stored = words_of(segmenter, "red wall", "red walls", "blue", "leaf")
    cosines = [1.0, *sorted((float(query @ text) for text in stored), reverse=True)]
    assert [float(line.split()[-2]) for line in lines] == pytest.approx(cosines[:3], abs=1e-3)
    near = [cosine for cosine in cosines[:3] if cosine >= 0.8]
    shares = (torch.tensor(near) / 0.05).softmax(0).tolist()
    assert len(near) == 2
    assert [line.split()[-1] for line in lines] == [*(f"{share:.1%}" for share in shares), "-"]
    assert "no name is near enough; 'xyzzy' gets no pictures" in bank("search", "bank", "xyzzy", "--model", model)
    assert "make it again" in bank("search", "bank", "cat", "--model", other, status=2)


def test_predict_uses_a_bank_of_ones_own(model: str, other: str, bank: Command, add: Command, refused: Refused) -> None:
    add("pictures")
    noisy(RED, 9, side=64).save("photo.png")
    common = ["predict", "photo.png", "--text", "red wall", "--text", "blue", "--text", "xyzzy", "-f", "npz,json"]
    common += ["--no-refine", "-m"]

    def scores(*arguments: str) -> NDArray[np.float32]:
        assert run([*common, *arguments, "-o", "out"]) == 0
        return np.asarray(np.load("out/photo_scores.npz")["logits"])

    plain, folder = scores(model), scores(model, "--bank", "bank")
    assert not np.array_equal(plain, folder)
    assert np.array_equal(folder, scores(model, "--bank", "bank", "--no-bank"))  # the model has no bank
    shutil.copytree(model, "with-bank")
    bank("export", "bank", "with-bank/bank.safetensors")
    shipped = scores("with-bank")
    np.testing.assert_allclose(shipped, folder, atol=2e-2)
    assert np.array_equal(scores("with-bank", "--no-bank"), plain)
    assert np.array_equal(scores(model, "--bank", "with-bank/bank.safetensors"), shipped)
    assert "the bank was made with the encoder" in refused(*common, other, "-o", "x", "--bank", "bank")
    refused(*common, model, "-o", "x", "--bank", "nowhere")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("add bank", "no pictures given"),
        ("add bank nowhere", "'nowhere' holds no pictures"),
        ("add bank --ref cat", "is not NAME=PICTURE"),
        ("add bank pictures --per-class 0", "--per-class 0 is out of range"),
        ("add pictures pictures", "pictures: holds other files, such as blue"),
        ("add bank --data nowhere", "'nowhere'"),
        ("list pictures", "pictures: is no bank of pictures"),
        ("remove pictures --name cat", "is no bank of pictures"),
        ("merge new nowhere", "nowhere: is no bank of pictures"),
        ("verify nowhere", "is no bank of pictures"),
        ("search pictures cat", "is no bank of pictures"),
        ("search pictures ' , '", "has no name"),
        ("search pictures cat --top 0", "--top 0 is out of range"),
        ("export nowhere file", "is no bank of pictures"),
    ],
)
def test_mistakes_are_one_line(model: str, bank: Command, arguments: str, message: str) -> None:
    with_model = ("--model", model) if arguments.startswith("add") else ()
    assert message in bank(*shlex.split(arguments), *with_model, status=2)
    assert not Path("bank").exists()
