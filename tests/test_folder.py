"""The folder layout: what is read, that every fault is named in one line, and which objects are cut out of photos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dpseg.data.benchmarks import open_dataset
from dpseg.data.coco import CocoSet
from dpseg.data.folder import FolderDataset
from dpseg.data.labelled import LabelledSet, prompts_of
from dpseg.data.objects import cut_objects, find_candidates, largest_region
from dpseg.errors import DataError, DPSegError, ImageError, ModelNotFoundError
from dpseg.prompts.visual import Reference
from support.coco_files import image, write
from support.commands import DATA, needs_photo_data
from support.labelled_set import save, write_labelled

CLASSES = ("background", "couch, sofa", "cat")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two photos, all class 0 and all class 1."""
    return write_labelled(tmp_path / "set", {"one": np.zeros((4, 6)), "two": np.ones((4, 6))}, CLASSES)


def test_photos_masks_and_names_are_read(root: Path) -> None:
    dataset = FolderDataset(root)
    assert dataset.class_names == CLASSES
    assert dataset.background_line0
    assert dataset.ignore_index == 255
    assert dataset.stems == ("one", "two")
    assert len(dataset) == 2
    stem, photo, mask = dataset[1]
    assert (stem, photo.mode, photo.size) == ("two", "RGB", (6, 4))
    assert (mask.shape, mask.dtype, set(mask.flat)) == ((4, 6), np.int32, {1})
    assert [sample.stem for sample in dataset] == ["one", "two"]
    assert dataset.image_paths[0] == root / "images" / "one.png"
    for part in ("images", "masks"):
        (root / part / "day.1").mkdir()
        (root / part / "one.png").rename(root / part / "day.1" / "v1.2_one.png")
    dataset = FolderDataset(root)
    assert dataset.stems == ("day.1/v1.2_one", "two")
    assert dataset[0].mask.shape == (4, 6)


@pytest.mark.parametrize(("line", "expected"), [("None", True), ("Background", True), ("person", False)])
def test_line_0_may_be_background(root: Path, line: str, expected: bool) -> None:
    (root / "classes.txt").write_text(f"{line}\na\nb\n")
    assert FolderDataset(root).background_line0 is expected


def test_a_split_keeps_its_order(root: Path) -> None:
    (root / "val.txt").write_text("two\none\n\n")
    assert FolderDataset(root, "val").stems == ("two", "one")


def removed(*names: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        for name in names:
            path = root / name
            path.rmdir() if path.is_dir() else path.unlink()

    return change


def written(name: str, text: str) -> Callable[[Path], object]:
    return lambda root: (root / name).write_text(text)


@pytest.mark.parametrize(
    ("change", "split", "message"),
    [
        (lambda root: root.rename(root.with_name("elsewhere")), None, "does not exist"),
        (removed("masks/two.png"), None, "mask 'two' is missing"),
        (removed("masks/one.png", "masks/two.png"), None, "holds no files"),
        (removed("masks/one.png", "masks/two.png", "masks"), None, "masks' is missing"),
        (removed("classes.txt"), None, "classes.txt' is missing"),
        (written("classes.txt", "\n"), None, "is empty"),
        (written("classes.txt", "cat\n\ndog\n"), None, "line 2 of"),
        (lambda root: save(root / "images" / "one.jpg", np.zeros((4, 6, 3))), None, "'one.jpg' and 'one.png'"),
        (written("val.txt", "one\n"), "vall", "did you mean 'val'?"),
        (written("val.txt", "two\nzebra\n"), "val", "photo 'zebra' is missing"),
        (written("val.txt", "two\ntwo\n"), "val", "lists 'two' twice"),
        (written("val.txt", "\n"), "val", "is empty"),
        (lambda root: None, "val", "leave the split out"),
    ],
)
def test_missing_and_wrong_parts_are_named(
    root: Path, change: Callable[[Path], object], split: str | None, message: str
) -> None:
    change(root)
    with pytest.raises(DataError) as caught:
        FolderDataset(root, split)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_on_several_lines_is_one_class(root: Path) -> None:
    (root / "classes.txt").write_text("cat\ndog\nCat\nowl\n")
    save(root / "masks" / "one.png", [[0, 1, 2, 3, 255, 2]] * 4)
    dataset = FolderDataset(root)
    assert dataset.class_names == ("cat", "dog", "owl")
    assert dataset[0].mask[0].tolist() == [0, 1, 0, 2, 255, 0]


def test_more_than_255_classes_use_16_bit_masks(root: Path) -> None:
    (root / "classes.txt").write_text("\n".join(f"c{k}" for k in range(300)))
    save(root / "masks" / "one.png", [[0, 255, 299, 65535, 7, 8]] * 4)
    dataset = FolderDataset(root)
    assert dataset.ignore_index == 65535
    assert dataset[0].mask[0].tolist() == [0, 255, 299, 65535, 7, 8]


def test_a_photo_or_mask_that_does_not_fit_is_named_when_it_is_read(root: Path) -> None:
    save(root / "masks" / "two.png", np.zeros((6, 4)))
    with pytest.raises(DataError, match="is 4 x 6 but its photo is 6 x 4"):
        FolderDataset(root)[1]
    save(root / "masks" / "two.png", [[0, 1, 2, 3, 254, 255]] * 4)
    with pytest.raises(DataError, match=r"holds the values 3, 254, but classes\.txt has 3 lines"):
        FolderDataset(root)[1]
    (root / "images" / "one.png").write_bytes(b"not a picture")
    dataset = FolderDataset(root)
    with pytest.raises(ImageError, match=r"one\.png"):
        dataset[0]
    assert dataset.mask(0).shape == (4, 6)


@needs_photo_data
def test_real_sets() -> None:
    things = FolderDataset(DATA / "coco_things", "val")
    assert len(things) == 161
    assert len(things.class_names) == 81
    assert things.background_line0
    panoptic = FolderDataset(DATA / "coco_panoptic", "train")
    assert len(panoptic.class_names) == 133
    assert not panoptic.background_line0
    sample = panoptic[0]
    assert sample.mask.shape == sample.image.size[::-1]
    assert len(np.unique(sample.mask)) > 2


@pytest.fixture
def objects(tmp_path: Path) -> FolderDataset:
    """Squares of class 1 with these sides; beside each is a smaller one, and a strip of class 2."""
    masks, photos = {}, {}
    for number, side in enumerate((4, 9, 6, 9)):
        mask = np.zeros((20, 24), np.uint8)
        mask[:side, :side] = 1
        mask[12:15, 12:15] = 1
        mask[19], mask[18] = 2, 255
        masks[str(number)] = mask
        photos[str(number)] = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    return FolderDataset(write_labelled(tmp_path / "objects", masks, ("none", "mug, cup", "table"), photos=photos))


def test_the_largest_regions_are_found_and_masks_that_cannot_be_read_are_noted(objects: FolderDataset) -> None:
    failed: list[DPSegError] = []
    steps: list[int] = []
    found = find_candidates(objects, 3, failed, lambda: steps.append(1))
    assert found == {1: [(81, 1), (81, 3), (36, 2)], 2: [(24, 0), (24, 1), (24, 2)]}
    assert len(steps) == len(objects)
    assert failed == []
    assert find_candidates(objects, 1, failed, lambda: None, wanted={1}) == {1: [(81, 1)]}
    objects.mask_paths[1].write_bytes(b"no picture")
    assert find_candidates(objects, 1, failed, lambda: None, wanted={1}) == {1: [(81, 3)]}
    assert [str(objects.mask_paths[1]) in str(error) for error in failed] == [True]
    columns = np.zeros((3, 7), bool)
    columns[:, 1] = columns[:, 5] = True  # of regions of one size the first counts
    assert largest_region(columns)[0].tolist() == [False, True] + [False] * 5


def test_an_object_is_the_reference_of_its_photo_and_mask(objects: FolderDataset) -> None:
    pictures = cut_objects(objects, 1, [(81, 3), (36, 2)], "mean")
    sources = [str(objects.image_paths[number]) for number in (3, 2)]
    assert [(one.name, one.source) for one in pictures] == [("mug", source) for source in sources]
    mask = np.zeros((20, 24), bool)
    mask[:6, :6] = True
    expected = Reference(objects.image_paths[2], mask=mask, context="mean").crop(32)
    for one, other in zip(pictures[1].reference.crop(32), expected, strict=True):
        assert torch.equal(one, other)


def test_folders_and_coco_files_are_found_as_they_are_and_below_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_labelled(tmp_path / "pets", {"a": [[0, 1, 255, 1]] * 2}, ("cat", "dog"))
    (tmp_path / "elsewhere" / "pets").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    for found in (open_dataset(tmp_path / "pets", split=None), open_dataset("pets", tmp_path, None)):
        assert isinstance(found, FolderDataset)
        assert found.mask(0)[0].tolist() == [0, 1, 255, 1]
    with pytest.raises(DataError, match="no split 'val'"):
        open_dataset("pets", tmp_path)
    with pytest.raises(DataError, match=r"classes\.txt' is missing"):
        open_dataset(tmp_path)
    with pytest.raises(ModelNotFoundError, match=r"'pas20c'; did you mean 'pas20' or 'pas20b'"):
        open_dataset("pas20c", tmp_path)
    outline = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]]}
    file = write(tmp_path / "labels.json", [image(1, "a.jpg", 4, 2)], [{"id": 1, "name": "cat"}], [outline])
    dataset: LabelledSet = open_dataset(file)
    assert isinstance(dataset, CocoSet)
    assert dataset.mask(0).tolist() == [[1, 1, 0, 0]] * 2
    assert prompts_of(dataset) == (("background", "cat"), (0, 1))
