"""`dpseg data`: what it prints, writes and returns."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpseg.commands.data import DataOptions, check, class_table, prepare
from dpseg.data.check import check_dataset, official_count, open_leniently
from dpseg.errors import DataError, MissingExtraError, ModelNotFoundError
from support.downloads import CONTEXT_MAPS, CONTEXT_STEMS, ran, write_context
from support.labelled_set import save, write_labelled


def write_pets(root: Path, stems: str = "ab") -> str:
    masks = {stem: [[0, 1, 1, 255]] * 2 for stem in stems}
    return str(write_labelled(root / "pets", masks, ("background", "cat, kitten", "dog")))


def test_a_whole_set_passes_and_its_classes_are_written_and_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    status, printed, errors = ran(check, DataOptions(write_pets(tmp_path), split=None, out=out))
    assert status == 0
    assert printed.splitlines()[:6] == [
        "| class | pixels | % | photos |",
        "|---|---|---|---|",
        "| cat | 8 | 50.00 | 2 |",
        "| background | 4 | 25.00 | 2 |",
        "| dog | 0 | 0.00 | 0 |",
        "| not labelled | 4 | 25.00 | |",
    ]
    assert printed.splitlines()[6:] == ["", f"{out}: classes.csv, classes.png"]
    assert "warning: 1 of 3 classes do not occur: dog" in errors
    assert "2 photos, 0 problems" in errors
    assert "2/2 photos" in errors
    assert list(csv.reader(io.StringIO((out / "classes.csv").read_text()))) == [
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
    root = write_pets(tmp_path)
    with pytest.raises(MissingExtraError, match=r"pip install 'dpseg\[train\]'"):
        ran(check, DataOptions(root, split=None, out=tmp_path / "out"))
    status, printed, _ = ran(check, DataOptions(root, split=None))
    assert (status, len(printed.splitlines())) == (0, 6)


def test_everything_that_is_broken_is_listed(tmp_path: Path) -> None:
    root = Path(write_pets(tmp_path, "abcde"))
    (root / "masks" / "a.png").unlink()
    (root / "images" / "b.png").unlink()
    save(root / "masks" / "c.png", np.zeros((9, 9)))
    save(root / "masks" / "d.png", np.full((2, 4), 3))
    (root / "images" / "e.png").write_bytes(b"no picture")
    status, printed, errors = ran(check, DataOptions(str(root), split=None))
    assert status == 1
    problems = [line for line in errors.splitlines() if line.startswith("problem: ")]
    expected = (
        "mask 'b' has no photo",
        "a.png' is missing; add it or take the photo away",
        "is 9 x 9 but its photo is 4 x 2",
        "holds the values 3, which pets does not have",
        "e.png",
    )
    assert [text in problem for problem, text in zip(problems, expected, strict=True)] == [True] * 5
    assert "| not labelled | 0 |" in printed
    (root / "val.txt").write_text("b\n")
    status, _, errors = ran(check, DataOptions("pets", tmp_path, "val"))
    assert status == 1
    assert "is missing; add it or take it off the list" in errors
    assert errors.count("problem: ") == 1


def test_long_tables_and_lists_of_problems_are_cut(tmp_path: Path) -> None:
    root = Path(write_pets(tmp_path, "abcdefghijklmnopqrstuvwxy"))
    for path in (root / "masks").iterdir():
        path.write_bytes(b"broken")
    _, _, errors = ran(check, DataOptions(str(root), split=None))
    assert errors.count("problem: ") == 21
    assert "problem: and 5 more" in errors
    finding = check_dataset(open_leniently(root, split=None))
    assert (finding.photos, len(finding.problems), finding.unlabelled) == (25, 25, 0)
    assert class_table(finding).count("0.00") == 4


def test_counts_are_compared_with_the_official_ones(tmp_path: Path) -> None:
    write_context(tmp_path)
    status, printed, errors = ran(check, DataOptions("pc459", tmp_path))
    assert status == 0
    assert "warning: 2 photos are there, officially there are 5105" in errors
    assert "| accordion | 2 | 12.50 | 2 |" in printed
    assert "| 419 more: see classes.csv of --out | | | |" in printed
    assert official_count("PAS20", "trainval") == 2913
    assert official_count("pets", "val") is None
    assert official_count("a150", None) is None


def test_prepare_writes_once_and_says_what_is_damaged(tmp_path: Path) -> None:
    write_context(tmp_path)
    status, printed, errors = ran(prepare, DataOptions("pc59", tmp_path))
    assert status == 0
    assert "2 masks written, 0 kept, officially there are 5105" in printed
    assert "2/2 masks" in errors
    assert {path.stem for path in tmp_path.rglob("dpseg-masks/*/*.png")} == set(CONTEXT_STEMS)
    assert "0 masks written, 2 kept" in ran(prepare, DataOptions("pc59", tmp_path))[1]
    (tmp_path / CONTEXT_MAPS / "2008_000002.mat").write_bytes(b"cut off")
    status, _, errors = ran(prepare, DataOptions("pc459", tmp_path))
    assert status == 1
    assert "problem: " in errors
    assert "2008_000002.mat: cannot be read as a MATLAB file" in errors


def test_prepare_is_for_benchmarks_that_need_it(tmp_path: Path) -> None:
    write_context(tmp_path)
    save(tmp_path / "ADEChallengeData2016" / "images" / "validation" / "a.jpg", np.zeros((1, 3, 3)))
    (tmp_path / "ADEChallengeData2016" / "annotations" / "validation").mkdir(parents=True)
    assert "nothing to prepare" in ran(prepare, DataOptions("a150", tmp_path))[1]
    with pytest.raises(ModelNotFoundError, match="no benchmark is called 'pc60'; did you mean"):
        ran(prepare, DataOptions("pc60", tmp_path))
    with pytest.raises(DataError, match="no split 'test'"):
        ran(prepare, DataOptions("pc59", tmp_path, "test"))
