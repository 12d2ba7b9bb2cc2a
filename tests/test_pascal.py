"""PASCAL VOC 2012 and PASCAL-Context as they are distributed, in miniature."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from dpseg.data.benchmarks import open_dataset
from dpseg.data.labelled import prompts_of, shipped_names
from dpseg.data.mask_cache import prepare
from dpseg.data.pascal import CONTEXT_59, open_context59, open_context459, open_voc20, open_voc20_background
from dpseg.errors import DataError, ImageError

VOC_VALUES = [[0, 1, 2, 20], [15, 15, 255, 0]]
CONTEXT_VALUES = [[1, 2, 9, 458], [284, 0, 397, 459]]


def write_voc(root: Path) -> Path:
    home = root / "VOCdevkit" / "VOC2012"
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (home / part).mkdir(parents=True)
    palette = [value for colour in range(256) for value in (colour, 255 - colour, 7)]
    for stem in ("2007_000033", "2007_000042", "2007_000129"):
        Image.new("RGB", (4, 2)).save(home / "JPEGImages" / f"{stem}.jpg")
        mask = Image.fromarray(np.array(VOC_VALUES, np.uint8)).convert("P")
        mask.putdata([value for row in VOC_VALUES for value in row])
        mask.putpalette(palette)
        mask.save(home / "SegmentationClass" / f"{stem}.png")
    (home / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_000042\n2007_000033\n")
    return home


def write_context(root: Path) -> Path:
    home = root / "VOCdevkit" / "VOC2010"
    for part in ("JPEGImages", "trainval", "ImageSets/Main"):
        (home / part).mkdir(parents=True)
    for stem in ("2008_000002", "2008_000003"):
        Image.new("RGB", (4, 2)).save(home / "JPEGImages" / f"{stem}.jpg")
        savemat(home / "trainval" / f"{stem}.mat", {"LabelMap": np.array(CONTEXT_VALUES, np.uint16), "other": 1})
    (home / "ImageSets" / "Main" / "val.txt").write_text("2008_000002\n2008_000003\n")
    return home


def write_labels(path: Path, changed: dict[int, str]) -> None:
    official = dict(zip(CONTEXT_59, (name.split(",")[0] for name in shipped_names("pc59")), strict=True)) | changed
    path.write_text("".join(f"{value}: {official.get(value, 'x')}\n" for value in range(1, 460)))


def test_voc_without_background(tmp_path: Path) -> None:
    home = write_voc(tmp_path)
    for root in (tmp_path, tmp_path / "VOCdevkit", home):
        dataset = open_voc20(root, "val")
        assert dataset.stems == ("2007_000042", "2007_000033")
        assert (len(dataset.class_names), dataset.ignore_index, dataset.background_line0) == (20, 255, False)
        assert dataset[0].mask.tolist() == [[255, 0, 1, 19], [14, 14, 255, 255]]
    assert prompts_of(dataset) == (dataset.class_names, tuple(range(20)))


def test_voc_with_background_as_the_last_class(tmp_path: Path) -> None:
    write_voc(tmp_path)
    dataset = open_voc20_background(tmp_path, "val")
    assert dataset.class_names[20] == "background"
    assert dataset[0].mask.tolist() == [[20, 0, 1, 19], [14, 14, 255, 20]]
    names, classes = prompts_of(dataset)
    assert len(names) == len(classes) == 59
    assert names[:20] == dataset.class_names[:20]
    assert classes == (*range(20), *[20] * 39)
    rest = [name.split(",")[0] for name in names[20:]]
    assert rest[:3] == ["bag", "bed", "bedclothes"]
    assert "wood" in rest
    assert not {"table", "person", "potted plant", "sofa", "tv monitor", "aeroplane"} & set(rest)


def test_voc_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"VOC2012' is missing; unpack VOCtrainval_11-May-2012\.tar"):
        open_voc20(tmp_path, "val")
    home = write_voc(tmp_path)
    with pytest.raises(DataError, match=r"trainval\.txt' is missing; unpack VOCtrainval_11-May-2012\.tar"):
        open_voc20(tmp_path, "trainval")
    with pytest.raises(DataError, match="no split 'test'; known: train, trainval, val"):
        open_voc20(tmp_path, "test")
    (home / "JPEGImages" / "2007_000042.jpg").unlink()
    with pytest.raises(DataError, match=r"photo '.*2007_000042\.jpg' is missing"):
        open_voc20(tmp_path, "val")[0]


def test_context_has_459_classes_from_1(tmp_path: Path) -> None:
    write_context(tmp_path)
    dataset = open_context459(tmp_path, "val")
    assert dataset.stems == ("2008_000002", "2008_000003")
    assert (len(dataset.class_names), dataset.ignore_index) == (459, 65535)
    assert dataset[0].mask.tolist() == [[0, 1, 8, 457], [283, 65535, 396, 458]]
    names = [name.split(",")[0] for name in dataset.class_names]
    assert [names[k] for k in (0, 1, 8, 283, 396, 457, 458)] == [
        "accordion",
        "aeroplane",
        "bag",
        "person",
        "table",
        "wood",
        "wool",
    ]


def test_context_59_leaves_the_other_400_out(tmp_path: Path) -> None:
    write_context(tmp_path)
    dataset = open_context59(tmp_path, "val")
    assert (len(dataset.class_names), dataset.ignore_index) == (59, 255)
    assert dataset[0].mask.tolist() == [[255, 0, 1, 58], [36, 255, 49, 255]]
    assert dataset.class_names[36].startswith("person")
    assert dataset.class_names[49] == "table"


def test_context_59_and_459_call_the_same_values_the_same() -> None:
    all_names = shipped_names("pc459")
    assert len(set(CONTEXT_59)) == 59
    for value, name in zip(CONTEXT_59, shipped_names("pc59"), strict=True):
        assert all_names[value - 1].split(",")[0] == name.split(",")[0]


def test_context_prefers_lists_made_from_the_detail_file(tmp_path: Path) -> None:
    home = write_context(tmp_path)
    (home / "pascalcontext_val.txt").write_text("2008_000003\n")
    assert open_context59(tmp_path, "val").stems == ("2008_000003",)
    (home / "pascalcontext_val.txt").write_text("\n")
    with pytest.raises(DataError, match="is empty"):
        open_context59(tmp_path, "val")


def test_context_names_what_is_missing(tmp_path: Path) -> None:
    home = write_context(tmp_path)
    (home / "trainval" / "2008_000003.mat").write_bytes(b"MATLAB 5.0 MAT-file, cut off")
    dataset = open_context459(tmp_path, "val")
    with pytest.raises(ImageError, match=r"2008_000003\.mat: cannot be read as a MATLAB file") as caught:
        dataset[1]
    assert "\n" not in str(caught.value)
    savemat(home / "trainval" / "2008_000003.mat", {"Other": 1})
    with pytest.raises(ImageError, match="holds no LabelMap"):
        dataset[1]
    savemat(home / "trainval" / "2008_000003.mat", {"LabelMap": np.full((2, 4), 460)})
    with pytest.raises(DataError, match="holds the values 460, which pc459 does not have"):
        dataset[1]
    for path in (home / "trainval").iterdir():
        path.unlink()
    (home / "trainval").rmdir()
    with pytest.raises(DataError, match=r"trainval' is missing; unpack trainval\.tar\.gz \(PASCAL-Context\)"):
        open_context59(tmp_path, "val")
    with pytest.raises(DataError, match=r"VOC2010' is missing; unpack VOCtrainval_03-May-2010\.tar"):
        open_context59(tmp_path / "trainval", "val")


def test_context_compares_the_names(tmp_path: Path) -> None:
    home = write_context(tmp_path)
    write_labels(home / "labels.txt", {308: "pottedplant", 427: "tv monitor"})
    assert len(open_context459(tmp_path, "val")) == 2
    write_labels(home / "labels.txt", {397: "tablet"})
    with pytest.raises(DataError, match=r"labels\.txt' calls value 397 'tablet', not 'table'"):
        open_context459(tmp_path, "val")


@pytest.mark.parametrize(("name", "mode"), [("pc59", "L"), ("pc459", "I;16")])
def test_prepared_masks_are_used_and_follow_their_sources(tmp_path: Path, name: str, mode: str) -> None:
    home = write_context(tmp_path)
    direct = (open_context59 if name == "pc59" else open_context459)(tmp_path, "val")
    done = prepare(direct, "val")
    assert (done.written, done.kept) == (2, 0)
    assert Image.open(done.folder / "2008_000003.png").mode == mode
    cached = open_dataset(name, tmp_path)
    assert cached.mask(1).tolist() == direct.mask(1).tolist()
    assert cached.mask(1).dtype == np.int32
    # The values of the prepared file are those that are read.
    Image.fromarray(np.full((2, 4), 7, np.uint8 if name == "pc59" else np.uint16)).save(done.folder / "2008_000003.png")
    assert set(open_dataset(name, tmp_path).mask(1).flat) == {7}
    newer = (done.folder / "2008_000003.png").stat().st_mtime + 10
    os.utime(home / "trainval" / "2008_000003.mat", (newer, newer))
    assert (prepare(direct, "val").written, cached.mask(1).tolist()) == (1, direct.mask(1).tolist())
