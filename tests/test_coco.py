"""COCO files: outlines as COCO and label tools write them, drawn as a plain count says, and panoptic maps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from pycocotools import mask as cocomask

from dpseg.data.coco import CocoSet
from dpseg.data.coco_shapes import decode, to_shape
from dpseg.errors import DataError, ImageError
from support.coco_files import box, image, objects, photo, write
from support.labelled_set import save


def rewrite(file: Path, change: Callable[[Any], object]) -> Path:
    """Changes the content of a JSON file."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return file


def drawn(segmentation: Any, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Draws an outline on a photo of a size, and looks whether its area is that of what is drawn."""
    found = to_shape({"category_id": 3, "segmentation": segmentation}, *shape, "one.json")
    assert found is not None
    pixels = decode(found)
    assert (found.category, found.area) == (3, pixels.sum())
    return pixels


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_run_lengths_in_either_spelling_are_the_pixels(pixels: NDArray[np.bool_]) -> None:
    compressed = cocomask.encode(np.asfortranarray(pixels.astype(np.uint8)))
    flat = pixels.ravel(order="F")
    ends = [*np.flatnonzero(flat[1:] != flat[:-1]) + 1, len(flat)]
    counts = np.diff([0, *([0] if flat[0] else []), *ends]).tolist()  # they begin with the pixels outside
    for spelling in (compressed["counts"].decode(), counts):
        assert np.array_equal(drawn({"size": list(pixels.shape), "counts": spelling}, pixels.shape), pixels)


SIDES = st.integers(1, 12)
PLACES = st.one_of(st.integers(-3, 15), st.sampled_from([-(10**12), 10**12]))
SPANS = st.lists(PLACES, min_size=2, max_size=2, unique=True).map(sorted)


@given(SIDES, SIDES, st.lists(st.tuples(SPANS, SPANS), min_size=1))
def test_boxes_are_the_pixels_between_their_sides_wherever_they_end(height: int, width: int, boxes: Any) -> None:
    expected = np.zeros((height, width), bool)
    for (left, right), (top, bottom) in boxes:
        expected[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
    polygons = [box(left, top, right, bottom)[0] for (left, right), (top, bottom) in boxes]
    assert np.array_equal(drawn(polygons, (height, width)), expected)


@given(st.lists(st.tuples(st.floats(-5, 25), st.floats(-5, 25)), min_size=3, max_size=3))
def test_of_a_triangle_the_pixels_well_inside_are_drawn_and_those_well_outside_are_not(
    corners: list[tuple[float, float]],
) -> None:
    pixels = drawn([[value for corner in corners for value in corner]], (20, 20))
    y, x = np.mgrid[:20, :20] + 0.5
    sides = []
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        length = max(np.hypot(bx - ax, by - ay), 1e-9)
        sides.append(((bx - ax) * (y - ay) - (by - ay) * (x - ax)) / length)  # distance from the line, with a sign
    inside = np.maximum(np.min(sides, axis=0), np.min(np.negative(sides), axis=0))
    assert pixels[inside > 1].all()
    assert not pixels[inside < -1].any()


def test_instances_with_gaps_in_the_ids_lie_in_front_of_larger_ones(tmp_path: Path) -> None:
    for stem in ("000000000139", "000000000285"):
        photo(tmp_path / "val2017" / f"{stem}.jpg")
    crowd = {"size": [4, 8], "counts": [24, 8]}
    outlines = [(90, box(1, 1, 3, 3), 0), (1, box(0, 0, 4, 4), 0), (13, crowd, 1)]
    file = write(
        tmp_path / "annotations" / "instances_val2017.json",
        [image(285, "000000000285.jpg"), image(139, "000000000139.jpg")],
        [{"id": 13, "name": "stop sign"}, {"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}],
        [
            {"id": number, "image_id": 139, "category_id": category, "segmentation": outline, "iscrowd": crowded}
            for number, (category, outline, crowded) in enumerate(outlines)
        ],
    )
    dataset = CocoSet(file)
    assert dataset.class_names == ("background", "person", "stop sign", "toothbrush")
    assert dataset.background_line0
    assert (dataset.ignore_index, dataset.root) == (255, tmp_path)
    assert dataset.stems == ("000000000285", "000000000139")
    assert dataset.image_paths[1] == tmp_path / "val2017" / "000000000139.jpg"
    # The toothbrush comes first in the file, but it is smaller and so in front of the person. 24 pixels are 6 columns.
    ends, middle = [1, 1, 1, 1, 0, 0, 2, 2], [1, 3, 3, 1, 0, 0, 2, 2]
    assert dataset[1].mask.tolist() == [ends, middle, middle, ends]
    assert not dataset[0].mask.any()


def test_of_equal_objects_the_later_is_in_front_and_background_is_class_0(tmp_path: Path) -> None:
    dataset = CocoSet(objects(tmp_path, ("left", box(0, 0, 4, 4)), ("right", box(2, 0, 6, 4))))
    assert dataset.mask(0)[0].tolist() == [1, 1, 2, 2, 2, 2, 0, 0]
    dataset = CocoSet(objects(tmp_path, ("cat", box(0, 0, 8, 4)), ("Background", box(0, 0, 2, 4))))
    assert dataset.class_names == ("background", "cat")
    assert dataset.mask(0)[0].tolist() == [0, 0, 1, 1, 1, 1, 1, 1]


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
def test_outlines_that_cannot_be_drawn_are_named(tmp_path: Path, segmentation: Any, text: str) -> None:
    dataset = CocoSet(objects(tmp_path, ("cat", segmentation)))
    with pytest.raises(DataError) as caught:
        dataset.mask(0)
    assert text in str(caught.value)
    assert "one.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sizes_are_compared_limited_and_may_be_left_out(tmp_path: Path) -> None:
    dataset = CocoSet(objects(tmp_path, ("cat", box(0, 0, 2, 2))))
    photo(tmp_path / "a.jpg", (4, 8))
    with pytest.raises(DataError, match="is 8 x 4 but its photo is 4 x 8"):
        dataset[0]
    assert CocoSet(rewrite(dataset.file, lambda c: c["images"][0].pop("width")))[0].mask.shape == (8, 4)
    rewrite(dataset.file, lambda c: c["images"][0].update(width=10**6, height=10**6))
    with pytest.raises(DataError, match="photo 'a' of 1000000 x 1000000 pixels is too large"):
        CocoSet(dataset.file).mask(0)


def test_photos_that_are_missing_or_ambiguous_are_named_and_none_is_outside_the_folder(tmp_path: Path) -> None:
    dataset = CocoSet(objects(tmp_path, ("cat", box(0, 0, 2, 2))))
    (tmp_path / "a.jpg").unlink()
    assert dataset.mask(0).shape == (4, 8)
    with pytest.raises(DataError, match=r"a\.jpg' is missing; give the folder of the photos of one\.json"):
        dataset[0]
    photo(tmp_path / "x" / "a.jpg")
    assert CocoSet(dataset.file)[0].image.size == (8, 4)
    photo(tmp_path / "y" / "a.jpg")
    with pytest.raises(DataError, match=r"'a\.jpg' fits"):
        CocoSet(dataset.file)
    assert CocoSet(dataset.file, tmp_path / "y").image_paths == (tmp_path / "y" / "a.jpg",)
    photo(tmp_path / "secret.jpg")
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
def test_files_that_contradict_themselves_are_refused(
    tmp_path: Path, change: Callable[[Any], object], text: str
) -> None:
    file = rewrite(objects(tmp_path, ("cat", box(0, 0, 2, 2))), change)
    with pytest.raises(DataError) as caught:
        CocoSet(file)
    assert text in str(caught.value)


def test_files_that_are_no_coco_files_are_refused(tmp_path: Path) -> None:
    for content, message in (
        ("{", r"a\.json: is not JSON"),
        ("[1, 2]", "has no list 'images', so it is not a COCO file"),
    ):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(DataError, match=message):
            CocoSet(tmp_path / "a.json")
    file = objects(tmp_path, ("cat", box(0, 0, 2, 2)))
    rewrite(file, lambda c: c["annotations"][0].update(category_id=99))
    with pytest.raises(DataError, match="annotation 5 has category 99, which the file does not list"):
        CocoSet(file).mask(0)


def write_panoptic(tmp_path: Path, ids: list[list[int]]) -> Path:
    photo(tmp_path / "val2017" / "000000000139.jpg", (4, 2))
    values = np.array(ids)
    channels = np.stack([values % 256, values // 256 % 256, values // 65536], axis=-1)
    save(tmp_path / "annotations" / "panoptic_val2017" / "000000000139.png", channels)
    segments = [
        {"id": number, "category_id": category, "iscrowd": 0}
        for number, category in ((3226956, 1), (6979964, 1), (300, 199))
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


def test_panoptic_maps_become_classes(tmp_path: Path) -> None:
    dataset = CocoSet(write_panoptic(tmp_path, [[3226956, 6979964, 300, 0], [300, 300, 0, 0]]))
    assert dataset.class_names == ("person", "banner", "wall")
    assert (dataset.background_line0, dataset.ignore_index) == (False, 255)
    assert dataset[0].mask.tolist() == [[0, 0, 2, 255], [2, 2, 255, 255]]
    assert dataset.image_paths == (tmp_path / "val2017" / "000000000139.jpg",)


def test_panoptic_maps_that_do_not_fit_are_named(tmp_path: Path) -> None:
    file = write_panoptic(tmp_path, [[301, 300, 300, 0]] * 2)
    with pytest.raises(DataError, match=r"holds segment 301, which panoptic_val2017\.json does not list"):
        CocoSet(file)[0]
    png = tmp_path / "annotations" / "panoptic_val2017" / "000000000139.png"
    other = file.with_name("other.json")
    other.write_bytes(file.read_bytes())
    rewrite(other, lambda c: c["annotations"][0]["segments_info"][0].pop("category_id"))
    with pytest.raises(DataError, match=r"segments of 000000000139\.png need an id and a category_id"):
        CocoSet(other, panoptic=png.parent)[0]
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
    names = {k: f"c{k}" for k in range(2, 133)} | {1: "person", 200: "rug-merged"}

    def change(content: Any) -> None:
        content["categories"] = [{"id": k, "name": name} for k, name in names.items()]
        content["annotations"][0]["segments_info"][2]["category_id"] = 200

    dataset = CocoSet(rewrite(write_panoptic(tmp_path, [[300, 300, 300, 0]] * 2), change))
    assert len(dataset.class_names) == 133
    assert dataset.class_names[0] == "person, man, woman, child"
    assert dataset[0].mask[0].tolist() == [132, 132, 132, 255]
