"""COCO files: outlines as COCO and label tools write them, and panoptic maps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as cocomask

from dpseg.data.coco import CocoSet
from dpseg.errors import DataError
from support.coco_files import box, image, one, photo, write


def test_coco_instances_with_gaps_in_the_ids(tmp_path: Path) -> None:
    photo(tmp_path / "val2017" / "000000000139.jpg")
    photo(tmp_path / "val2017" / "000000000285.jpg")
    file = write(
        tmp_path / "annotations" / "instances_val2017.json",
        [image(285, "000000000285.jpg"), image(139, "000000000139.jpg")],
        [{"id": 13, "name": "stop sign"}, {"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}],
        [
            {"id": 1, "image_id": 139, "category_id": 90, "segmentation": box(1, 1, 3, 3), "iscrowd": 0, "area": 4},
            {"id": 2, "image_id": 139, "category_id": 1, "segmentation": box(0, 0, 4, 4), "iscrowd": 0, "area": 16},
            {
                "id": 3,
                "image_id": 139,
                "category_id": 13,
                "segmentation": {"size": [4, 8], "counts": [24, 8]},
                "iscrowd": 1,
                "area": 8,
            },
        ],
    )
    dataset = CocoSet(file)
    assert dataset.class_names == ("background", "person", "stop sign", "toothbrush")
    assert dataset.background_line0
    assert (dataset.ignore_index, dataset.root) == (255, tmp_path)
    assert dataset.stems == ("000000000285", "000000000139")
    assert dataset.image_paths[1] == tmp_path / "val2017" / "000000000139.jpg"
    # The toothbrush comes first in the file, but it is smaller and so in front of the person. 24 pixels are 6 columns.
    assert dataset[1].mask.tolist() == [
        [1, 1, 1, 1, 0, 0, 2, 2],
        [1, 3, 3, 1, 0, 0, 2, 2],
        [1, 3, 3, 1, 0, 0, 2, 2],
        [1, 1, 1, 1, 0, 0, 2, 2],
    ]
    assert not dataset[0].mask.any()


def test_of_objects_of_one_size_the_later_is_in_front(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    outlines = [{"id": k, "image_id": 1, "category_id": k, "segmentation": box(2 * k, 0, 2 * k + 4, 4)} for k in (0, 1)]
    categories = [{"id": 0, "name": "left"}, {"id": 1, "name": "right"}]
    dataset = CocoSet(write(tmp_path / "two.json", [image(1, "a.jpg")], categories, outlines))
    assert dataset.mask(0)[0].tolist() == [1, 1, 2, 2, 2, 2, 0, 0]


def test_a_category_that_is_called_background_is_class_0(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    categories = [{"id": 7, "name": "cat"}, {"id": 9, "name": "Background"}]
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 7, "segmentation": box(0, 0, 8, 4)},
        {"id": 2, "image_id": 1, "category_id": 9, "segmentation": box(0, 0, 2, 4)},
    ]
    dataset = CocoSet(write(tmp_path / "b.json", [image(1, "a.jpg")], categories, annotations))
    assert dataset.class_names == ("background", "cat")
    assert dataset.mask(0)[0].tolist() == [0, 0, 1, 1, 1, 1, 1, 1]


def test_compressed_run_lengths(tmp_path: Path) -> None:
    pixels = np.zeros((4, 8), np.uint8, order="F")
    pixels[1, 2:5] = 1
    runs = cocomask.encode(pixels)
    mask = one(tmp_path, {"size": [4, 8], "counts": runs["counts"].decode()}).mask(0)
    assert mask.tolist() == pixels.tolist()


@pytest.mark.parametrize(
    ("segmentation", "text"),
    [
        ([], "annotation 5 has no outline, only a box"),
        ({"size": [4, 8], "counts": [1, 2]}, "run lengths cover 3 pixels but the photo has 8 x 4"),
        ({"size": [2, 2], "counts": "04"}, "is drawn on 2 x 2 pixels but its photo has 8 x 4"),
        ({"size": [4, 8]}, "annotation 5 cannot be drawn"),
        ({"size": [4, 8], "counts": "zzzzzzzz"}, "annotation 5 cannot be drawn"),
        ([["a", "b", "c", "d", "e", "f"]], "annotation 5 cannot be drawn"),
        ([[0, 0, 1, 1, 2, 2, 3]], "needs pairs of finite numbers"),
    ],
)
def test_outlines_that_cannot_be_drawn(tmp_path: Path, segmentation: Any, text: str) -> None:
    dataset = one(tmp_path, segmentation)
    with pytest.raises(DataError) as caught:
        dataset.mask(0)
    assert text in str(caught.value)
    assert "one.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_outlines_may_leave_the_photo(tmp_path: Path) -> None:
    assert one(tmp_path, box(-2, -2, 3, 90)).mask(0).tolist() == [[1, 1, 1, 0, 0, 0, 0, 0]] * 4
    assert one(tmp_path, [[6, 0, 1e12, 0, 1e12, 2, 6, 2]]).mask(0).tolist()[0] == [0, 0, 0, 0, 0, 0, 1, 1]


def test_sizes_are_compared_and_may_be_left_out(tmp_path: Path) -> None:
    dataset = one(tmp_path, box(0, 0, 2, 2))
    photo(tmp_path / "a.jpg", (4, 8))
    with pytest.raises(DataError, match="is 8 x 4 but its photo is 4 x 8"):
        dataset[0]
    content = json.loads((tmp_path / "one.json").read_text())
    del content["images"][0]["width"]
    (tmp_path / "one.json").write_text(json.dumps(content))
    assert CocoSet(tmp_path / "one.json")[0].mask.shape == (8, 4)


def test_sizes_beyond_the_limit_are_refused_before_they_take_memory(tmp_path: Path) -> None:
    one(tmp_path, box(0, 0, 2, 2))
    content = json.loads((tmp_path / "one.json").read_text())
    content["images"][0].update(width=10**6, height=10**6)
    (tmp_path / "one.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="photo 'a' of 1000000 x 1000000 pixels is too large"):
        CocoSet(tmp_path / "one.json").mask(0)


def test_photos_that_are_missing_or_ambiguous(tmp_path: Path) -> None:
    dataset = one(tmp_path, box(0, 0, 2, 2))
    (tmp_path / "a.jpg").unlink()
    assert dataset.mask(0).shape == (4, 8)
    with pytest.raises(DataError, match=r"a\.jpg' is missing; give the folder of the photos of one\.json"):
        dataset[0]
    photo(tmp_path / "x" / "a.jpg")
    assert CocoSet(tmp_path / "one.json")[0].image.size == (8, 4)
    photo(tmp_path / "y" / "a.jpg")
    with pytest.raises(DataError, match=r"'a\.jpg' fits"):
        CocoSet(tmp_path / "one.json")
    assert CocoSet(tmp_path / "one.json", tmp_path / "y").image_paths == (tmp_path / "y" / "a.jpg",)


def test_file_names_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    photo(tmp_path / "secret.jpg")
    (tmp_path / "set").mkdir()
    file = write(tmp_path / "set" / "a.json", [image(1, "../secret.jpg")], [{"id": 1, "name": "cat"}], [])
    assert CocoSet(file).image_paths == (tmp_path / "set" / "secret.jpg",)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda c: c.pop("categories"), "has no list 'categories'"),
        (lambda c: c["images"].clear(), "lists no photos"),
        (lambda c: c["images"][0].pop("file_name"), "entry 0 of 'images' has no 'file_name'"),
        (lambda c: c["images"].append(image(2, "a.png")), "lists photo 'a' twice"),
        (lambda c: c["images"].append(image(1, "b.jpg")), "gives one id to two photos"),
        (lambda c: c["annotations"][0].update(image_id=8), "belongs to photo 8, which the file does not list"),
        (lambda c: c["categories"].clear(), "has no category that could be a class"),
        (lambda c: c["categories"][0].update(id="cat"), "entry 0 of 'categories' has the id 'cat'; give it a number"),
        (lambda c: c["images"][0].update(id=[1]), "entry 0 of 'images' has the id [1]; give it a number"),
    ],
)
def test_files_that_contradict_themselves(tmp_path: Path, change: Any, text: str) -> None:
    one(tmp_path, box(0, 0, 2, 2))
    content = json.loads((tmp_path / "one.json").read_text())
    change(content)
    (tmp_path / "one.json").write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        CocoSet(tmp_path / "one.json")
    assert text in str(caught.value)


def test_files_that_are_no_coco_files(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(DataError, match=r"a\.json: is not JSON"):
        CocoSet(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[1, 2]")
    with pytest.raises(DataError, match="has no list 'images', so it is not a COCO file"):
        CocoSet(tmp_path / "a.json")
    dataset = one(tmp_path, box(0, 0, 2, 2), category_id=99)
    with pytest.raises(DataError, match="annotation 5 has category 99, which the file does not list"):
        dataset.mask(0)
