"""Results in the formats of other programs, read by those programs or by what their formats' descriptions say."""

from __future__ import annotations

import json
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from dpseg.adapters import (
    fiftyone_targets,
    post_process_semantic_segmentation,
    to_fiftyone,
    to_fiftyone_detections,
    to_supervision,
)
from dpseg.cli import run
from dpseg.data.coco import CocoSet
from dpseg.errors import ConfigError, MissingExtraError
from dpseg.interchange import brush_mask
from dpseg.large.label_tiff import write_photo_labels
from dpseg.palette import palette
from dpseg.result import Segmentation
from support.pictures import COLOUR_REFERENCES, halves
from support.results import NAMES, segmentation, sofa
from support.strategies import segmentations

Mask = npt.NDArray[np.bool_]

GEO = [
    (33550, 12, 3, (0.5, 0.5, 0.0), True),
    (33922, 12, 6, (0.0, 0.0, 0.0, 400000.0, 5000000.0, 0.0), True),
    (34735, 3, 8, (1, 1, 0, 1, 3072, 0, 1, 32633), True),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every example replaces the files of the one before."""
    return tmp_path_factory.mktemp("results")


def panoptic_ids(picture: Image.Image) -> npt.NDArray[np.int64]:
    """Reads a panoptic map as COCO's description says."""
    return np.asarray(picture).astype(np.int64) @ np.array([1, 256, 65536])


def extremes(count: int) -> Segmentation:
    return segmentation(np.array([[-1, 0], [1, count - 1]]), tuple(f"class {index}" for index in range(count)))


@given(result=segmentations())
@example(result=extremes(255))
@example(result=extremes(256))
@example(result=extremes(847))
@settings(max_examples=40)
def test_labels_come_back_from_png_tiff_and_npz(result: Segmentation, folder: Path) -> None:
    import tifffile

    count, (png, npz) = len(result.names), result.save(folder, "a", ["png", "npz"])
    none = 255 if count <= 255 else 65535
    picture = Image.open(png)
    assert picture.mode == ("P" if count <= 255 else "I;16")
    assert np.array_equal(np.asarray(picture), np.where(result.labels < 0, none, result.labels))
    if count <= 255:
        colours = np.append(palette(count), [[0, 0, 0]], axis=0)  # none is black
        assert np.array_equal(np.asarray(picture.convert("RGB")), colours[result.labels])
    with tifffile.TiffFile(write_photo_labels(folder / "a.tif", result.labels, count)) as file:
        assert file.pages.first.photometric.name == ("PALETTE" if count <= 255 else "MINISBLACK")
        assert np.array_equal(file.asarray(), np.asarray(picture))
    with np.load(npz) as content:
        assert np.array_equal(content["labels"], result.labels)
        assert np.array_equal(content["logits"], result.logits)
        assert tuple(content["names"]) == result.names
        assert content["classes"].tolist() == list(range(count))


# COCO panoptic


@given(result=segmentations())
@settings(max_examples=40)
def test_panoptic_files_give_masks_boxes_and_areas_back(result: Segmentation, folder: Path) -> None:
    picture, file = result.save(folder, "b", ("panoptic",))
    assert (picture.name, file.name) == ("b_panoptic.png", "b_panoptic.json")
    content = json.loads(file.read_text("utf-8"))
    assert [category["name"] for category in content["categories"]] == list(result.names)
    assert all(category["isthing"] == 0 for category in content["categories"])
    (annotation,) = content["annotations"]
    assert annotation["file_name"] == picture.name
    ids = panoptic_ids(Image.open(picture))
    assert set(np.unique(ids)) - {0} == {segment["id"] for segment in annotation["segments_info"]}
    assert np.array_equal(ids == 0, result.labels < 0)
    for segment in annotation["segments_info"]:
        mask = ids == segment["id"]
        assert np.array_equal(mask, result.labels == segment["category_id"] - 1)
        assert segment["area"] == mask.sum()
        rows, columns = np.nonzero(mask)
        left, top, width, height = segment["bbox"]
        assert (left, top) == (columns.min(), rows.min())
        assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)


def test_panoptic_files_are_labels_for_training(tmp_path: Path) -> None:
    result = sofa()
    result.save(tmp_path, "a", ("panoptic",))
    Image.new("RGB", (120, 80)).save(tmp_path / "sofa.jpg")
    dataset = CocoSet(tmp_path / "a_panoptic.json", panoptic=tmp_path)
    assert dataset.class_names == NAMES
    assert np.array_equal(np.where(dataset[0].mask == 255, -1, dataset[0].mask), result.labels)


def many_classes() -> Image.Image:
    labels = np.array([[-1, 0, 254, 255, 256, 69_999]], dtype=np.int32)
    names = tuple(f"name {number}" for number in range(70_000))
    return Segmentation(labels, names, np.zeros((1, 1, 1), np.float32)).panoptic_picture()


def test_panoptic_ids_go_above_two_bytes() -> None:
    assert panoptic_ids(many_classes()).tolist() == [[0, 1, 255, 256, 257, 70_000]]


# Label Studio


def unpacked(data: list[int]) -> npt.NDArray[np.uint8]:
    """Reads rle-pack, as its description says: literal runs and repeated values."""
    bits = "".join(f"{value:08b}" for value in data)
    at = 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    total, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        repeated = read(1)
        length = read(sizes[read(2)]) + 1
        values += [read(word)] * length if repeated else [read(word) for _ in range(length)]
    assert len(values) == total
    assert len(bits) - at < 8
    return np.array(values, dtype=np.uint8)


@given(
    mask=arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=24), elements=st.booleans(), fill=st.nothing())
)
@example(mask=np.zeros((300, 400), dtype=bool))  # a run that is longer than 16 bits can say
@example(mask=np.repeat(np.arange(60) % 2 == 1, np.arange(60) ** 2 + 1)[None])  # runs of every length
@example(mask=np.random.default_rng(0).random((37, 53)) < 0.5)
@settings(max_examples=25)
def test_brush_masks_are_read_back(mask: Mask) -> None:
    expected = np.repeat(mask[..., None], 4, axis=-1).ravel() * 255
    assert np.array_equal(unpacked(brush_mask(mask)), expected)
    sdk = find_spec("label_studio_sdk")
    if sdk is not None and sdk.submodule_search_locations:  # its own reader, without the rest of it
        brush = runpy.run_path(str(Path(sdk.submodule_search_locations[0], "converter", "brush.py")))
        assert np.array_equal(brush["decode_rle"](brush_mask(mask)), expected)


@given(result=segmentations())
@settings(max_examples=25)
def test_label_studio_gets_a_brush_for_each_class(result: Segmentation, folder: Path) -> None:
    (path,) = result.save(folder, "c", ("labelstudio",))
    (task,) = json.loads(path.read_text("utf-8"))
    assert task["data"] == {"image": "photo.jpg"}
    regions = task["predictions"][0]["result"]
    assert [region["value"]["brushlabels"] for region in regions] == [[name] for name in result.areas]
    height, width = result.labels.shape
    for region in regions:
        (name,) = region["value"]["brushlabels"]
        assert (region["type"], region["from_name"], region["to_name"]) == ("brushlabels", "tag", "image")
        assert (region["original_width"], region["original_height"]) == (width, height)
        alpha = unpacked(region["value"]["rle"]).reshape(height, width, 4)[..., 3]
        assert np.array_equal(alpha > 0, result.mask(name))
        assert region["score"] == pytest.approx(result.confidences[name], abs=1e-4)


# supervision, FiftyOne and transformers


def test_supervision_gets_detections() -> None:
    supervision = pytest.importorskip("supervision")
    result = sofa()
    found = to_supervision(result)
    assert isinstance(found, supervision.Detections)
    assert found.data["class_name"].tolist() == ["couch", "wall", "cat"]
    assert found.class_id.tolist() == [1, 2, 0]
    assert found.confidence == pytest.approx(list(result.confidences.values()))
    for index, mask in zip(found.class_id, found.mask, strict=True):
        assert np.array_equal(mask, result.labels == index)
    assert np.array_equal(supervision.mask_to_xyxy(found.mask)[:, :2], found.xyxy[:, :2])
    drawn = supervision.MaskAnnotator().annotate(np.zeros((80, 120, 3), np.uint8), found)
    assert drawn[20, 20].any()
    cats = to_supervision(result, by_region=True)
    assert [found.tolist() for found in cats.xyxy[cats.class_id == 0]] == [[10, 10, 50, 30], [90, 50, 110, 60]]
    nothing = Segmentation(np.full((4, 4), -1, np.int32), NAMES, np.zeros((4, 1, 1), np.float32))
    assert len(to_supervision(nothing)) == 0


def test_fiftyone_reads_masks_and_instances() -> None:
    fiftyone = pytest.importorskip("fiftyone", reason="no fiftyone here: pip install 'dpseg[fiftyone]'")
    result = sofa()
    sample = fiftyone.Sample(
        filepath="photos/sofa.jpg", seen=to_fiftyone(result), things=to_fiftyone_detections(result)
    )
    assert np.array_equal(sample["seen"].mask.astype(int) - 1, result.labels)
    targets = fiftyone_targets(result.names)
    theirs = sample["seen"].to_detections(mask_targets=targets, mask_types="thing").detections  # regions, its own way
    mine = sample["things"].detections
    assert [one.label for one in mine] == ["couch", "wall", "cat", "cat"]

    def places(detections: list[Any]) -> set[tuple[Any, ...]]:
        return {(one.label, *np.round(np.multiply(one.bounding_box, [120, 80, 120, 80]))) for one in detections}

    assert places(mine) == places(theirs)
    for one in mine:
        drawn = one.to_segmentation(frame_size=(120, 80), target=255).mask
        assert np.array_equal((drawn > 0) & result.mask(one.label), drawn > 0)
        assert one.confidence == pytest.approx(result.confidences[one.label])


def test_fiftyones_values_are_named() -> None:
    assert fiftyone_targets(NAMES) == {1: "cat", 2: "couch", 3: "wall", 4: "dog"}


@pytest.mark.parametrize(
    ("package", "adapt"),
    [("supervision", to_supervision), ("fiftyone", to_fiftyone), ("fiftyone", to_fiftyone_detections)],
)
def test_a_missing_library_is_said(package: str, adapt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'dpseg\[{package}\]'"):
        adapt(sofa())


SIZES = [None, [(40, 60), (31, 17)], torch.tensor([[40, 60], [31, 17]])]


def random_logits() -> torch.Tensor:
    return torch.randn(2, 5, 9, 13, generator=torch.Generator().manual_seed(0))


@pytest.mark.numeric
@pytest.mark.parametrize("sizes", SIZES)
def test_logits_become_labels_at_the_sizes_asked_for(sizes: Any) -> None:
    logits = random_logits()
    found = post_process_semantic_segmentation(logits, sizes)
    assert [one.dtype for one in found] == [torch.int64] * 2
    for number, labels in enumerate(found):
        expected = logits[number]
        if sizes is not None:
            size = tuple(map(int, sizes[number]))
            expected = torch.nn.functional.interpolate(expected[None], size=size, mode="bilinear")[0]
        assert labels.shape == expected.shape[1:]
        assert (labels == expected.argmax(dim=0)).float().mean() > 0.999  # where two classes tie to the last bit
    with pytest.raises(ConfigError, match="1 target sizes for 2 images"):
        post_process_semantic_segmentation(logits, [(4, 4)])


@pytest.mark.slow
def test_transformers_reads_the_panoptic_map_and_makes_the_same_labels_of_logits() -> None:
    pytest.importorskip("transformers")
    from transformers.image_transforms import rgb_to_id
    from transformers.models.segformer.image_processing_segformer import SegformerImageProcessor

    for picture in (many_classes(), sofa().panoptic_picture()):
        assert np.array_equal(rgb_to_id(np.asarray(picture)), panoptic_ids(picture))
    logits = random_logits()
    for sizes in SIZES:
        plain = None if sizes is None else [tuple(map(int, size)) for size in sizes]
        theirs = SegformerImageProcessor().post_process_semantic_segmentation(SimpleNamespace(logits=logits), plain)
        for one, other in zip(post_process_semantic_segmentation(logits, sizes), theirs, strict=True):
            assert one.shape == other.shape
            assert (one == other).float().mean() > 0.999


# GeoTIFF


def test_a_geotiff_gives_a_geotiff(model: str, workplace: Path) -> None:
    import tifffile

    photo = np.asarray(halves(96, 64))
    tifffile.imwrite("field.tif", photo, photometric="rgb", extratags=GEO)
    Image.fromarray(photo).save("plain.png")
    command = ["predict", "field.tif", "plain.png", "--model", model, *COLOUR_REFERENCES, "--out", "out"]
    assert run([*command, "--format", "tiff,png"]) == 0
    assert len(list(Path("out").iterdir())) == 4
    for stem, tags in (("field", GEO), ("plain", [])):
        with tifffile.TiffFile(f"out/{stem}_labels.tif") as file:
            page = file.pages.first
            assert page.photometric.name == "PALETTE"
            assert np.array_equal(page.asarray(), np.asarray(Image.open(f"out/{stem}_labels.png")))
            for code, _, _, value, _ in GEO:
                assert (code in page.tags) == bool(tags)
                if tags:
                    assert page.tags[code].value == value
            assert (file.geotiff_metadata or {}).get("ProjectedCSTypeGeoKey") == (32633 if tags else None)


def test_tiles_do_not_go_with_the_format_tiff(workplace: Path, refused: Any) -> None:
    said = refused("predict", "photos", "--text", "cat", "--tile", "64", "--format", "tiff")
    assert "the labels are a TIFF already; give the format 'png'" in said
