"""Data sets by name or place, and COCO-Stuff in miniature."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpseg.data.benchmarks import BENCHMARKS, open_dataset
from dpseg.data.coco import CocoSet
from dpseg.data.coco_stuff import VALUES
from dpseg.data.folder import FolderDataset
from dpseg.data.labelled import LabelledSet, prompts_of, reduced_size
from dpseg.errors import DataError, ModelNotFoundError


def write_coco_stuff(root: Path, images: str = "", maps: str = "stuffthingmaps_trainval2017") -> Path:
    photos, masks = root / images / "val2017", root / maps / "val2017"
    photos.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    for stem in ("000000000139", "000000000285"):
        Image.new("RGB", (4, 2)).save(photos / f"{stem}.jpg")
        values = np.array([[0, 10, 12, 89], [91, 181, 255, 156]], np.uint8)
        Image.fromarray(values).save(masks / f"{stem}.png")
    return root


def write_folder(root: Path) -> Path:
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    (root / "classes.txt").write_text("cat\ndog\n")
    Image.new("RGB", (4, 2)).save(root / "images" / "a.png")
    Image.fromarray(np.array([[0, 1, 255, 1]] * 2, np.uint8)).save(root / "masks" / "a.png")
    return root


def test_coco_stuff_closes_the_gaps(tmp_path: Path) -> None:
    dataset = open_dataset("cocostuff", write_coco_stuff(tmp_path))
    assert dataset.stems == ("000000000139", "000000000285")
    assert (len(dataset.class_names), dataset.ignore_index, dataset.background_line0) == (171, 255, False)
    # 0 person; 10 fire hydrant; 12 stop sign, as 11 (street sign) was left out; 89 toothbrush; 91 banner; 181 wood;
    # 156 sky.
    assert dataset[0].mask.tolist() == [[0, 10, 11, 79], [80, 170, 255, 145]]
    names = [name.split(",")[0] for name in dataset.class_names]
    assert [names[k] for k in (0, 10, 11, 79, 80, 170, 145)] == [
        "person",
        "fire hydrant",
        "stop sign",
        "toothbrush",
        "banner",
        "wood",
        "sky",
    ]
    assert len(VALUES) == 171
    left_out = [value for value in range(182) if value not in VALUES]
    assert left_out == [11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90]


@pytest.mark.parametrize(
    ("images", "maps"), [("images", "annotations"), ("", "annotations"), ("images", "stuffthingmaps"), ("", "")]
)
def test_coco_stuff_in_the_usual_other_places(tmp_path: Path, images: str, maps: str) -> None:
    assert len(open_dataset("COCOSTUFF", write_coco_stuff(tmp_path, images, maps))) == 2


def test_coco_stuff_refuses_values_that_were_left_out(tmp_path: Path) -> None:
    write_coco_stuff(tmp_path)
    path = tmp_path / "stuffthingmaps_trainval2017" / "val2017" / "000000000139.png"
    Image.fromarray(np.array([[11, 182, 0, 0]] * 2, np.uint8)).save(path)
    with pytest.raises(DataError, match="holds the values 11, 182, which cocostuff does not have"):
        open_dataset("cocostuff", tmp_path)[0]


def test_coco_stuff_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"val2017' is missing; unpack val2017\.zip \(COCO 2017\)"):
        open_dataset("cocostuff", tmp_path)
    (tmp_path / "val2017").mkdir()
    with pytest.raises(DataError, match=r"val2017' is missing; unpack stuffthingmaps_trainval2017\.zip \(COCO-Stuff\)"):
        open_dataset("cocostuff", tmp_path)
    (tmp_path / "stuffthingmaps_trainval2017" / "val2017").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no photos below .*; unpack val2017\.zip again"):
        open_dataset("cocostuff", tmp_path)


def test_names_that_are_wrong_get_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"'pas20c'; did you mean 'pas20' or 'pas20b'"):
        open_dataset("pas20c", tmp_path)
    with pytest.raises(DataError, match="has the splits train, val; name one of them"):
        open_dataset("a150", tmp_path, None)
    assert set(BENCHMARKS) == {"cocostuff", "a150", "a847", "pc59", "pc459", "pas20", "pas20b"}


def test_folders_are_found_as_they_are_and_below_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "pets")
    (tmp_path / "elsewhere" / "pets").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    for dataset in (open_dataset(tmp_path / "pets", split=None), open_dataset("pets", tmp_path, None)):
        assert isinstance(dataset, FolderDataset)
        assert dataset.mask(0)[0].tolist() == [0, 1, 255, 1]
    with pytest.raises(DataError, match="no split 'val'"):
        open_dataset("pets", tmp_path)
    with pytest.raises(DataError, match=r"classes\.txt' is missing"):
        open_dataset(tmp_path)


def test_a_coco_file_is_a_data_set(tmp_path: Path) -> None:
    Image.new("RGB", (4, 2)).save(tmp_path / "a.jpg")
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 4, "height": 2}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]]}],
    }
    (tmp_path / "labels.json").write_text(json.dumps(content))
    dataset: LabelledSet = open_dataset(tmp_path / "labels.json")
    assert isinstance(dataset, CocoSet)
    assert dataset.mask(0).tolist() == [[1, 1, 0, 0]] * 2
    assert prompts_of(dataset) == (("background", "cat"), (0, 1))


def test_reduced_sizes() -> None:
    assert reduced_size((2048, 1024), 512) == (1024, 512)
    assert reduced_size((683, 1000), 512) == (512, 750)
    assert reduced_size((512, 9000), 512) == (512, 9000)
    assert reduced_size((4000, 3000), None) == (4000, 3000)
