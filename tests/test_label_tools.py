"""Exports of label tools, in their layouts and with their peculiarities."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpseg.data.benchmarks import open_dataset
from dpseg.errors import DataError
from support.coco_files import box, image, photo, write


def test_label_studio_export(tmp_path: Path) -> None:
    """result.json beside images/; ids from 0; names with an upload's prefix, or of a local file."""
    photos = ["images/1a2b3c4d-street.jpg", "images/house.jpg", "images/trees/oak.jpg"]
    for name in photos:
        photo(tmp_path / name)
    names = ["images\\1a2b3c4d-street.jpg", "images/deadbeef-house.jpg", "/data/local-files/?d=trees%2Foak.jpg"]
    polygon = [[0.0, 0.0, 4.0, 0.0, 4.0, 2.0, 0.0, 2.0]]
    more = {"bbox": [0, 0, 4, 2], "ignore": 0, "iscrowd": 0, "area": 8.0}
    write(
        tmp_path / "result.json",
        [image(number, name) for number, name in enumerate(names)],
        [{"id": 0, "name": "Car"}, {"id": 1, "name": "Traffic_light"}],
        [
            {"id": 0, "image_id": 0, "category_id": 0, "segmentation": polygon, **more},
            {"id": 1, "image_id": 0, "category_id": 1, "segmentation": box(6, 2, 8, 4), "bbox": [6, 2, 2, 2]},
            {"id": 2, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 2, 2]], "bbox": [1, 1, 1, 1]},
        ],
        info={"contributor": "Label Studio"},
    )
    dataset = open_dataset(tmp_path)
    assert dataset.class_names == ("background", "Car", "Traffic light")
    assert [path.relative_to(tmp_path).as_posix() for path in dataset.image_paths] == photos
    assert dataset[0].mask.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]] * 2 + [[0, 0, 0, 0, 0, 0, 2, 2]] * 2
    assert not dataset[1].mask.any()


def test_cvat_export(tmp_path: Path) -> None:
    """annotations/instances_default.json and images/ with subfolders; a brushed mask is RLE and marked as a crowd."""
    photo(tmp_path / "images" / "day" / "left.png")
    photo(tmp_path / "images" / "night" / "left.png")
    brushed = {"segmentation": {"counts": [4, 4, 24], "size": [4, 8]}, "area": 4.0, "bbox": [1.0, 0.0, 1.0, 4.0]}
    drawn = {"segmentation": box(0, 0, 4, 4), "area": 16.0, "bbox": [0, 0, 4, 4]}
    attributes = {"occluded": False, "rotation": 0.0}
    write(
        tmp_path / "annotations" / "instances_default.json",
        [image(1, "day/left.png"), image(2, "night/left.png")],
        [{"id": 1, "name": "road", "supercategory": ""}, {"id": 2, "name": "car", "supercategory": ""}],
        [
            {"id": 1, "image_id": 2, "category_id": 2, **brushed, "iscrowd": 1, "attributes": {"occluded": False}},
            {"id": 2, "image_id": 2, "category_id": 1, **drawn, "iscrowd": 0, "attributes": attributes},
        ],
        licenses=[{"name": "", "id": 0, "url": ""}],
    )
    dataset = open_dataset(tmp_path)
    assert dataset.stems == ("day/left", "night/left")
    assert dataset.class_names == ("background", "road", "car")
    assert dataset[1].mask.tolist() == [[1, 2, 1, 1, 0, 0, 0, 0]] * 4


def test_roboflow_export(tmp_path: Path) -> None:
    """valid/_annotations.coco.json beside its photos; category 0 is the project's name and heads the others."""
    name = "street_jpg.rf.0123456789abcdef0123456789abcdef.jpg"
    photo(tmp_path / "valid" / name)
    categories = [{"id": 0, "name": "vehicles", "supercategory": "none"}]
    for number, category in enumerate(("bus", "Bus", "van"), start=1):
        categories.append({"id": number, "name": category, "supercategory": "vehicles"})
    write(
        tmp_path / "valid" / "_annotations.coco.json",
        [{**image(0, name), "license": 1, "extra": {"name": "street.jpg"}}],
        categories,
        [
            {"id": 0, "image_id": 0, "category_id": 2, "segmentation": box(0, 0, 2, 4), "area": 8, "iscrowd": 0},
            {"id": 1, "image_id": 0, "category_id": 3, "segmentation": box(4, 0, 8, 4), "area": 16, "iscrowd": 0},
        ],
    )
    dataset = open_dataset(tmp_path, split="val")
    assert dataset.class_names == ("background", "bus", "van")
    assert dataset[0].mask.tolist() == [[1, 1, 0, 0, 2, 2, 2, 2]] * 4
    with pytest.raises(DataError, match="there is no split 'train'; known: valid"):
        open_dataset(tmp_path, split="train")
