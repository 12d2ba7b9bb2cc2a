"""`dpseg batch` in one process: what it writes, resumes after a kill, lists and refuses."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.dataset
import pytest
from PIL import Image
from pycocotools import mask as coco

from dpseg.batch import manifest
from dpseg.cli import run
from dpseg.prompts.prompt_set import PromptSet
from dpseg.segmenter import Segmenter
from support.batch_photos import broken_of, rows_of, run_until_killed, write_model, write_photos
from support.forked import killed


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Path of a model, and of its prompts."""
    return write_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPSEG_CACHE", "off")


def command(made: tuple[str, str], *arguments: str) -> list[str]:
    return ["batch", *arguments, "--model", made[0], "--prompts", made[1]]


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """Runs a command that is refused, and returns its one line."""
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def check(made: tuple[str, str], row: dict[str, Any], photo: Path | Image.Image, **options: Any) -> None:
    """Compares a row's masks with the labels of a segmenter."""
    prompts = PromptSet.load(made[1])
    result = Segmenter.from_pretrained(made[0])(photo, prompts=prompts, **options)
    height, width = result.labels.shape
    assert (row["width"], row["height"], row["error"]) == (width, height, None)
    labels = np.full((height, width), -1)
    for found in row["classes"]:
        assert prompts.names[found["index"]] == found["name"]
        mask = coco.decode({"size": [height, width], "counts": found["mask"].encode()}).astype(bool)
        labels[mask] = found["index"]
        assert found["area"] == pytest.approx(mask.mean())
        assert found["confidence"] == pytest.approx(result.confidences[found["name"]], abs=1e-6)
    assert np.array_equal(labels, result.labels)


def test_masks_are_those_of_the_segmenter(made: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    photos = write_photos(Path("photos"), 5)
    assert run(command(made, "photos", "--out", "out", "--block", "2")) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.splitlines()[0] == "5 pictures in 3 blocks; 0 finished before"
    rows = rows_of(Path("out"))
    assert [row["key"] for row in rows] == [photo.name for photo in photos]
    for row, photo in zip(rows, photos, strict=True):
        check(made, row, photo)
    assert len({found["index"] for row in rows for found in row["classes"]}) == 2
    assert pyarrow.dataset.dataset("out/parts").count_rows() == 5
    assert broken_of(Path("out")) == {}
    assert not Path("out/labels").exists()


def test_options_and_label_maps(made: tuple[str, str]) -> None:
    write_photos(Path("photos/deep"), 2)
    options = ("--background", "0.5", "--refine", "--size", "96", "--batch-size", "2", "--format", "png")
    assert run(command(made, "photos", "--out", "out", *options)) == 0
    prompts = PromptSet.load(made[1])
    for row in rows_of(Path("out")):
        assert all(found["mask"] is None for found in row["classes"])
        photo = Path("photos") / row["key"]
        result = Segmenter.from_pretrained(made[0])(photo, prompts=prompts, background=0.5, refine=True, size=96)
        labels = np.asarray(Image.open(f"out/labels/{row['key']}.png"))
        assert np.array_equal(labels, np.where(result.labels < 0, 255, result.labels))


def test_shards_lists_and_addresses_give_the_same(made: tuple[str, str]) -> None:
    photos = write_photos(Path("photos"), 3)
    with tarfile.open("shard.tar", "w") as tar:
        for photo in photos:
            tar.add(photo, photo.name)
    Path("some.txt").write_text("".join(f"photos/{photo.name}\n" for photo in photos))
    files = fsspec.filesystem("memory")
    for photo in photos:
        files.pipe_file(f"/batch/photos/{photo.name}", photo.read_bytes())
    found = []
    for number, source in enumerate(("photos/*.png", "shard.tar", "some.txt", "memory://batch/photos")):
        assert run(command(made, source, "--out", f"out{number}")) == 0
        rows = rows_of(Path(f"out{number}"))
        found.append([(Path(row["key"]).name, row["classes"]) for row in rows])
    assert len(found[0]) == 3
    assert all(rows == found[0] for rows in found)
    for _ in range(2):  # to an address, and again
        assert run(command(made, "photos", "--out", "memory://batch/out", "--format", "png,parquet")) == 0
        assert files.ls("/batch/out/labels", detail=False) == [f"/batch/out/labels/{p.name}.png" for p in photos]
        files.get("/batch/out", "fetched", recursive=True)
    assert [(row["key"], row["classes"]) for row in rows_of(Path("fetched"))] == found[0]


def test_broken_pictures_are_listed_and_can_be_retried(
    made: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_photos(Path("photos"), 7)
    whole = photos[1].read_bytes()
    photos[0].write_bytes(b"")  # the first of a block, the middle, and the last
    photos[1].write_bytes(whole[:-30])
    photos[6].write_text("no picture")
    arguments = command(made, "photos", "--out", "out", "--block", "4", "--batch-size", "3")
    for _ in range(2):
        assert run(arguments) == 1
        errors = capsys.readouterr().err.splitlines()
        assert "3 of 7 pictures could not be read" in errors[0]
        assert len(errors) == 4
        assert list(broken_of(Path("out"))) == ["000.png", "001.png", "006.png"]
    assert "the file is empty" in broken_of(Path("out"))["000.png"]
    assert "001.png: truncated or damaged" in broken_of(Path("out"))["001.png"]
    rows = {row["key"]: row for row in rows_of(Path("out"))}
    assert len(rows) == 7
    assert rows["001.png"]["error"] == broken_of(Path("out"))["001.png"]
    assert rows["001.png"]["classes"] is None
    check(made, rows["002.png"], photos[2])
    check(made, rows["005.png"], photos[5])
    for photo in (photos[0], photos[1]):
        photo.write_bytes(whole)
    kept = Path("out/parts/part-00000001.parquet").read_bytes()
    photos[6].write_text("no picture either")
    assert run([*arguments, "--retry-broken"]) == 1
    assert list(broken_of(Path("out"))) == ["006.png"]
    assert Path("out/parts/part-00000001.parquet").read_bytes() == kept


def killed_in_the_middle(arguments: list[str]) -> None:
    """Runs the command in a fork that kills itself after three parts, a block's label maps being written."""
    assert killed(run_until_killed, arguments, 3)


def killed_at_any_time(arguments: list[str]) -> None:
    """Runs the command in a process that is killed when there are three parts, whatever it does at that time."""
    process = subprocess.Popen([sys.executable, "-m", "dpseg", *arguments], stdout=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(part_times()) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.communicate()


def part_times() -> dict[str, int]:
    """When each part was written, by name."""
    return {path.name: path.stat().st_mtime_ns for path in Path("out").glob("parts/part-*.parquet")}


@pytest.mark.parametrize(
    ("kill", "count", "size"),
    [(killed_in_the_middle, 12, (48, 32)), pytest.param(killed_at_any_time, 120, (320, 240), marks=pytest.mark.slow)],
)
def test_a_kill_loses_nothing_and_repeats_nothing(
    made: tuple[str, str],
    capsys: pytest.CaptureFixture[str],
    kill: Callable[[list[str]], None],
    count: int,
    size: tuple[int, int],
) -> None:
    write_photos(Path("photos"), count, size)
    arguments = command(made, "photos", "--out", "out", "--block", "2", "--format", "parquet,png")
    kill(arguments)
    before = part_times()
    assert 3 <= len(before) < count / 2
    assert len(rows_of(Path("out"))) == 2 * len(before)  # each is whole
    assert run(arguments) == 0
    after = part_times()
    assert len(after) == count / 2
    assert {name: after[name] for name in before} == before
    assert Counter(row["key"] for row in rows_of(Path("out"))) == Counter(
        path.name for path in Path("photos").iterdir()
    )
    assert len(list(Path("out").glob("labels/*.png"))) == count
    capsys.readouterr()
    assert run(arguments) == 0
    assert "nothing was left to do" in capsys.readouterr().out
    assert part_times() == after


def test_another_run_in_the_same_folder_is_refused(
    made: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_photos(Path("photos"), 3)
    assert run(command(made, "photos", "--out", "out")) == 0
    capsys.readouterr()
    for changed, what in (("--background 0.3", "background"), ("--block 2", "block"), ("--format png", "formats")):
        line = refused(capsys, command(made, "photos", "--out", "out", *changed.split()))
        assert f"holds another run: {what} was" in line
    PromptSet.load(made[1]).select(["blue"]).save("blue.safetensors")
    other = ["batch", "photos", "--out", "out", "--model", made[0], "--prompts", "blue.safetensors"]
    assert 'names was ["red", "blue"], now it is ["blue"]' in refused(capsys, other)
    photos[0].rename("photos/renamed.png")
    assert "holds another run: list was" in refused(capsys, command(made, "photos", "--out", "out"))
    Path("photos/renamed.png").rename(photos[0])
    os.rename("photos", "elsewhere")  # only the keys count
    assert run(command(made, "elsewhere", "--out", "out")) == 0
    Path("out/manifest.json").write_text("{")
    capsys.readouterr()
    assert "is damaged" in refused(capsys, command(made, "elsewhere", "--out", "out"))
    Path("out/manifest.json").unlink()
    assert "parts without manifest.json" in refused(capsys, command(made, "elsewhere", "--out", "out"))


def test_a_damaged_part_is_named(made: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(Path("photos"), 3)
    arguments = command(made, "photos", "--out", "out", "--block", "2")
    assert run(arguments) == 0
    part = Path("out") / manifest.part_name(1)
    part.write_bytes(part.read_bytes()[:50])
    assert run(arguments) == 2
    assert "part-00000001.parquet: is damaged; delete it" in capsys.readouterr().err
    part.unlink()
    assert run(arguments) == 0
    assert len(rows_of(Path("out"))) == 3


def test_mistakes_are_refused_in_one_line(
    made: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photos(Path("photos"), 1)
    for changed, text in (
        ("--engine rya", "did you mean 'ray'?"),
        ("--format jpg", "format 'jpg' is unknown"),
        ("--format ,", "no format is given"),
        ("--block 0", "block 0 is out of range"),
        ("--workers 2", "--workers 2 is for Ray"),
        ("--refine sequence", "use dpseg predict"),
        ("--background 3", "is no threshold"),
    ):
        assert text in refused(capsys, command(made, "photos", "--out", "out", *changed.split()))
    assert not Path("out").exists()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'dpseg[batch]'" in refused(capsys, command(made, "photos", "--out", "out"))
