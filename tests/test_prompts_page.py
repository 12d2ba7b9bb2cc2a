"""Every command that docs/prompts.md shows is run as it stands there, on small files of the names that it uses."""

from __future__ import annotations

import re
import shlex
import shutil
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

from dpseg.cli import run
from dpseg.pretrained import model_folder
from support.coco_files import box, image, write
from support.labelled_set import write_set

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"


def blocks() -> list[list[list[str]]]:
    """Returns the page's shell blocks as commands, split into words; continued lines are joined."""
    page = (ROOT / "docs" / "prompts.md").read_text(encoding="utf-8")
    found = re.findall(r"^```sh\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    lines = [block.replace("\\\n", " ").splitlines() for block in found]
    return [[shlex.split(line, comments=True) for line in block if line.strip()] for block in lines]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Gives each test its blocks: those of `dpseg`, those of Stable Diffusion, those of scripts."""
    kinds: dict[str, list[list[list[str]]]] = {"commands": [], "painting": [], "scripts": []}
    for block in blocks():
        kind = "scripts" if block[0][0] == "python" else "painting" if "generate" in block[0] else "commands"
        kinds[kind].append(block)
    for kind in kinds:
        if kind in metafunc.fixturenames:
            metafunc.parametrize(kind, kinds[kind], ids=[" ".join(block[0][1:4]) for block in kinds[kind]])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the page's commands read."""
    place = tmp_path_factory.mktemp("page")
    photo = Image.open(ROOT / "examples" / "chelsea.jpg").convert("RGB")
    names = ["mug.jpg", "shelf.jpg", "first.jpg", "truck.jpg", "photo.jpg", "photos/cat.jpg", "labels/photo0.jpg"]
    for name in [*names, "pictures/mug/0.jpg", "pictures/mug/1.jpg", "pictures/coffee_table/0.jpg"]:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        photo.save(place / name)
    write_set(place / "labelled", photos=3)
    for name in ("clothing", "coco_things"):
        write_set(place / "data" / name, photos=3)
        (place / "data" / name / "val.txt").write_text("photo0")
    (place / "classes.txt").write_text("cat\nwall, background\n")
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 100.0, "bbox": [10, 10, 90, 90]}
    shapes = [annotation | {"segmentation": box(10, 10, 100, 100)}]
    write(place / "labels.json", [image(1, "photos/cat.jpg", *photo.size)], [{"id": 1, "name": "cat"}], shapes)
    return place


@pytest.fixture
def workplace(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in which the test runs."""
    shutil.copytree(files, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("DPSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "here"


def passes(words: list[str]) -> None:
    """Runs a command of the page."""
    assert words[0] == "dpseg"
    assert run(words[1:]) == 0, shlex.join(words)


def test_commands(commands: list[list[str]], workplace: Path) -> None:
    if commands[0][2:4] == ["bank", "add"]:
        shutil.copytree("labelled", "photos", dirs_exist_ok=True)  # there, photos/ is a labelled set
    if commands[0][2] == "show":  # of a set that another block makes
        passes(["dpseg", "predict", "first.jpg", "--text", "cat", "--save-prompts", "coco.safetensors"])
    for words in commands:
        passes(words)


def test_painting(painting: list[list[str]], workplace: Path) -> None:
    pytest.importorskip("diffusers", reason="needs the extra: pip install 'dpseg[generate]'")
    from support.tiny_painter import write_painter

    generate, *others = painting
    at = generate.index("--generator") + 1
    assert generate[at].startswith("stabilityai/")  # the one thing that is not run as it stands: gigabytes
    generate[at] = write_painter(workplace / "painter")
    for words in [generate, *others]:
        passes(words)


def test_scripts(scripts: list[list[str]], workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    if not (SHARED / "coco_things").is_dir():
        pytest.skip("needs the photos with masks of ../shared/data")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    shutil.rmtree("data")
    Path("data").symlink_to(SHARED)
    shutil.copytree(model_folder("dpseg-lite"), "runs/hold/final")
    for _, script, *arguments in scripts:
        benchmark = import_module(Path(script).stem)
        pictures = dict(list(benchmark.unseen(SHARED).items())[:2])
        monkeypatch.setattr(benchmark, "unseen", lambda root, few=pictures: few)
        some = partial(benchmark.select, rows=list(range(0, 600, 20)))
        monkeypatch.setattr(benchmark, "by_name", some)
        place, model, count = arguments
        assert int(count) > 1
        benchmark.main(Path(place), model, 1)
        assert capsys.readouterr().out.count("|---") > 10
