"""`dpseg predict --refs` as a user meets it: folders of pictures, labelled photos, COCO files, and mistakes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from dpseg.cli import run
from dpseg.prompts.bank_store import BankStore
from dpseg.prompts.prompt_set import PromptSet
from dpseg.prompts.visual import Reference
from dpseg.segmenter import Segmenter
from support.bank_workplace import count_encoded
from support.coco_files import box, image, write
from support.labelled_set import NAMES, write_set
from support.pictures import BLUE, GREEN, RED, noisy

BLUES, GREENS = ["pictures/blue/0.jpg"], ["pictures/zqx_7/a.png"]
WALLS = ["pictures/red_wall/0.png", "pictures/red_wall/1.webp"]
Predict = Callable[..., tuple[PromptSet, list[str]]]


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in a folder with a photo, pictures of three names, and a labelled set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPSEG_CACHE", str(tmp_path / "cache"))
    for paths, colour in ((WALLS, RED), (BLUES, BLUE), (GREENS, GREEN)):
        for path in paths:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            noisy(colour, len(path)).save(path)
    noisy(RED, 9, side=64).save("photo.png")
    write_set(Path("shapes"), photos=7, side=64)


@pytest.fixture
def predict(model: str, capsys: pytest.CaptureFixture[str]) -> Predict:
    """`predict("--refs", ...)` returns the classes that were encoded, and the lines on stderr besides progress."""

    def predict(*arguments: str) -> tuple[PromptSet, list[str]]:
        capsys.readouterr()
        common = ["predict", "photo.png", "-m", model, "-o", "out", "-f", "png", "--no-bank", "--no-refine"]
        assert run([*common, "--save-prompts", "kept.safetensors", *arguments]) == 0
        said = [line for line in capsys.readouterr().err.splitlines() if not line.endswith(" s left")]
        return PromptSet.load("kept.safetensors"), said

    return predict


@pytest.fixture
def refusal(model: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refusal("--refs", ...)` returns the one line that a command that fails prints, besides progress."""

    def refusal(*arguments: str) -> str:
        capsys.readouterr()
        assert run(["predict", "photo.png", "-m", model, "-o", "out", *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = (line for line in captured.err.splitlines() if not line.endswith(" s left"))
        return line

    return refusal


def assert_same(
    found: PromptSet, model: str, text: Sequence[str] | None, references: Mapping[str, Sequence[object]]
) -> None:
    """Compares classes with those that the references themselves give."""
    expected = Segmenter.from_pretrained(model).prompts(text, references, bank=False)  # type: ignore[arg-type]
    assert found.names == expected.names
    assert found.sources == expected.sources
    torch.testing.assert_close(found.embeddings.visual, expected.embeddings.visual)
    torch.testing.assert_close(found.embeddings.stages, expected.embeddings.stages)


def regions(photos: Sequence[str], value: int) -> list[Reference]:
    """The largest region of a class in each of some photos."""
    found = []
    for photo in photos:
        components, number = ndimage.label(np.asarray(Image.open(f"shapes/masks/{photo}")) == value)
        sizes = [int((components == one).sum()) for one in range(1, number + 1)]
        found.append(Reference(f"shapes/images/{photo}", mask=components == 1 + int(np.argmax(sizes))))
    return found


def test_a_folder_gives_its_names_and_all_its_pictures(model: str, predict: Predict) -> None:
    Path("pictures/.thumbs").mkdir()
    for hidden in (".thumbs/0.png", "blue/._0.jpg", "blue/notes.txt"):
        Path("pictures", hidden).write_bytes(b"no picture")
    found, said = predict("--refs", "pictures", "--refs-per-class", "1")
    assert_same(found, model, None, {"blue": BLUES, "red wall": WALLS, "zqx 7": GREENS})
    assert said == []


def test_sets_mix_with_single_pictures_and_with_each_other(model: str, predict: Predict) -> None:
    shutil.copytree("pictures/blue", "more/Blue")
    shutil.copytree("pictures/zqx_7", "more/other")
    found, _ = predict("--ref", "BLUE=photo.png:0,0,9,9", "--refs", "pictures", "--refs", "more")
    blue = [Reference("photo.png", box=(0, 0, 9, 9)), *BLUES * 2]
    assert_same(found, model, None, {"BLUE": blue, "red wall": WALLS, "zqx 7": GREENS, "other": GREENS})


def test_with_words_only_what_is_listed_is_used(model: str, predict: Predict, refusal: Callable[..., str]) -> None:
    words = ["crimson, Red  Wall", "sky"]
    found, said = predict("-t", words[0], "-t", words[1], "--ref", "crimson=photo.png", "--refs", "pictures")
    assert_same(found, model, words, {"crimson": ["photo.png", *WALLS]})
    assert said == ["--refs pictures: not listed, so not used: blue, zqx 7"]
    assert "'blue'" in refusal("-t", "sky", "--ref", "blue=photo.png")
    message = refusal("-t", "sky", "--refs", "pictures")
    assert "--refs pictures: none of its classes is listed; it has blue, red wall, zqx 7" in message
    words = ["sea, blue", "blue"]  # the name of a class comes before the synonym of another
    found, _ = predict("-t", words[0], "-t", words[1], "--refs", "pictures")
    assert_same(found, model, words, {"blue": BLUES})


def test_of_labelled_photos_the_objects_that_a_bank_would_keep_are_cut(model: str, predict: Predict) -> None:
    found, said = predict("--refs", "shapes", "--refs-per-class", "2")
    assert run(["prompts", "bank", "add", "bank", "--data", "shapes", "--per-class", "2", "-m", model]) == 0
    kept = {name: [Path(entry.source).name for entry in BankStore("bank").entries(name)] for name in NAMES[1:]}
    assert all(len(photos) == 2 for photos in kept.values())
    assert_same(found, model, None, {name: regions(kept[name], NAMES.index(name)) for name in NAMES[1:]})
    assert said == []
    assert all("background" not in name for name in found.names)


def test_a_split_and_synonyms_of_a_labelled_set(model: str, predict: Predict) -> None:
    Path("shapes/classes.txt").write_text("background\nred square, tile\nblue disc\ngreen stripe\nunicorn\n")
    Path("shapes/few.txt").write_text("photo3\nphoto5\n")
    words = ["ceramic, Tile", "unicorn", "sky"]
    found, said = predict(*(part for word in words for part in ("-t", word)), "--refs", "shapes", "--split", "few")
    expected = sorted(regions(["photo3.png", "photo5.png"], 1), key=lambda one: -np.sum(one.mask))
    assert_same(found, model, words, {"ceramic": expected})
    bare = "--refs shapes: no pictures of: unicorn"
    assert said == ["--refs shapes: not listed, so not used: blue disc, green stripe", bare]
    assert bare in predict("--refs", "shapes", "--split", "few")[1]


def test_what_was_compared_is_not_encoded_again(predict: Predict, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = count_encoded(monkeypatch)
    arguments = ("--refs", "shapes", "--refs-per-class", "2")
    first, _ = predict(*arguments)
    objects = 2 * 3
    assert sum(taken) > 2 * objects
    taken.clear()
    second, _ = predict(*arguments)
    assert sum(taken) == objects, "only those that were chosen, as any reference"
    assert torch.equal(first.embeddings.visual, second.embeddings.visual)
    predict(*arguments, "--ref-context", "mean")
    assert sum(taken) > 3 * objects, "other crops have other features"


def coco(folder: str) -> None:
    images, outlines = [], []
    for number, (colour, start, end) in enumerate(((RED, 2, 30), (BLUE, 5, 35)), start=1):
        Path(folder).mkdir(parents=True, exist_ok=True)
        noisy(colour, 3).save(f"{folder}/{number}.jpg")
        images.append(image(number, f"{number}.jpg", 40, 40))
        outline = box(start, start, end, end)
        outlines.append({"id": number, "image_id": number, "category_id": 2 + number, "segmentation": outline})
    names = [{"id": 3, "name": "cat"}, {"id": 4, "name": "hot_dog"}]
    write(Path(folder, "_annotations.coco.json"), images, names, outlines)


@pytest.mark.parametrize("given", [("coco/_annotations.coco.json",), ("coco",), ("export", "--split", "train")])
def test_objects_of_a_coco_file_are_cut(model: str, predict: Predict, given: tuple[str, ...]) -> None:
    folder = "export/train" if given[0] == "export" else "coco"
    coco(folder)
    cat, dog = (np.zeros((40, 40), bool) for _ in range(2))
    cat[2:30, 2:30] = dog[5:35, 5:35] = True
    references = {"cat": [Reference(f"{folder}/1.jpg", mask=cat)], "hot dog": [Reference(f"{folder}/2.jpg", mask=dog)]}
    assert_same(predict("--refs", *given)[0], model, None, references)


def test_what_cannot_be_read_is_listed_and_the_rest_is_used(model: str, predict: Predict) -> None:
    for damaged in (WALLS[0], "shapes/images/photo2.png", "shapes/masks/photo4.png"):
        Path(damaged).write_bytes(b"no picture")
    found, said = predict("--refs", "pictures", "--refs", "shapes", "--refs-per-class", "9")
    errors = "\n".join(said)
    assert f"3 of the reference pictures or masks could not be read:\n  {WALLS[0]}" in errors
    assert errors.count("photo2.png") == 1
    sound = [f"photo{number}.png" for number in (0, 1, 3, 5, 6)]
    shapes = {name: regions(sound, value) for value, name in enumerate(NAMES) if value}
    assert_same(found, model, None, {"blue": BLUES, "red wall": WALLS[1:], "zqx 7": GREENS, **shapes})


def test_a_class_without_a_sound_picture_or_object_is_refused(predict: Predict, refusal: Callable[..., str]) -> None:
    Path(BLUES[0]).write_bytes(b"no picture")
    assert "no picture of 'blue' can be read: pictures/blue/0.jpg: " in refusal("--refs", "pictures")
    assert predict("--refs", "pictures", "--ref", "blue=photo.png")[0].names == ("blue", "red wall", "zqx 7")
    for path in Path("shapes/masks").iterdir():
        Image.new("L", (64, 64), 0).save(path)
    assert "no labelled object of red square, blue disc, green stripe" in refusal("--refs", "shapes")


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
def test_mistakes_are_one_line(refusal: Callable[..., str], arguments: list[str], message: str) -> None:
    for folder in ("empty", "half/images", "half/masks"):
        Path(folder).mkdir(parents=True)
    for folder in ("export/train", "export/valid"):
        coco(folder)
    assert message in refusal(*arguments)
    assert not list(Path("out").rglob("*.png"))


def test_explain_cost_takes_them_too(model: str, refused: Callable[..., str]) -> None:
    arguments = ["--refs", "shapes", "--split", "trian", "-m", model, "-o", "cost"]
    assert "has no split 'trian'; did you mean 'train'?" in refused("explain", "cost", "photo.png", *arguments)
