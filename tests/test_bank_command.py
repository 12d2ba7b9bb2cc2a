"""`dpseg prompts bank` and `dpseg predict --bank` as a user meets them."""

from __future__ import annotations

import json
import os
import shutil
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
from torch import Tensor
from torch.nn import functional as F

import dpseg.prompts.bank_store
from coco_files import box, image, write
from dpseg.cache import EmbeddingCache
from dpseg.cli import run
from dpseg.config import ModelConfig
from dpseg.data.picture_features import choose
from dpseg.errors import WeightsError
from dpseg.model.dpseg import DPSeg
from dpseg.model.encoders import VisualFeatures
from dpseg.model.prompt_encoding import name_features
from dpseg.model.tiny import TinyEncoder
from dpseg.prompts.bank import Bank
from dpseg.prompts.bank_store import BankStore
from dpseg.prompts.text import parse_classes
from dpseg.prompts.visual import Reference
from dpseg.segmenter import Segmenter
from miniature import NAMES, write_set

SOURCE = str(Path(dpseg.prompts.bank_store.__file__).parents[2])
CONFIG = ModelConfig(encoder="tiny", image_size=64, keep_aspect=True, templates=1, logit_scale=10.0, tune_encoder=False)
RED, BLUE, GREEN = (220, 30, 20), (20, 40, 220), (30, 180, 40)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    DPSeg(CONFIG).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with another encoder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "other"
    strange = DPSeg(CONFIG)
    with torch.no_grad():
        for parameter in strange.encoder.parameters():  # type: ignore[attr-defined]
            parameter.mul_(0.9)
    strange.save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in a folder with pictures of three names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPSEG_CACHE", str(tmp_path / "cache"))
    for name, colours in (("red_wall", (RED, (200, 60, 50))), ("blue", (BLUE,)), ("leaf", (GREEN, (60, 160, 60)))):
        Path("pictures", name).mkdir(parents=True)
        for number, colour in enumerate(colours):
            noisy_picture(colour, number).save(f"pictures/{name}/{number}.png")


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Notes how many pictures the encoder takes."""
    taken: list[int] = []
    plain = TinyEncoder.visual_features

    def visual_features(self: TinyEncoder, crops: Tensor, masks: Tensor | None = None) -> VisualFeatures:
        taken.append(len(crops))
        return plain(self, crops, masks)

    monkeypatch.setattr(TinyEncoder, "visual_features", visual_features)
    return taken


def noisy_picture(colour: tuple[int, int, int], seed: int, side: int = 40) -> Image.Image:
    noise = np.random.default_rng(seed).integers(-20, 20, (side, side, 3))
    return Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))


def add(model: str, *arguments: str, bank: str = "bank") -> int:
    return run(["prompts", "bank", "add", bank, *arguments, "--model", model])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Runs a command that fails and returns the one line that it prints."""
    capsys.readouterr()
    assert run(["prompts", "bank", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def features_of(model: str, reference: Reference) -> VisualFeatures:
    """What the encoder makes of one picture."""
    encoder = Segmenter.from_pretrained(model).model.encoder
    crop, mask = reference.crop(encoder.crop_size)
    return encoder.visual_features(crop[None], mask[None])


def words_of(model: str, *names: str) -> Tensor:
    return name_features(Segmenter.from_pretrained(model).model.encoder, parse_classes(names), EmbeddingCache())


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


def test_list_shows_names_and_pictures(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    add(model, "pictures")
    capsys.readouterr()
    assert run(["prompts", "bank", "list", "bank"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "pictures", "sources"]
    assert lines[1:] == [
        "blue      1         pictures/blue/0.png",
        "leaf      2         pictures/leaf/0.png, pictures/leaf/1.png",
        "red wall  2         pictures/red_wall/0.png, pictures/red_wall/1.png",
        "5 pictures of 3 names",
    ]
    assert run(["prompts", "bank", "list", "bank", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["encoder"] == BankStore("bank").encoder
    assert content["entries"][0] == {"name": "blue", "pictures": 1, "sources": ["pictures/blue/0.png"]}
    assert run(["prompts", "bank", "list", "bank", "--name", "leaf", "--json"]) == 0
    own = json.loads(capsys.readouterr().out)["entries"]
    assert [entry["source"] for entry in own] == ["pictures/leaf/0.png", "pictures/leaf/1.png"]
    assert run(["prompts", "bank", "list", "bank", "--name", "leaf"]) == 0
    assert capsys.readouterr().out.splitlines()[2].startswith(own[1]["key"][:12])


def test_remove_and_compact(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    add(model, "pictures")
    key = next(entry.key for entry in BankStore("bank").entries("leaf"))
    assert run(["prompts", "bank", "remove", "bank", "--name", "red wall"]) == 0
    assert "2 removed; bank holds 3 pictures of 2 names" in capsys.readouterr().out
    assert run(["prompts", "bank", "remove", "bank", "--key", key[:12]]) == 0
    assert "1 removed; bank holds 2 pictures of 2 names" in capsys.readouterr().out
    size = sum(path.stat().st_size for path in Path("bank").rglob("*.safetensors"))
    assert run(["prompts", "bank", "compact", "bank"]) == 0
    assert sum(path.stat().st_size for path in Path("bank").rglob("*.safetensors")) < size
    assert [entry.source for entry in BankStore("bank").entries()] == ["pictures/blue/0.png", "pictures/leaf/1.png"]
    assert "did you mean 'leaf'" in refused(capsys, "remove", "bank", "--name", "leaves")


def test_merge_takes_folders_and_files_of_one_encoder(
    model: str, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    add(model, "pictures")
    add(model, "--ref", "mug=pictures/leaf/1.png", "--ref", "blue=pictures/blue/0.png", bank="second")
    add(other, "pictures", bank="strange")
    assert run(["prompts", "bank", "export", "second", "kept/second.safetensors"]) == 0
    assert len(Bank.load("kept/second.safetensors")) == 2
    assert run(["prompts", "bank", "merge", "all", "bank", "second"]) == 0
    assert "bank: 5 added\nsecond: 1 added\nall holds 6 pictures of 4 names" in capsys.readouterr().out
    assert run(["prompts", "bank", "merge", "all", "kept/second.safetensors"]) == 0
    assert "all holds 8 pictures of 4 names" in capsys.readouterr().out
    assert "several encoders cannot be merged" in refused(capsys, "merge", "new", "bank", "strange")
    assert not Path("new").exists()
    assert "make it again" in refused(capsys, "add", "bank", "pictures", "--model", other)


def test_verify_names_the_damage_and_merge_saves_the_rest(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    add(model, "pictures")
    add(model, "--ref", "mug=pictures/leaf/1.png")
    capsys.readouterr()
    assert run(["prompts", "bank", "verify", "bank"]) == 0
    assert "bank is sound: 6 pictures of 4 names" in capsys.readouterr().out
    hurt = max(Path("bank/segments").glob("*.safetensors"), key=lambda path: path.stat().st_size)
    data = bytearray(hurt.read_bytes())
    length = int.from_bytes(data[:8], "little")
    data[8 + length + json.loads(data[8 : 8 + length])["dense"]["data_offsets"][0] + 1] ^= 4
    hurt.write_bytes(data)
    assert run(["prompts", "bank", "verify", "bank"]) == 1
    error = capsys.readouterr().err
    assert f"{hurt.stem}: 1 of 5 entries are damaged, of blue" in error
    assert "5 of the 6 pictures that can be read are sound; save them with: dpseg prompts bank merge NEW bank" in error
    assert run(["prompts", "bank", "merge", "new", "bank"]) == 1
    assert "bank: 1 left out, they are damaged" in capsys.readouterr().err
    assert run(["prompts", "bank", "verify", "new"]) == 0
    assert set(BankStore("new").names) == {"red wall", "leaf", "mug"}
    hurt.write_bytes(data[:-100])
    assert "dpseg prompts bank verify" in refused(capsys, "list", "bank")


def test_search_shows_cosines_and_weights(model: str, other: str, capsys: pytest.CaptureFixture[str]) -> None:
    add(model, "pictures", "--ref", "red walls=pictures/red_wall/0.png")
    capsys.readouterr()
    assert run(["prompts", "bank", "search", "bank", "red wall", "--top", "3", "--model", model]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "pictures", "cosine", "weight"]
    query, *stored = words_of(model, "red wall", "red walls", "blue", "leaf")
    cosines = [1.0, *sorted((float(query @ text) for text in stored), reverse=True)]
    assert [float(line.split()[-2]) for line in lines] == pytest.approx(cosines[:3], abs=1e-3)
    near = [cosine for cosine in cosines[:3] if cosine >= 0.8]
    shares = (torch.tensor(near) / 0.05).softmax(0).tolist()
    assert len(near) == 2
    assert [line.split()[-1] for line in lines] == [*(f"{share:.1%}" for share in shares), "-"]
    assert run(["prompts", "bank", "search", "bank", "xyzzy", "--model", model]) == 0
    assert "no name is near enough; 'xyzzy' gets no pictures" in capsys.readouterr().out
    assert "make it again" in refused(capsys, "search", "bank", "cat", "--model", other)


def scores(out: str) -> np.ndarray:
    return np.asarray(np.load(f"{out}/photo_scores.npz")["logits"])


def test_predict_uses_a_bank_of_ones_own(model: str, other: str, capsys: pytest.CaptureFixture[str]) -> None:
    add(model, "pictures")
    noisy_picture(RED, 9, side=64).save("photo.png")
    common = ["predict", "photo.png", "--text", "red wall", "--text", "blue", "--text", "xyzzy", "-f", "npz,json"]
    common += ["--no-refine", "-m"]
    assert run([*common, model, "-o", "plain"]) == 0
    assert run([*common, model, "-o", "folder", "--bank", "bank"]) == 0
    assert run([*common, model, "-o", "only", "--bank", "bank", "--no-bank"]) == 0
    assert not np.array_equal(scores("plain"), scores("folder"))
    assert np.array_equal(scores("folder"), scores("only"))  # the model has no bank
    shutil.copytree(model, "with-bank")
    assert run(["prompts", "bank", "export", "bank", "with-bank/bank.safetensors"]) == 0
    assert run([*common, "with-bank", "-o", "shipped"]) == 0
    np.testing.assert_allclose(scores("shipped"), scores("folder"), atol=2e-2)
    assert run([*common, "with-bank", "-o", "off", "--no-bank"]) == 0
    assert np.array_equal(scores("off"), scores("plain"))
    assert run([*common, model, "-o", "file", "--bank", "with-bank/bank.safetensors"]) == 0
    assert np.array_equal(scores("file"), scores("shipped"))
    capsys.readouterr()
    assert run([*common, other, "-o", "x", "--bank", "bank"]) == 2
    assert "the bank was made with the encoder" in capsys.readouterr().err
    assert run([*common, model, "-o", "x", "--bank", "nowhere"]) == 2


def test_a_segmenter_asks_its_store_before_its_bank(model: str) -> None:
    add(model, "--ref", "red wall=pictures/blue/0.png")
    segmenter = Segmenter.from_pretrained(model, store="bank")
    own = features_of(model, Reference("pictures/blue/0.png")).dense
    shipped = segmenter.model.encoder.visual_features(torch.rand(2, 3, 32, 32))
    text = words_of(model, "red wall", "leaf")
    segmenter.bank = Bank(
        ("red wall", "leaf"), text, shipped.dense, shipped.stages, segmenter.model.encoder.fingerprint
    )
    prompts = segmenter.prompts(["red wall", "leaf", "xyzzy"])
    assert prompts.sources == (("text", "bank"), ("text", "bank"), ("text",))
    visual = prompts.embeddings.visual[:, 0]
    torch.testing.assert_close(visual[0], F.normalize(own[0], dim=-1), atol=2e-3, rtol=0)
    torch.testing.assert_close(visual[1], F.normalize(shipped.dense[1], dim=-1))
    assert segmenter.prompts(["red wall"], bank=False).sources == (("text",),)
    with pytest.raises(WeightsError, match="make it again"):
        Segmenter(segmenter.model, store=Bank(("a",), text[:1], own, shipped.stages, "other"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["add", "bank"], "no pictures given"),
        (["add", "bank", "nowhere"], "'nowhere' holds no pictures"),
        (["add", "bank", "--ref", "cat"], "is not NAME=PICTURE"),
        (["add", "bank", "pictures", "--per-class", "0"], "--per-class 0 is out of range"),
        (["add", "pictures", "pictures"], "pictures: holds other files, such as blue"),
        (["add", "bank", "--data", "nowhere"], "'nowhere'"),
        (["list", "pictures"], "pictures: is no bank of pictures"),
        (["remove", "pictures", "--name", "cat"], "is no bank of pictures"),
        (["merge", "new", "nowhere"], "nowhere: is no bank of pictures"),
        (["verify", "nowhere"], "is no bank of pictures"),
        (["search", "pictures", "cat"], "is no bank of pictures"),
        (["search", "pictures", " , "], "has no name"),
        (["search", "pictures", "cat", "--top", "0"], "--top 0 is out of range"),
        (["export", "nowhere", "file"], "is no bank of pictures"),
    ],
)
def test_mistakes_are_one_line(
    model: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with_model = ["--model", model] if arguments[0] == "add" else []
    assert message in refused(capsys, *arguments, *with_model)
    assert not Path("bank").exists()
