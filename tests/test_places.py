"""Where results go: nothing overwrites anything, and results are not taken for photos."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpseg.commands.places import check_writable, output_places, without_results
from dpseg.errors import OutputError


def targets(*photos: str) -> list[str]:
    places = output_places([Path(photo) for photo in photos])
    return [(folder / stem).as_posix() for folder, stem in places.values()]


@pytest.mark.parametrize(
    ("photos", "expected"),
    [
        (["a/one.jpg", "b/two.png"], ["one", "two"]),  # straight into the folder
        (["x/day1/one.jpg", "x/day2/one.jpg", "x/two.jpg"], ["day1/one", "day2/one", "two"]),
        (["x/a/one.jpg", "x/b/ONE.jpg"], ["a/one", "b/ONE"]),
        (["x/one.jpg", "x/one.png", "x/two.png"], ["one.jpg", "one.png", "two"]),
    ],
)
def test_equal_names_keep_their_folders_or_endings(photos: list[str], expected: list[str]) -> None:
    assert targets(*photos) == expected


def test_nothing_is_ever_twice() -> None:
    names = targets("x/one.jpg", "x/one.png", "x/one.jpg.png", "x/ONE.JPG", "y/one.jpg", "y/x/one.jpg")
    assert len({name.casefold() for name in names}) == 6


def test_results_of_an_earlier_run_are_left_out(tmp_path: Path) -> None:
    out = tmp_path / "out"
    photos = [tmp_path / "a.jpg", out / "a_overlay.png"]
    assert without_results(photos, [str(tmp_path)], out) == photos[:1]
    assert without_results(photos, [str(tmp_path), str(photos[1])], out) == photos
    assert without_results(photos[1:], [str(out)], out) == photos[1:]
    assert without_results(photos, [str(tmp_path)], tmp_path / "other") == photos


def test_a_folder_that_cannot_be_written_is_noticed(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="file"):
        check_writable(tmp_path / "file")
    with pytest.raises(OutputError, match="file"):
        check_writable(tmp_path / "file" / "below")
