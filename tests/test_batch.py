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

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from dpseg.cli import run
from dpseg.prompts.prompt_set import PromptSet
from dpseg.result import Segmentation
from dpseg.segmenter import Segmenter
from support.batch_photos import broken_of, rows_of, run_until_killed, write_photos
from support.forked import killed

pytest_plugins = "support.batch_photos"
pytestmark = pytest.mark.usefixtures("workplace")

OUT, MANY = Path("out"), Path("many")


def check(row: dict[str, Any], result: Segmentation) -> None:
    """Compares a row and its masks with what a segmenter found."""
    height, width = result.labels.shape
    assert (row["width"], row["height"], row["error"]) == (width, height, None)
    labels = np.full((height, width), -1)
    for found in row["classes"]:
        assert result.names[found["index"]] == found["name"]
        mask = coco.decode({"size": [height, width], "counts": found["mask"].encode()}).astype(bool)
        labels[mask] = found["index"]
        assert found["area"] == pytest.approx(mask.mean())
        assert found["confidence"] == pytest.approx(result.confidences[found["name"]], abs=1e-6)
    assert np.array_equal(labels, result.labels)


@pytest.mark.numeric
def test_masks_are_those_of_the_segmenter(
    options: list[str], segmenter: Segmenter, colours: PromptSet, capsys: pytest.CaptureFixture[str]
) -> None:
    from pyarrow import dataset

    photos = write_photos(MANY, 5)
    assert run(["batch", "many", "--out", "out", *options, "--block", "2"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.splitlines()[0] == "5 pictures in 3 blocks; 0 finished before"
    rows = rows_of(OUT)
    assert [row["key"] for row in rows] == [photo.name for photo in photos]
    for row, photo in zip(rows, photos, strict=True):
        check(row, segmenter(photo, prompts=colours))
    assert len({found["index"] for row in rows for found in row["classes"]}) == 2
    assert dataset.dataset("out/parts").count_rows() == 5
    assert broken_of(OUT) == {}
    assert not Path("out/labels").exists()


def test_options_and_label_maps(options: list[str], segmenter: Segmenter, colours: PromptSet) -> None:
    write_photos(MANY / "deep", 2)
    changed = ("--background", "0.5", "--refine", "--size", "96", "--batch-size", "2", "--format", "png")
    assert run(["batch", "many", "--out", "out", *options, *changed]) == 0
    rows = rows_of(OUT)
    assert [row["key"] for row in rows] == ["deep/000.png", "deep/001.png"]
    for row in rows:
        assert all(found["mask"] is None for found in row["classes"])
        result = segmenter(MANY / row["key"], prompts=colours, background=0.5, refine=True, size=96)
        labels = np.asarray(Image.open(f"out/labels/{row['key']}.png"))
        assert np.array_equal(labels, np.where(result.labels < 0, 255, result.labels))


def test_shards_lists_and_addresses_give_the_same(options: list[str]) -> None:
    import fsspec

    photos = write_photos(MANY, 3)
    with tarfile.open("shard.tar", "w") as tar:
        for photo in photos:
            tar.add(photo, photo.name)
    Path("some.txt").write_text("".join(f"many/{photo.name}\n" for photo in photos))
    files = fsspec.filesystem("memory")
    for photo in photos:
        files.pipe_file(f"/batch/many/{photo.name}", photo.read_bytes())
    found = []
    for number, source in enumerate(("many/*.png", "shard.tar", "some.txt", "memory://batch/many")):
        assert run(["batch", source, "--out", f"out{number}", *options]) == 0
        rows = rows_of(Path(f"out{number}"))
        found.append([(Path(row["key"]).name, row["classes"]) for row in rows])
    assert len(found[0]) == 3
    assert all(rows == found[0] for rows in found)
    for _ in range(2):  # to an address, and again
        assert run(["batch", "many", "--out", "memory://batch/out", *options, "--format", "png,parquet"]) == 0
        assert files.ls("/batch/out/labels", detail=False) == [f"/batch/out/labels/{p.name}.png" for p in photos]
        files.get("/batch/out", "fetched", recursive=True)
    assert [(row["key"], row["classes"]) for row in rows_of(Path("fetched"))] == found[0]


def test_broken_pictures_are_listed_and_can_be_retried(
    options: list[str], segmenter: Segmenter, colours: PromptSet, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_photos(MANY, 7)
    whole = photos[1].read_bytes()
    photos[0].write_bytes(b"")  # the first of a block, the middle, and the last
    photos[1].write_bytes(whole[:-30])
    photos[6].write_text("no picture")
    arguments = ["batch", "many", "--out", "out", *options, "--block", "4", "--batch-size", "3"]
    for _ in range(2):
        assert run(arguments) == 1
        errors = capsys.readouterr().err.splitlines()
        assert "3 of 7 pictures could not be read" in errors[0]
        assert len(errors) == 4
    broken, rows = broken_of(OUT), {row["key"]: row for row in rows_of(OUT)}
    assert list(broken) == ["000.png", "001.png", "006.png"]
    assert "the file is empty" in broken["000.png"]
    assert "001.png: truncated or damaged" in broken["001.png"]
    assert len(rows) == 7
    assert (rows["001.png"]["error"], rows["001.png"]["classes"]) == (broken["001.png"], None)
    for photo in (photos[2], photos[5]):
        check(rows[photo.name], segmenter(photo, prompts=colours))
    for photo in photos[:2]:
        photo.write_bytes(whole)
    kept = Path("out/parts/part-00000001.parquet").read_bytes()
    photos[6].write_text("no picture either")
    assert run([*arguments, "--retry-broken"]) == 1
    assert list(broken_of(OUT)) == ["006.png"]
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
    options: list[str],
    capsys: pytest.CaptureFixture[str],
    kill: Callable[[list[str]], None],
    count: int,
    size: tuple[int, int],
) -> None:
    write_photos(MANY, count, size)
    arguments = ["batch", "many", "--out", "out", *options, "--block", "2", "--format", "parquet,png"]
    kill(arguments)
    before = part_times()
    assert 3 <= len(before) < count / 2
    assert len(rows_of(OUT)) == 2 * len(before)  # each is whole
    assert run(arguments) == 0
    after = part_times()
    assert len(after) == count / 2
    assert {name: after[name] for name in before} == before
    assert Counter(row["key"] for row in rows_of(OUT)) == Counter(path.name for path in MANY.iterdir())
    assert len(list(OUT.glob("labels/*.png"))) == count
    capsys.readouterr()
    assert run(arguments) == 0
    assert "nothing was left to do" in capsys.readouterr().out
    assert part_times() == after


def test_another_run_in_the_same_folder_is_refused(
    options: list[str], colours: PromptSet, refused: Callable[..., str]
) -> None:
    photos = write_photos(MANY, 3)
    arguments = ["batch", "many", "--out", "out", *options]
    assert run(arguments) == 0
    for changed, what in (("--background 0.3", "background"), ("--block 2", "block"), ("--format png", "formats")):
        assert f"holds another run: {what} was" in refused(*arguments, *changed.split())
    colours.select(["blue"]).save("blue.safetensors")
    assert 'names was ["red", "blue"], now it is ["blue"]' in refused(*arguments, "--prompts", "blue.safetensors")
    photos[0].rename("many/renamed.png")
    assert "holds another run: list was" in refused(*arguments)
    Path("many/renamed.png").rename(photos[0])
    os.rename("many", "elsewhere")  # only the keys count
    arguments[1] = "elsewhere"
    assert run(arguments) == 0
    Path("out/manifest.json").write_text("{")
    assert "is damaged" in refused(*arguments)
    Path("out/manifest.json").unlink()
    assert "parts without manifest.json" in refused(*arguments)


def test_a_damaged_part_is_named(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(MANY, 3)
    arguments = ["batch", "many", "--out", "out", *options, "--block", "2"]
    assert run(arguments) == 0
    part = Path("out/parts/part-00000001.parquet")
    part.write_bytes(part.read_bytes()[:50])
    assert run(arguments) == 2
    assert "part-00000001.parquet: is damaged; delete it" in capsys.readouterr().err
    part.unlink()
    assert run(arguments) == 0
    assert len(rows_of(OUT)) == 3


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ("--engine rya", "did you mean 'ray'?"),
        ("--format jpg", "format 'jpg' is unknown"),
        ("--format ,", "no format is given"),
        ("--block 0", "block 0 is out of range"),
        ("--workers 2", "--workers 2 is for Ray"),
        ("--refine sequence", "use dpseg predict"),
        ("--background 3", "is no threshold"),
    ],
)
def test_mistakes_are_refused(options: list[str], refused: Callable[..., str], changed: str, text: str) -> None:
    assert text in refused("batch", "photos", "--out", "out", *options, *changed.split())
    assert not OUT.exists()


@pytest.mark.parametrize(("package", "engine", "extra"), [("pyarrow", "local", "batch"), ("ray", "ray", "ray")])
def test_a_missing_extra_is_named(
    options: list[str],
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    engine: str,
    extra: str,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    line = refused("batch", "photos", "--out", "out", *options, "--engine", engine)
    assert f"pip install 'dpseg[{extra}]'" in line
