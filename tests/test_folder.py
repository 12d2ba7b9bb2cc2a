"""The folder layout: what is read, and that every fault is named in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpseg.data.folder import FolderDataset
from dpseg.errors import DataError, ImageError

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def write_set(
    root: Path, classes: str = "background\ncouch, sofa\ncat\n", stems: tuple[str, ...] = ("one", "two")
) -> Path:
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    (root / "classes.txt").write_text(classes, encoding="utf-8")
    for number, stem in enumerate(stems):
        Image.new("RGB", (6, 4), (number, 2, 3)).save(root / "images" / f"{stem}.png")
        Image.fromarray(np.full((4, 6), number % 3, np.uint8)).save(root / "masks" / f"{stem}.png")
    return root


def refused(root: Path, split: str | None = None) -> str:
    with pytest.raises(DataError) as caught:
        FolderDataset(root, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_reads_photos_masks_and_names(tmp_path: Path) -> None:
    dataset = FolderDataset(write_set(tmp_path / "set"))
    assert dataset.class_names == ("background", "couch, sofa", "cat")
    assert dataset.background_line0
    assert dataset.ignore_index == 255
    assert dataset.stems == ("one", "two")
    assert len(dataset) == 2
    stem, image, mask = dataset[1]
    assert (stem, image.mode, image.size) == ("two", "RGB", (6, 4))
    assert mask.shape == (4, 6)
    assert mask.dtype == np.int32
    assert set(mask.flat) == {1}
    assert [sample.stem for sample in dataset] == ["one", "two"]
    assert dataset.image_paths[0] == tmp_path / "set" / "images" / "one.png"


@pytest.mark.parametrize(("line", "expected"), [("None", True), ("Background", True), ("person", False)])
def test_line_0_may_be_background(tmp_path: Path, line: str, expected: bool) -> None:
    assert FolderDataset(write_set(tmp_path / "set", f"{line}\na\nb\n")).background_line0 is expected


def test_split_keeps_its_order_and_is_checked(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", stems=("a", "b", "c"))
    (root / "val.txt").write_text("c\na\n\n")
    assert FolderDataset(root, "val").stems == ("c", "a")
    assert "did you mean 'val'?" in refused(root, "vall")
    (root / "val.txt").write_text("c\nzebra\n")
    assert "photo 'zebra' is missing" in refused(root, "val")
    (root / "val.txt").write_text("c\nc\n")
    assert "lists 'c' twice" in refused(root, "val")
    (root / "val.txt").write_text("\n")
    assert "is empty" in refused(root, "val")
    (root / "val.txt").unlink()
    assert "leave the split out" in refused(root, "val")


def test_subfolders_and_dots_in_names(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    for part in ("images", "masks"):
        (root / part / "day.1").mkdir()
        (root / part / "one.png").rename(root / part / "day.1" / "v1.2_one.png")
    dataset = FolderDataset(root)
    assert dataset.stems == ("day.1/v1.2_one", "two")
    assert dataset[0].mask.shape == (4, 6)


def test_missing_parts_are_named(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "nowhere")
    root = write_set(tmp_path / "set")
    (root / "masks" / "two.png").unlink()
    assert "mask 'two' is missing" in refused(root)
    (root / "masks" / "one.png").unlink()
    assert "holds no files" in refused(root)
    (root / "masks").rmdir()
    assert "masks' is missing" in refused(root)
    (root / "classes.txt").unlink()
    assert "classes.txt' is missing" in refused(root)


def test_bad_class_lists_are_refused(tmp_path: Path) -> None:
    assert "is empty" in refused(write_set(tmp_path / "a", "\n"))
    assert "line 2 of" in refused(write_set(tmp_path / "b", "cat\n\ndog\n"))


def test_a_name_on_several_lines_is_one_class(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", "cat\ndog\nCat\nowl\n")
    Image.fromarray(np.array([[0, 1, 2, 3, 255, 2]] * 4, np.uint8)).save(root / "masks" / "one.png")
    dataset = FolderDataset(root)
    assert dataset.class_names == ("cat", "dog", "owl")
    assert dataset[0].mask[0].tolist() == [0, 1, 0, 2, 255, 0]


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    Image.new("RGB", (6, 4)).save(root / "images" / "one.jpg")
    assert "'one.jpg' and 'one.png'" in refused(root)


def test_sizes_that_differ_are_refused(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    Image.new("L", (4, 6)).save(root / "masks" / "two.png")
    dataset = FolderDataset(root)
    with pytest.raises(DataError, match="is 4 x 6 but its photo is 6 x 4"):
        dataset[1]


def test_labels_beyond_the_classes_are_refused(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    values = np.array([[0, 1, 2, 3, 254, 255]] * 4, np.uint8)
    Image.fromarray(values).save(root / "masks" / "two.png")
    dataset = FolderDataset(root)
    with pytest.raises(DataError, match=r"holds the values 3, 254, but classes\.txt has 3 lines"):
        dataset[1]


def test_more_than_255_classes_use_16_bit_masks(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", "\n".join(f"c{k}" for k in range(300)))
    values = np.array([[0, 255, 299, 65535, 7, 8]] * 4, np.uint16)
    Image.fromarray(values).save(root / "masks" / "one.png")
    dataset = FolderDataset(root)
    assert dataset.ignore_index == 65535
    assert dataset[0].mask[0].tolist() == [0, 255, 299, 65535, 7, 8]


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    (root / "images" / "one.png").write_bytes(b"not a picture")
    dataset = FolderDataset(root)
    with pytest.raises(ImageError, match=r"one\.png"):
        dataset[0]
    assert dataset.mask(0).shape == (4, 6)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the photo sets in ../shared/data are not here")
def test_real_sets() -> None:
    things = FolderDataset(SHARED / "coco_things", "val")
    assert len(things) == 161
    assert len(things.class_names) == 81
    assert things.background_line0
    panoptic = FolderDataset(SHARED / "coco_panoptic", "train")
    assert len(panoptic.class_names) == 133
    assert not panoptic.background_line0
    sample = panoptic[0]
    assert sample.mask.shape == sample.image.size[::-1]
    assert len(np.unique(sample.mask)) > 2
