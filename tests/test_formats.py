"""Results in the formats of other programs, read by those programs or by what their formats' descriptions say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
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
from dpseg.palette import palette
from dpseg.result import Segmentation
from support.batch_photos import write_model

NAMES = ("cat", "couch", "wall", "dog")
GEO = [
    (33550, 12, 3, (0.5, 0.5, 0.0), True),
    (33922, 12, 6, (0.0, 0.0, 0.0, 400000.0, 5000000.0, 0.0), True),
    (34735, 3, 8, (1, 1, 0, 1, 3072, 0, 1, 32633), True),
]


@pytest.fixture
def result() -> Segmentation:
    """80 x 120: two cats, a couch on the lower half, wall above, a strip of none on the right; no dog."""
    labels = np.full((80, 120), 2, dtype=np.int32)
    labels[40:] = 1
    labels[10:30, 10:50] = 0
    labels[50:60, 90:110] = 0
    labels[:, 116:] = -1
    logits = np.where(labels[::2, ::2] == np.arange(4)[:, None, None], 4.0, -4.0).astype(np.float32)
    return Segmentation(labels, NAMES, logits, Image.new("RGB", (120, 80)), "photos/sofa.jpg")


# Palette PNG


def test_the_palette_png_is_read_with_indices_and_colours(result: Segmentation, tmp_path: Path) -> None:
    (path,) = result.save(tmp_path, formats=("png",))
    picture = Image.open(path)
    assert picture.mode == "P"
    values = np.asarray(picture).astype(int)
    assert np.array_equal(np.where(values == 255, -1, values), result.labels)
    assert picture.convert("RGB").getpixel((20, 20)) == tuple(palette(4)[0].tolist())


# COCO panoptic


def test_panoptic_files_are_read_by_others(result: Segmentation, tmp_path: Path) -> None:
    rgb_to_id = pytest.importorskip("transformers.image_transforms").rgb_to_id
    picture, file = result.save(tmp_path, "a", ("panoptic",))
    assert (picture.name, file.name) == ("a_panoptic.png", "a_panoptic.json")
    content = json.loads(file.read_text())
    assert [category["name"] for category in content["categories"]] == list(NAMES)
    assert all(category["isthing"] == 0 for category in content["categories"])
    (annotation,) = content["annotations"]
    assert annotation["file_name"] == picture.name
    ids = rgb_to_id(np.asarray(Image.open(picture)))
    assert set(np.unique(ids)) == {0, *(segment["id"] for segment in annotation["segments_info"])}
    for segment in annotation["segments_info"]:
        mask = ids == segment["id"]
        assert np.array_equal(mask, result.labels == segment["category_id"] - 1)
        assert segment["area"] == mask.sum()
        rows, columns = np.nonzero(mask)
        left, top, width, height = segment["bbox"]
        assert (left, top) == (columns.min(), rows.min())
        assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)


def test_panoptic_files_are_labels_for_training(result: Segmentation, tmp_path: Path) -> None:
    result.save(tmp_path, "a", ("panoptic",))
    Image.new("RGB", (120, 80)).save(tmp_path / "sofa.jpg")
    dataset = CocoSet(tmp_path / "a_panoptic.json", panoptic=tmp_path)
    assert dataset.class_names == NAMES
    assert np.array_equal(np.where(dataset[0].mask == 255, -1, dataset[0].mask), result.labels)


def test_panoptic_ids_above_a_byte() -> None:
    rgb_to_id = pytest.importorskip("transformers.image_transforms").rgb_to_id
    labels = np.array([[-1, 0, 254, 255, 256, 69_999]], dtype=np.int32)
    names = tuple(f"name {number}" for number in range(70_000))
    picture = Segmentation(labels, names, np.zeros((1, 1, 1), np.float32)).panoptic_picture()
    assert rgb_to_id(np.asarray(picture)).tolist() == [[0, 1, 255, 256, 257, 70_000]]


# Label Studio


def unpacked(data: list[int]) -> np.ndarray:
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


def label_studio_reader() -> ModuleType | None:
    """Returns the module of Label Studio's SDK that reads brush masks, without the rest of it; None: not installed."""
    found = importlib.util.find_spec("label_studio_sdk")
    if found is None or not found.submodule_search_locations:
        return None
    file = Path(found.submodule_search_locations[0]) / "converter" / "brush.py"
    spec = importlib.util.spec_from_file_location("brush", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["noise", "nothing", "blocks"])
def test_brush_masks_are_read_back(kind: str) -> None:
    draw = np.random.default_rng(0)
    mask = draw.random((37, 53)) < 0.5
    if kind == "nothing":  # a run that is longer than 16 bits can say
        mask = np.zeros((300, 400), dtype=bool)
    elif kind == "blocks":  # runs of every length
        mask = np.repeat(np.arange(60) % 2 == 1, np.arange(60) ** 2 + 1)[None]
    expected = np.repeat(mask[..., None], 4, axis=-1).ravel() * 255
    assert np.array_equal(unpacked(brush_mask(mask)), expected)
    reader = label_studio_reader()
    if reader is not None:
        assert np.array_equal(reader.decode_rle(brush_mask(mask)), expected)


def test_label_studio_gets_a_brush_for_each_class(result: Segmentation, tmp_path: Path) -> None:
    (path,) = result.save(tmp_path, formats=("labelstudio",))
    (task,) = json.loads(path.read_text())
    assert task["data"] == {"image": "sofa.jpg"}
    regions = task["predictions"][0]["result"]
    assert [region["value"]["brushlabels"] for region in regions] == [["couch"], ["wall"], ["cat"]]
    for region in regions:
        assert (region["type"], region["from_name"], region["to_name"]) == ("brushlabels", "tag", "image")
        assert (region["original_width"], region["original_height"]) == (120, 80)
        alpha = unpacked(region["value"]["rle"]).reshape(80, 120, 4)[..., 3]
        assert np.array_equal(alpha > 0, result.mask(region["value"]["brushlabels"][0]))
        assert 0 < region["score"] <= 1


# supervision, FiftyOne and transformers


def test_supervision_gets_detections(result: Segmentation, monkeypatch: pytest.MonkeyPatch) -> None:
    supervision = pytest.importorskip("supervision")
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
    monkeypatch.setitem(__import__("sys").modules, "supervision", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dpseg\[supervision\]'"):
        to_supervision(result)


def test_fiftyone_reads_masks_and_instances(result: Segmentation) -> None:
    fiftyone = pytest.importorskip("fiftyone", reason="no fiftyone here: pip install 'dpseg[fiftyone]'")
    sample = fiftyone.Sample(
        filepath="photos/sofa.jpg", seen=to_fiftyone(result), things=to_fiftyone_detections(result)
    )
    assert np.array_equal(sample["seen"].mask.astype(int) - 1, result.labels)
    targets = fiftyone_targets(result.names)
    assert targets == {1: "cat", 2: "couch", 3: "wall", 4: "dog"}
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


def test_a_missing_fiftyone_is_said(result: Segmentation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fiftyone", None)
    for adapt in (to_fiftyone, to_fiftyone_detections):
        with pytest.raises(MissingExtraError, match=r"pip install 'dpseg\[fiftyone\]'"):
            adapt(result)


@pytest.mark.parametrize("sizes", [None, [(40, 60), (31, 17)], torch.tensor([[40, 60], [31, 17]])])
def test_logits_become_labels_as_in_transformers(sizes: Any) -> None:
    segformer = pytest.importorskip("transformers.models.segformer.image_processing_segformer")
    logits = torch.randn(2, 5, 9, 13, generator=torch.Generator().manual_seed(0))
    processor = segformer.SegformerImageProcessor()
    theirs = processor.post_process_semantic_segmentation(
        SimpleNamespace(logits=logits), None if sizes is None else [tuple(map(int, size)) for size in sizes]
    )
    ours = post_process_semantic_segmentation(logits, sizes)
    assert [one.dtype for one in ours] == [torch.int64] * 2
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        assert (one == other).float().mean() > 0.999  # where two classes tie to the last bit
    with pytest.raises(ConfigError, match="1 target sizes for 2 images"):
        post_process_semantic_segmentation(logits, [(4, 4)])


# GeoTIFF


def test_a_geotiff_gives_a_geotiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPSEG_CACHE", str(tmp_path / "cache"))
    model, prompts = write_model(tmp_path)
    photo = np.full((64, 96, 3), (220, 30, 20), np.uint8)
    photo[:, 48:] = 20, 40, 220
    tifffile.imwrite("field.tif", photo, photometric="rgb", extratags=GEO)
    Image.fromarray(photo).save("plain.png")
    command = ["predict", "field.tif", "plain.png", "--model", model, "--prompts", prompts, "--out", "out"]
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


def test_formats_of_tiles_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    assert run(["predict", str(tmp_path / "a.png"), "--text", "cat", "--tile", "64", "--format", "tiff"]) == 2
    assert "the labels are a TIFF already; give the format 'png'" in capsys.readouterr().err
