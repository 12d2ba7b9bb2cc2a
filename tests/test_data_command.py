"""`dpseg data`: what it prints, writes and returns."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from scipy.io import savemat

from dpseg.commands.data import DataOptions, check, class_table, prepare
from dpseg.data.check import check_dataset, official_count, open_leniently
from dpseg.errors import DataError, MissingExtraError, ModelNotFoundError

CLASSES = "background\ncat, kitten\ndog\n"


def write_folder(root: Path, stems: tuple[str, ...] = ("a", "b")) -> Path:
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    (root / "classes.txt").write_text(CLASSES)
    for stem in stems:
        Image.new("RGB", (4, 2)).save(root / "images" / f"{stem}.png")
        Image.fromarray(np.array([[0, 1, 1, 255]] * 2, np.uint8)).save(root / "masks" / f"{stem}.png")
    return root


def write_context(root: Path) -> Path:
    home = root / "VOCdevkit" / "VOC2010"
    for part in ("JPEGImages", "trainval", "ImageSets/Main"):
        (home / part).mkdir(parents=True)
    Image.new("RGB", (3, 1)).save(home / "JPEGImages" / "2008_000002.jpg")
    savemat(home / "trainval" / "2008_000002.mat", {"LabelMap": np.array([[1, 2, 459]], np.uint16)})
    (home / "ImageSets" / "Main" / "val.txt").write_text("2008_000002\n")
    return home


def ran(command: object, options: DataOptions) -> tuple[int, str, str]:
    """Runs a command and returns its status and what it printed to the two consoles."""
    console, errors = (Console(file=io.StringIO(), width=100) for _ in range(2))
    status = command(options, console, errors)  # type: ignore[operator]
    assert isinstance(console.file, io.StringIO)
    assert isinstance(errors.file, io.StringIO)
    return status, console.file.getvalue(), errors.file.getvalue()


def test_a_whole_set_passes(tmp_path: Path) -> None:
    status, printed, errors = ran(check, DataOptions(str(write_folder(tmp_path / "pets")), split=None))
    assert status == 0
    assert printed.splitlines() == [
        "| class | pixels | % | photos |",
        "|---|---|---|---|",
        "| cat | 8 | 50.00 | 2 |",
        "| background | 4 | 25.00 | 2 |",
        "| dog | 0 | 0.00 | 0 |",
        "| not labelled | 4 | 25.00 | |",
    ]
    assert "warning: 1 of 3 classes do not occur: dog" in errors
    assert "2 photos, 0 problems" in errors
    assert "2/2 photos" in errors


def test_everything_that_is_broken_is_listed(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pets", ("a", "b", "c", "d", "e"))
    (root / "masks" / "a.png").unlink()
    (root / "images" / "b.png").unlink()
    Image.new("L", (9, 9)).save(root / "masks" / "c.png")
    Image.fromarray(np.full((2, 4), 3, np.uint8)).save(root / "masks" / "d.png")
    (root / "images" / "e.png").write_bytes(b"no picture")
    status, printed, errors = ran(check, DataOptions(str(root), split=None))
    assert status == 1
    problems = [line for line in errors.splitlines() if line.startswith("problem: ")]
    assert len(problems) == 5
    assert "mask 'b' has no photo" in problems[0]
    assert "a.png' is missing; add it or take the photo away" in problems[1]
    assert "is 9 x 9 but its photo is 4 x 2" in problems[2]
    assert "holds the values 3, which pets does not have" in problems[3]
    assert "e.png" in problems[4]
    assert "| not labelled | 0 |" in printed
    (root / "val.txt").write_text("b\n")
    status, _, errors = ran(check, DataOptions("pets", tmp_path, "val"))
    assert status == 1
    assert "is missing; add it or take it off the list" in errors
    assert errors.count("problem: ") == 1


def test_statistics_and_plot_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    status, printed, _ = ran(check, DataOptions(str(write_folder(tmp_path / "pets")), split=None, out=out))
    assert status == 0
    assert "classes.csv, classes.png" in printed
    rows = list(csv.reader(io.StringIO((out / "classes.csv").read_text())))
    assert rows == [
        ["class", "pixels", "photos"],
        ["background", "4", "2"],
        ["cat, kitten", "8", "2"],
        ["dog", "0", "0"],
    ]
    with Image.open(out / "classes.png") as plot:
        assert plot.format == "PNG"
        assert min(plot.size) >= 300
        assert len(np.unique(np.asarray(plot.convert("RGB")).reshape(-1, 3), axis=0)) > 5


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    root = str(write_folder(tmp_path / "pets"))
    with pytest.raises(MissingExtraError, match=r"pip install 'dpseg\[train\]'"):
        ran(check, DataOptions(root, split=None, out=tmp_path / "out"))
    assert ran(check, DataOptions(root, split=None))[0] == 0


def test_counts_are_compared_with_the_official_ones(tmp_path: Path) -> None:
    write_context(tmp_path)
    status, printed, errors = ran(check, DataOptions("pc459", tmp_path))
    assert status == 0
    assert "warning: 1 photos are there, officially there are 5105" in errors
    assert "| accordion | 1 | 33.33 | 1 |" in printed
    assert "| 419 more: see classes.csv of --out | | | |" in printed
    assert official_count("PAS20", "trainval") == 2913
    assert official_count("pets", "val") is None
    assert official_count("a150", None) is None


def test_prepare_writes_once(tmp_path: Path) -> None:
    home = write_context(tmp_path)
    status, printed, errors = ran(prepare, DataOptions("pc59", tmp_path))
    assert status == 0
    assert "1 masks written, 0 kept, officially there are 5105" in printed
    assert "1/1 masks" in errors
    assert len(list(home.rglob("dpseg-masks/*/2008_000002.png"))) == 1
    assert "0 masks written, 1 kept" in ran(prepare, DataOptions("pc59", tmp_path))[1]


def test_prepare_says_what_is_damaged(tmp_path: Path) -> None:
    home = write_context(tmp_path)
    (home / "trainval" / "2008_000002.mat").write_bytes(b"cut off")
    status, _, errors = ran(prepare, DataOptions("pc59", tmp_path))
    assert status == 1
    assert "problem: " in errors
    assert "2008_000002.mat: cannot be read as a MATLAB file" in errors


def test_prepare_is_for_benchmarks_that_need_it(tmp_path: Path) -> None:
    folder = tmp_path / "ADEChallengeData2016"
    for part in ("images", "annotations"):
        (folder / part / "validation").mkdir(parents=True)
    Image.new("RGB", (3, 1)).save(folder / "images" / "validation" / "a.jpg")
    assert "nothing to prepare" in ran(prepare, DataOptions("a150", tmp_path))[1]
    with pytest.raises(ModelNotFoundError, match="no benchmark is called 'pc60'; did you mean"):
        ran(prepare, DataOptions("pc60", tmp_path))
    with pytest.raises(DataError, match="no split 'test'"):
        ran(prepare, DataOptions("pc59", tmp_path, "test"))


def test_long_tables_and_lists_of_problems_are_cut(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pets", tuple(f"p{k:02}" for k in range(25)))
    for path in (root / "masks").iterdir():
        path.write_bytes(b"broken")
    _, _, errors = ran(check, DataOptions(str(root), split=None))
    assert errors.count("problem: ") == 21
    assert "problem: and 5 more" in errors
    finding = check_dataset(open_leniently(root, split=None))
    assert (finding.photos, len(finding.problems), finding.unlabelled) == (25, 25, 0)
    assert class_table(finding).count("0.00") == 4
