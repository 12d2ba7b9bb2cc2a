"""COCO panoptic files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpseg.data.coco import CocoSet
from dpseg.errors import DataError, ImageError
from support.coco_files import image, photo, write


def write_panoptic(tmp_path: Path, ids: list[list[int]]) -> Path:
    photo(tmp_path / "val2017" / "000000000139.jpg", (4, 2))
    values = np.array(ids)
    channels = np.stack([values % 256, values // 256 % 256, values // 65536], axis=-1).astype(np.uint8)
    maps = tmp_path / "annotations" / "panoptic_val2017"
    maps.mkdir(parents=True, exist_ok=True)
    Image.fromarray(channels).save(maps / "000000000139.png")
    segments = [
        {"id": 3226956, "category_id": 1, "iscrowd": 0},
        {"id": 6979964, "category_id": 1, "iscrowd": 0},
        {"id": 300, "category_id": 199, "iscrowd": 0},
    ]
    return write(
        tmp_path / "annotations" / "panoptic_val2017.json",
        [image(139, "000000000139.jpg", 4, 2)],
        [
            {"id": 199, "name": "wall-other-merged", "isthing": 0},
            {"id": 1, "name": "person", "isthing": 1},
            {"id": 92, "name": "banner", "isthing": 0},
        ],
        [{"image_id": 139, "file_name": "000000000139.png", "segments_info": segments}],
    )


def test_panoptic_maps(tmp_path: Path) -> None:
    dataset = CocoSet(write_panoptic(tmp_path, [[3226956, 6979964, 300, 0], [300, 300, 0, 0]]))
    assert dataset.class_names == ("person", "banner", "wall")
    assert (dataset.background_line0, dataset.ignore_index) == (False, 255)
    assert dataset[0].mask.tolist() == [[0, 0, 2, 255], [2, 2, 255, 255]]
    assert dataset.image_paths == (tmp_path / "val2017" / "000000000139.jpg",)


def test_panoptic_maps_that_do_not_fit(tmp_path: Path) -> None:
    file = write_panoptic(tmp_path, [[301, 300, 300, 0]] * 2)
    with pytest.raises(DataError, match=r"holds segment 301, which panoptic_val2017\.json does not list"):
        CocoSet(file)[0]
    png = tmp_path / "annotations" / "panoptic_val2017" / "000000000139.png"
    content = json.loads(file.read_text())
    content["annotations"][0]["segments_info"][0].pop("category_id")
    (file.parent / "other.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"segments of 000000000139\.png need an id and a category_id"):
        CocoSet(file.parent / "other.json", panoptic=png.parent)[0]
    png.write_bytes(b"no picture")
    with pytest.raises(ImageError):
        CocoSet(file)[0]
    png.unlink()
    with pytest.raises(DataError, match=r"000000000139\.png' is missing; panoptic_val2017\.zip holds it"):
        CocoSet(file)[0]
    png.parent.rmdir()
    with pytest.raises(DataError, match=r"panoptic_val2017' is missing; panoptic_val2017\.json needs the PNG files"):
        CocoSet(file)


def test_the_official_133_categories_get_readable_names(tmp_path: Path) -> None:
    file = write_panoptic(tmp_path, [[300, 300, 300, 0]] * 2)
    content = json.loads(file.read_text())
    content["categories"] = [
        {"id": k, "name": "person" if k == 1 else "rug-merged" if k == 200 else f"c{k}"} for k in [*range(1, 133), 200]
    ]
    content["annotations"][0]["segments_info"][2]["category_id"] = 200
    file.write_text(json.dumps(content))
    dataset = CocoSet(file)
    assert len(dataset.class_names) == 133
    assert dataset.class_names[0] == "person, man, woman, child"
    assert dataset[0].mask[0].tolist() == [132, 132, 132, 255]
