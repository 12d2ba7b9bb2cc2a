"""The snippet of README.md and every command that docs/prompts.md shows are run as they stand there, on small files."""

from __future__ import annotations

import shutil
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from dpseg.cli import run
from support.coco_files import box, image, write
from support.commands import DATA, LITE, ROOT, needs_lite, needs_photo_data
from support.labelled_set import write_set
from support.pages import blocks, shell_blocks
from support.pictures import CAT

PROMPTS = shell_blocks((ROOT / "docs" / "prompts.md").read_text(encoding="utf-8"))
SCRIPTS = [block for block in PROMPTS if block[0][0] == "python"]
PAINTING = [block for block in PROMPTS if "generate" in block[0]]
COMMANDS = [block for block in PROMPTS if block not in SCRIPTS + PAINTING]


@needs_lite
def test_the_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (snippet,) = blocks((ROOT / "README.md").read_text(encoding="utf-8"), "python")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)  # the snippet's paths are those of the repo, and what it writes stays here
    monkeypatch.setenv("DPSEG_CACHE", str(tmp_path / "cache"))
    exec(compile(snippet, "README.md", "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out
    assert "(400, 600) (3, 400, 600)" in printed
    assert "pixels of cup" in printed
    for photo, size in (("examples/chelsea.jpg", "451 x 300"), ("examples/coffee.jpg", "600 x 400")):
        assert f"{photo} Segmentation({size}" in printed
    written = {path.name for path in (tmp_path / "out" / "readme").iterdir()}
    results = {f"coffee_{kind}" for kind in ("labels.png", "result.json", "overlay.png", "coco.json")}
    assert written == results | {"classes.safetensors"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the page's commands read, in which the test runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPSEG_CACHE", str(tmp_path / "cache"))
    photo = Image.open(CAT).convert("RGB")
    names = ["mug.jpg", "shelf.jpg", "first.jpg", "truck.jpg", "photo.jpg", "photos/cat.jpg", "labels/photo0.jpg"]
    for name in [*names, "pictures/mug/0.jpg", "pictures/mug/1.jpg", "pictures/coffee_table/0.jpg"]:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        photo.save(name)
    write_set(Path("labelled"), photos=3)
    for name in ("clothing", "coco_things"):
        write_set(Path("data", name), photos=3, splits={"train": range(3), "val": [0]})
    Path("classes.txt").write_text("cat\nwall, background\n")
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 100.0, "bbox": [10, 10, 90, 90]}
    shapes = [annotation | {"segmentation": box(10, 10, 100, 100)}]
    write(Path("labels.json"), [image(1, "photos/cat.jpg", *photo.size)], [{"id": 1, "name": "cat"}], shapes)
    return tmp_path


def passes(*commands: list[str]) -> None:
    """Runs commands of the page."""
    for words in commands:
        assert words[0] == "dpseg"
        assert run(words[1:]) == 0, words


@pytest.mark.parametrize("weights", ["tiny", pytest.param("dpseg-lite", marks=[pytest.mark.slow, needs_lite])])
@pytest.mark.parametrize("commands", COMMANDS, ids=lambda block: " ".join(block[0][1:4]))
def test_commands_run_as_they_stand(
    commands: list[list[str]], weights: str, model: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if weights == "tiny":  # in the place of dpseg-lite, the default
        monkeypatch.setattr("dpseg.pretrained.model_folder", lambda name: Path(model))
    if commands[0][2:4] == ["bank", "add"]:
        shutil.copytree("labelled", "photos", dirs_exist_ok=True)  # there, photos/ is a labelled set
    if commands[0][2] == "show":  # of a set that another block makes
        passes(["dpseg", "predict", "first.jpg", "--text", "cat", "--save-prompts", "coco.safetensors"])
    passes(*commands)


@pytest.mark.slow
@needs_lite
@pytest.mark.skipif(find_spec("diffusers") is None, reason="needs the extra: pip install 'dpseg[generate]'")
@pytest.mark.parametrize("painting", PAINTING, ids=lambda block: " ".join(block[0][1:4]))
def test_painting_runs_but_for_the_generator(painting: list[list[str]], place: Path) -> None:
    from support.tiny_painter import write_painter

    generate, *others = painting
    words = list(generate)
    at = words.index("--generator") + 1
    assert words[at].startswith("stabilityai/")  # the one thing that is not run as it stands: gigabytes
    words[at] = write_painter(place / "painter")
    passes(words, *others)


@pytest.mark.slow
@needs_lite
@needs_photo_data
@pytest.mark.parametrize("scripts", SCRIPTS, ids=lambda block: " ".join(block[0][1:4]))
def test_scripts_run_with_fewer_photos(
    scripts: list[list[str]], place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    shutil.rmtree("data")
    Path("data").symlink_to(DATA)
    shutil.copytree(LITE, "runs/hold/final")
    for _, script, *arguments in scripts:
        benchmark = import_module(Path(script).stem)
        pictures = dict(list(benchmark.unseen(DATA).items())[:2])
        monkeypatch.setattr(benchmark, "unseen", lambda root, few=pictures: few)
        monkeypatch.setattr(benchmark, "by_name", partial(benchmark.select, rows=list(range(0, 600, 20))))
        data, model, count = arguments
        assert int(count) > 1
        benchmark.main(Path(data), model, 1)
        assert capsys.readouterr().out.count("|---") > 10
