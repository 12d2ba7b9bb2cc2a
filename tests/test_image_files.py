"""`images.read_mask` and `images.find_images`."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpseg.errors import ImageError
from dpseg.images import find_images, read_mask

PHOTO = Path(__file__).parents[1] / "examples" / "coffee.jpg"


def test_masks_keep_their_stored_values(tmp_path):
    labels = np.array([[0, 3, 255], [7, 1, 2]], dtype=np.uint8)
    grey = Image.fromarray(labels)
    palette = grey.copy()
    palette.putpalette([9] * 768)
    files = {"grey": grey, "palette": palette, "rgb": grey.convert("RGB"), "rgba": grey.convert("RGBA")}
    for name, picture in files.items():
        picture.save(tmp_path / f"{name}.png")
        mask = read_mask(tmp_path / f"{name}.png")
        assert mask.dtype == np.uint8
        assert np.array_equal(mask, labels)


def test_sixteen_bit_and_one_bit_masks(tmp_path):
    deep = np.array([[0, 846, 65535]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert read_mask(tmp_path / "deep.png").tolist() == deep.tolist()
    Image.fromarray(deep > 500).save(tmp_path / "bit.png")
    assert read_mask(tmp_path / "bit.png").tolist() == [[0, 1, 1]]


def test_a_cut_out_is_masked_by_its_transparency(tmp_path):
    rgba = np.random.default_rng(0).integers(0, 256, (3, 4, 4), dtype=np.uint8)
    rgba[..., 3] = 0
    rgba[1, 2, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "cut.png")
    assert np.array_equal(read_mask(tmp_path / "cut.png"), rgba[..., 3])


def test_masks_obey_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(np.array([[1, 2]], np.uint8)).save(tmp_path / "turned.png", exif=exif)
    assert read_mask(tmp_path / "turned.png").tolist() == [[2, 1]]


def test_colour_and_missing_masks_are_refused(tmp_path):
    with pytest.raises(ImageError, match=r"coffee.jpg: a mask holds one value a pixel, this is in colour \(RGB\)"):
        read_mask(PHOTO)
    with pytest.raises(ImageError, match="no such file"):
        read_mask(tmp_path / "no.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    names = [
        "b.jpg",
        "a.PNG",
        "notes.txt",
        "sub/c.webp",
        "sub/deep/d.tiff",
        ".hidden.jpg",
        ".cache/e.jpg",
        "odd[1].jpg",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "bare").mkdir()
    return tmp_path


def names_below(folder: Path, found: list[Path]) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in found]


def test_folders_are_searched_whole_without_hidden_files(folder):
    found = names_below(folder, find_images([folder]))
    assert found == ["a.PNG", "b.jpg", "odd[1].jpg", "sub/c.webp", "sub/deep/d.tiff"]


def test_globs_files_and_folders_mix_sorted_and_each_once(folder):
    patterns = [
        folder / "sub",
        str(folder / "*.jpg"),
        folder / "b.jpg",
        str(folder / "**" / "*.tiff"),
        folder / "odd[1].jpg",
    ]
    assert names_below(folder, find_images(patterns)) == ["b.jpg", "odd[1].jpg", "sub/c.webp", "sub/deep/d.tiff"]


def test_the_same_file_spelled_in_two_ways_counts_once(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert find_images(["b.jpg", "./b.jpg", str(folder / "b.jpg"), "sub/../b.jpg"]) == [Path("b.jpg")]


def test_a_named_file_is_taken_whatever_its_ending(folder):
    assert names_below(folder, find_images([folder / "notes.txt"])) == ["notes.txt"]


@pytest.mark.parametrize(
    ("pattern", "part"),
    [
        ("no.jpg", "no.jpg: no such file or folder"),
        ("*.bmp", "matches no pictures"),
        ("*.txt", "matches no pictures"),
        ("bare", "the folder holds no pictures"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error(folder, pattern, part):
    with pytest.raises(ImageError, match=part.replace("*", r"\*")):
        find_images([folder / "b.jpg", str(folder / pattern)])
