"""`dpseg predict --refs` as a user meets it: folders of pictures, labelled photos, COCO files, and mistakes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from dpseg.cli import run
from dpseg.config import ModelConfig
from dpseg.model.dpseg import DPSeg
from dpseg.prompts.bank_store import BankStore
from dpseg.prompts.prompt_set import PromptSet
from dpseg.prompts.visual import Reference
from dpseg.segmenter import Segmenter
from support.bank_workplace import count_encoded
from support.coco_files import box, image, write
from support.labelled_set import NAMES, write_set

CONFIG = ModelConfig(encoder="tiny", image_size=64, keep_aspect=True, templates=1, logit_scale=10.0, tune_encoder=False)
RED, BLUE, GREEN = (220, 30, 20), (20, 40, 220), (30, 180, 40)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    DPSeg(CONFIG).save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in a folder with a photo, pictures of three names, and a labelled set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPSEG_CACHE", str(tmp_path / "cache"))
    for place, colour in (
        ("red_wall/0.png", RED),
        ("red_wall/1.webp", RED),
        ("blue/0.jpg", BLUE),
        ("zqx_7/a.png", GREEN),
    ):
        Path("pictures", place).parent.mkdir(parents=True, exist_ok=True)
        noisy_picture(colour, len(place)).save(f"pictures/{place}")
    noisy_picture(RED, 9, side=64).save("photo.png")
    write_set(Path("shapes"), photos=7, side=64)


def noisy_picture(colour: tuple[int, int, int], seed: int, side: int = 40) -> Image.Image:
    noise = np.random.default_rng(seed).integers(-20, 20, (side, side, 3))
    return Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))


def predict(model: str, *arguments: str) -> PromptSet:
    """Runs the command and returns the classes that it encoded."""
    common = ["predict", "photo.png", "-m", model, "-o", "out", "-f", "png", "--no-bank", "--no-refine"]
    assert run([*common, "--save-prompts", "kept.safetensors", *arguments]) == 0
    return PromptSet.load("kept.safetensors")


def refused(capsys: pytest.CaptureFixture[str], model: str, *arguments: str) -> str:
    """Runs a command that fails and returns the one line that it prints."""
    capsys.readouterr()
    assert run(["predict", "photo.png", "-m", model, "-o", "out", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if not line.endswith(" s left")]  # of progress
    assert len(lines) == 1
    return lines[0]


def assert_same(
    found: PromptSet, model: str, text: Sequence[str] | None, references: Mapping[str, list[object]]
) -> None:
    """Compares classes with those that the references themselves give."""
    expected = Segmenter.from_pretrained(model).prompts(text, references, bank=False)  # type: ignore[arg-type]
    assert found.names == expected.names
    assert found.sources == expected.sources
    torch.testing.assert_close(found.embeddings.visual, expected.embeddings.visual)
    torch.testing.assert_close(found.embeddings.stages, expected.embeddings.stages)


def regions(photos: Sequence[str], value: int, root: str = "shapes") -> list[object]:
    """The largest region of a class in each of some photos."""
    found: list[object] = []
    for photo in photos:
        components, number = ndimage.label(np.asarray(Image.open(f"{root}/masks/{photo}")) == value)
        sizes = [int((components == one).sum()) for one in range(1, number + 1)]
        found.append(Reference(f"{root}/images/{photo}", mask=components == 1 + int(np.argmax(sizes))))
    return found


def test_a_folder_gives_its_names_and_all_its_pictures(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("pictures/.thumbs").mkdir()
    Path("pictures/.thumbs/0.png").write_bytes(b"no picture")
    Path("pictures/blue/._0.jpg").write_bytes(b"no picture")
    Path("pictures/blue/notes.txt").write_text("no picture")
    found = predict(model, "--refs", "pictures", "--refs-per-class", "1")
    walls = ["pictures/red_wall/0.png", "pictures/red_wall/1.webp"]
    assert_same(
        found, model, None, {"blue": ["pictures/blue/0.jpg"], "red wall": walls, "zqx 7": ["pictures/zqx_7/a.png"]}
    )
    assert "refs" not in capsys.readouterr().err


def test_sets_mix_with_single_pictures_and_with_each_other(model: str) -> None:
    shutil.copytree("pictures/blue", "more/Blue")
    shutil.copytree("pictures/zqx_7", "more/other")
    found = predict(model, "--ref", "BLUE=photo.png:0,0,9,9", "--refs", "pictures", "--refs", "more")
    blue = [Reference("photo.png", box=(0, 0, 9, 9)), *["pictures/blue/0.jpg"] * 2]
    walls, green = ["pictures/red_wall/0.png", "pictures/red_wall/1.webp"], ["pictures/zqx_7/a.png"]
    assert_same(found, model, None, {"BLUE": blue, "red wall": walls, "zqx 7": green, "other": green})


def test_with_words_only_what_is_listed_is_used(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["crimson, Red  Wall", "sky"]
    found = predict(model, "-t", words[0], "-t", words[1], "--ref", "crimson=photo.png", "--refs", "pictures")
    walls = ["photo.png", "pictures/red_wall/0.png", "pictures/red_wall/1.webp"]
    assert_same(found, model, words, {"crimson": walls})
    errors = capsys.readouterr().err.splitlines()
    assert [line for line in errors if "refs" in line] == ["--refs pictures: not listed, so not used: blue, zqx 7"]
    assert "'blue'" in refused(capsys, model, "-t", "sky", "--ref", "blue=photo.png")
    message = refused(capsys, model, "-t", "sky", "--refs", "pictures")
    assert "--refs pictures: none of its classes is listed; it has blue, red wall, zqx 7" in message


def test_the_name_of_a_class_comes_before_the_synonym_of_another(model: str) -> None:
    words = ["sea, blue", "blue"]
    found = predict(model, "-t", words[0], "-t", words[1], "--refs", "pictures")
    assert_same(found, model, words, {"blue": ["pictures/blue/0.jpg"]})


def test_of_labelled_photos_the_objects_that_a_bank_would_keep_are_cut(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = predict(model, "--refs", "shapes", "--refs-per-class", "2")
    assert run(["prompts", "bank", "add", "bank", "--data", "shapes", "--per-class", "2", "-m", model]) == 0
    kept = {name: [Path(entry.source).name for entry in BankStore("bank").entries(name)] for name in NAMES[1:]}
    assert all(len(photos) == 2 for photos in kept.values())
    assert_same(found, model, None, {name: regions(kept[name], NAMES.index(name)) for name in NAMES[1:]})
    assert "--refs" not in capsys.readouterr().err
    assert all("background" not in name for name in found.names)


def test_a_split_and_synonyms_of_a_labelled_set(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("shapes/classes.txt").write_text("background\nred square, tile\nblue disc\ngreen stripe\nunicorn\n")
    Path("shapes/few.txt").write_text("photo3\nphoto5\n")
    words = ["ceramic, Tile", "unicorn", "sky"]
    found = predict(model, *(part for word in words for part in ("-t", word)), "--refs", "shapes", "--split", "few")
    expected = sorted(regions(["photo3.png", "photo5.png"], 1), key=lambda one: -one.mask.sum())  # type: ignore[attr-defined]
    assert_same(found, model, words, {"ceramic": expected})
    errors = [line for line in capsys.readouterr().err.splitlines() if "--refs" in line]
    assert errors == [
        "--refs shapes: not listed, so not used: blue disc, green stripe",
        "--refs shapes: no pictures of: unicorn",
    ]
    predict(model, "--refs", "shapes", "--split", "few")
    assert "--refs shapes: no pictures of: unicorn\n" in capsys.readouterr().err


def test_what_was_compared_is_not_encoded_again(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = count_encoded(monkeypatch)
    arguments = ("--refs", "shapes", "--refs-per-class", "2")
    first = predict(model, *arguments)
    objects = 2 * 3
    assert sum(taken) > 2 * objects
    taken.clear()
    second = predict(model, *arguments)
    assert sum(taken) == objects, "only those that were chosen, as any reference"
    assert torch.equal(first.embeddings.visual, second.embeddings.visual)
    predict(model, *arguments, "--ref-context", "mean")
    assert sum(taken) > 3 * objects, "other crops have other features"


def coco(folder: str) -> None:
    Path(folder).mkdir(parents=True)
    for name, colour in (("a.jpg", RED), ("b.jpg", BLUE)):
        noisy_picture(colour, 3).save(f"{folder}/{name}")
    outlines = [
        {"id": 1, "image_id": 1, "category_id": 3, "segmentation": box(2, 2, 30, 30)},
        {"id": 2, "image_id": 2, "category_id": 4, "segmentation": box(5, 5, 35, 35)},
    ]
    images = [image(number, name, 40, 40) for number, name in ((1, "a.jpg"), (2, "b.jpg"))]
    names = [{"id": 3, "name": "cat"}, {"id": 4, "name": "hot_dog"}]
    write(Path(folder, "_annotations.coco.json"), images, names, outlines)


@pytest.mark.parametrize("given", [("coco/_annotations.coco.json",), ("coco",), ("export", "--split", "train")])
def test_objects_of_a_coco_file_are_cut(model: str, given: tuple[str, ...]) -> None:
    folder = "export/train" if given[0] == "export" else "coco"
    coco(folder)
    found = predict(model, "--refs", *given)
    cat, dog = (np.zeros((40, 40), bool) for _ in range(2))
    cat[2:30, 2:30] = dog[5:35, 5:35] = True
    references = {
        "cat": [Reference(f"{folder}/a.jpg", mask=cat)],
        "hot dog": [Reference(f"{folder}/b.jpg", mask=dog)],
    }
    assert_same(found, model, None, references)


def test_what_cannot_be_read_is_listed_and_the_rest_is_used(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("pictures/red_wall/0.png").write_bytes(b"no picture")
    Path("shapes/images/photo2.png").write_bytes(b"no picture")
    Path("shapes/masks/photo4.png").write_bytes(b"no picture")
    found = predict(model, "--refs", "pictures", "--refs", "shapes", "--refs-per-class", "9")
    errors = capsys.readouterr().err
    assert "3 of the reference pictures or masks could not be read:\n  pictures/red_wall/0.png" in errors
    assert errors.count("photo2.png") == 1
    sound = [f"photo{number}.png" for number in (0, 1, 3, 5, 6)]
    shapes = {name: regions(sound, value) for value, name in enumerate(NAMES) if value}
    pictures = {
        "blue": ["pictures/blue/0.jpg"],
        "red wall": ["pictures/red_wall/1.webp"],
        "zqx 7": ["pictures/zqx_7/a.png"],
    }
    assert_same(found, model, None, {**pictures, **shapes})


def test_a_class_without_a_sound_picture_is_refused(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("pictures/blue/0.jpg").write_bytes(b"no picture")
    message = refused(capsys, model, "--refs", "pictures")
    assert "no picture of 'blue' can be read: pictures/blue/0.jpg: " in message
    found = predict(model, "--refs", "pictures", "--ref", "blue=photo.png")
    assert found.names == ("blue", "red wall", "zqx 7")


def test_photos_without_objects_are_refused(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    for path in Path("shapes/masks").iterdir():
        Image.new("L", (64, 64), 0).save(path)
    assert "no labelled object of red square, blue disc, green stripe" in refused(capsys, model, "--refs", "shapes")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--refs", "nowhere"], "--refs nowhere: no such folder or file"),
        (["--refs", "empty"], "'empty' holds no pictures; lay them out as NAME/PICTURE.jpg"),
        (["--refs", "pictures/blue"], "'pictures/blue' holds no pictures"),
        (["--refs", "shapes", "--split", "trian"], "has no split 'trian'; did you mean 'train'?"),
        (["--refs", "half"], "'half/classes.txt' is missing"),
        (["--refs", "photo.png"], "photo.png: is not JSON"),
        (["--refs", "export"], "'export': no split is named; known: train, valid"),
        (["--refs", "export", "--split", "trian"], "'export': there is no split 'trian'; did you mean 'train'?"),
        (["--refs", "pictures", "--split", "train"], "--split train: no folder of --refs has splits"),
        (["--refs", "export/train/_annotations.coco.json", "--split", "train"], "no folder of --refs has splits"),
        (["--text", "cat", "--split", "train"], "--split train is of no data set"),
        (["--refs", "shapes", "--refs-per-class", "0"], "--refs-per-class 0 is out of range"),
        (["--refs", "shapes", "--ref-context", "grey"], "ref context 'grey' is unknown"),
        (["--refs", "shapes", "--prompts", "kept.safetensors"], "--prompts already holds the classes"),
    ],
)
def test_mistakes_are_one_line(
    model: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    for folder in ("empty", "half/images", "half/masks"):
        Path(folder).mkdir(parents=True)
    for folder in ("export/train", "export/valid"):
        coco(folder)
    assert message in refused(capsys, model, *arguments)
    assert not list(Path("out").rglob("*.png"))


def test_explain_cost_takes_them_too(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "cost", "photo.png", "--refs", "shapes", "--split", "trian", "-m", model, "-o", "cost"]) == 2
    assert "has no split 'trian'; did you mean 'train'?" in capsys.readouterr().err
