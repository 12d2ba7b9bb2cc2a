"""The field's benchmarks as they are distributed, in miniature: which value becomes which class."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from dpseg.data.ade20k import object_indices
from dpseg.data.benchmarks import BENCHMARKS, open_benchmark, open_dataset
from dpseg.data.coco_stuff import VALUES
from dpseg.data.labelled import MappedSet, prompts_of, reduced_size, shipped_names
from dpseg.data.mask_cache import cache_folder, prepare, with_prepared
from dpseg.data.pascal import CONTEXT_59
from dpseg.errors import DataError, ImageError
from support.downloads import CONTEXT_MAPS, CONTEXT_STEMS, write_context, write_voc
from support.labelled_set import save

PHOTO = np.zeros((2, 4, 3), np.uint8)
VOC_STEMS = ("2007_000042", "2007_000033")
VOC_MASK = [[0, 1, 2, 20], [15, 15, 255, 0]]
COCO_STEMS = ("000000000139", "000000000285")
ADE_STEM = "cultural/apse__indoor/ADE_val_00000001"


def write_a150(root: Path) -> None:
    for number in (1, 2):
        save(root / f"ADEChallengeData2016/images/validation/ADE_val_0000000{number}.jpg", PHOTO)
        mask = root / f"ADEChallengeData2016/annotations/validation/ADE_val_0000000{number}.png"
        save(mask, [[0, 1, 2, 150], [13, 13, 90, 0]])


def write_a847(
    root: Path,
    objects: tuple[tuple[int, ...], ...] = ((2978, 312, 3148, 2420), (0, 1831, 1, 976)),
    size: tuple[int, int] = (4, 2),
) -> None:
    """Writes a photo and its _seg.png, whose red holds the hundreds of the index and a part's number."""
    photo = root / "ADE20K_2021_17_01" / "images" / "ADE" / "validation" / f"{ADE_STEM}.jpg"
    width, height = size
    index = np.array(objects)
    index = np.repeat(np.repeat(index, height // index.shape[0], 0), width // index.shape[1], 1)
    channels = np.stack([index // 256 * 10 + 3, index % 256, index * 0 + 77], axis=-1)
    save(photo, np.zeros((height, width, 3)))
    save(photo.with_name(f"{photo.stem}_seg.png"), channels)
    save(photo.with_name(f"{photo.stem}_parts_1.png"), channels)


def write_voc20(root: Path) -> None:
    write_voc(root, dict.fromkeys((*VOC_STEMS, "2007_000129"), VOC_MASK), {"val": VOC_STEMS})


def write_coco_stuff(root: Path, images: str = "", maps: str = "stuffthingmaps_trainval2017") -> None:
    for stem in COCO_STEMS:
        save(root / images / "val2017" / f"{stem}.jpg", PHOTO)
        save(root / maps / "val2017" / f"{stem}.png", [[0, 10, 12, 89], [91, 181, 255, 156]])


@dataclass(frozen=True)
class Download:
    """What is written of a benchmark, where it may be opened, and what is read."""

    write: Callable[[Path], None]
    places: tuple[str, ...]
    stems: tuple[str, ...]
    classes: int
    ignored: int
    mask: list[list[int]]
    names: dict[int, str] = field(default_factory=dict)


DOWNLOADS = {
    "a150": Download(
        write_a150, ("", "ADEChallengeData2016"), ("ADE_val_00000001", "ADE_val_00000002"), 150, 255,
        [[255, 0, 1, 149], [12, 12, 89, 255]], {0: "wall", 12: "person", 89: "tv", 149: "flag"},
    ),
    "a847": Download(
        write_a847, ("", "ADE20K_2021_17_01"), (ADE_STEM,), 847, 65535, [[0, 1, 846, 2], [65535, 11, 65535, 5]],
    ),
    "pas20": Download(
        write_voc20, ("", "VOCdevkit", "VOCdevkit/VOC2012"), VOC_STEMS, 20, 255, [[255, 0, 1, 19], [14, 14, 255, 255]],
    ),
    "pas20b": Download(
        write_voc20, ("",), VOC_STEMS, 21, 255, [[20, 0, 1, 19], [14, 14, 255, 20]], {14: "person", 20: "background"},
    ),
    "pc459": Download(
        write_context, ("",), CONTEXT_STEMS, 459, 65535, [[0, 1, 8, 457], [283, 65535, 396, 458]],
        {0: "accordion", 1: "aeroplane", 8: "bag", 283: "person", 396: "table", 457: "wood", 458: "wool"},
    ),
    "pc59": Download(
        write_context, ("",), CONTEXT_STEMS, 59, 255, [[255, 0, 1, 58], [36, 255, 49, 255]],
        {36: "person", 49: "table"},
    ),
    "cocostuff": Download(  # the stop sign has the value 12, as 11 (street sign) was left out
        write_coco_stuff, ("",), COCO_STEMS, 171, 255, [[0, 10, 11, 79], [80, 170, 255, 145]],
        {0: "person", 10: "fire hydrant", 11: "stop sign", 79: "toothbrush", 80: "banner", 145: "sky", 170: "wood"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BENCHMARKS)
def test_values_of_the_official_masks_become_classes(tmp_path: Path, name: str) -> None:
    download = DOWNLOADS[name]
    download.write(tmp_path)
    for place in download.places:
        dataset = open_dataset(name, tmp_path / place)
        assert isinstance(dataset, MappedSet)
        assert (dataset.stems, dataset.pairs.unpaired) == (download.stems, ())
        assert (len(dataset.class_names), dataset.ignore_index) == (download.classes, download.ignored)
        assert not dataset.background_line0
        stem, photo, mask = dataset[0]
        assert (stem, photo.size, mask.dtype) == (download.stems[0], (4, 2), np.int32)
        assert mask.tolist() == download.mask
        assert {k: dataset.class_names[k].split(",")[0] for k in download.names} == download.names
        if name != "pas20b":
            assert prompts_of(dataset) == (dataset.class_names, tuple(range(download.classes)))


def test_the_background_of_voc_is_decoded_as_the_39_other_classes_of_context(tmp_path: Path) -> None:
    write_voc20(tmp_path)
    dataset = open_dataset("pas20b", tmp_path)
    names, classes = prompts_of(dataset)
    assert len(names) == len(classes) == 59
    assert names[:20] == dataset.class_names[:20]
    assert classes == (*range(20), *[20] * 39)
    rest = [name.split(",")[0] for name in names[20:]]
    assert rest[:3] == ["bag", "bed", "bedclothes"]
    assert "wood" in rest
    assert not {"table", "person", "potted plant", "sofa", "tv monitor", "aeroplane"} & set(rest)


def test_of_ade847_photo_and_mask_are_reduced_alike(tmp_path: Path) -> None:
    write_a847(tmp_path, ((2978, 3148, 2420),), size=(1536, 1024))
    sample = open_dataset("a847", tmp_path)[0]
    assert sample.image.size == (768, 512)
    assert sample.mask.shape == (512, 768)
    assert sample.mask[0, ::256].tolist() == [0, 846, 2]
    assert set(np.unique(sample.mask)) == {0, 846, 2}
    assert reduced_size((2048, 1024), 512) == (1024, 512)
    assert reduced_size((683, 1000), 512) == (512, 750)
    assert reduced_size((512, 9000), 512) == (512, 9000)
    assert reduced_size((4000, 3000), None) == (4000, 3000)


def test_lists_of_names_and_values_agree() -> None:
    indices, names, objects = object_indices(), shipped_names("ade847"), shipped_names("ade847_objects")
    assert len(indices) == len(set(indices)) == len(names) == len(objects) == 847
    assert max(indices) < 26 * 256
    assert (objects[0], objects[-1]) == ("2978 wall", "3148 adding machine, totalizer, totaliser")
    for name, line in zip(names, objects, strict=True):
        official = {word.lower() for word in line.split(" ", 1)[1].split(", ")}
        ours = {word.lower() for word in name.split(", ")}
        assert ours <= official | {"terrace", "control board", "trousers", "pants"}, (name, line)
    assert len(set(CONTEXT_59)) == 59
    for value, name in zip(CONTEXT_59, shipped_names("pc59"), strict=True):
        assert shipped_names("pc459")[value - 1].split(",")[0] == name.split(",")[0]
    assert len(VALUES) == 171
    left_out = [value for value in range(182) if value not in VALUES]
    assert left_out == [11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90]


@pytest.mark.parametrize(
    ("images", "maps"), [("images", "annotations"), ("", "annotations"), ("images", "stuffthingmaps"), ("", "")]
)
def test_coco_stuff_in_the_usual_other_places(tmp_path: Path, images: str, maps: str) -> None:
    write_coco_stuff(tmp_path, images, maps)
    assert len(open_dataset("COCOSTUFF", tmp_path)) == 2


@pytest.mark.parametrize(
    ("name", "removed", "split", "message"),
    [
        ("a150", "*", "val", r"ADEChallengeData2016' is missing; unpack ADEChallengeData2016\.zip"),
        ("a150", None, "train", r"training' is missing; unpack ADEChallengeData2016\.zip"),
        ("a150", None, "vall", r"no split 'vall'; did you mean 'val'"),
        ("a150", None, None, "has the splits train, val; name one of them"),
        ("pas20", "*", "val", r"VOC2012' is missing; unpack VOCtrainval_11-May-2012\.tar"),
        ("pas20", None, "trainval", r"trainval\.txt' is missing; unpack VOCtrainval_11-May-2012\.tar"),
        ("pas20", None, "test", "no split 'test'; known: train, trainval, val"),
        ("pc59", "*", "val", r"VOC2010' is missing; unpack VOCtrainval_03-May-2010\.tar"),
        ("pc59", CONTEXT_MAPS, "val", r"trainval' is missing; unpack trainval\.tar\.gz \(PASCAL-Context\)"),
        ("cocostuff", "*", "val", r"val2017' is missing; unpack val2017\.zip \(COCO 2017\)"),
        ("cocostuff", "stuff*", "val", r"val2017' is missing; unpack stuffthingmaps_trainval2017\.zip \(COCO-Stuff\)"),
        ("cocostuff", "val2017/*", "val", r"no photos below .*; unpack val2017\.zip again"),
    ],
)
def test_what_a_download_lacks_is_named(
    tmp_path: Path, name: str, removed: str | None, split: str | None, message: str
) -> None:
    DOWNLOADS[name].write(tmp_path)
    for number, path in enumerate([] if removed is None else sorted(tmp_path.glob(removed))):
        path.rename(tmp_path / f"removed{number}")
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(name, tmp_path, split)
    assert "\n" not in str(caught.value)


def removed(path: Path) -> None:
    path.unlink()


def holding(*values: int) -> Callable[[Path], None]:
    return lambda path: save(path, [values] * 2)


def mapping(**content: object) -> Callable[[Path], None]:
    return lambda path: savemat(path, content)


def damaged(path: Path) -> None:
    path.write_bytes(b"MATLAB 5.0 MAT-file, cut off")


@pytest.mark.parametrize(
    ("name", "file", "change", "error", "message"),
    [
        ("a150", "*2.png", holding(0, 151, 255, 3), DataError, "holds the values 151, 255, which a150 does not have"),
        ("a150", "*2.png", removed, DataError, r"is missing; unpack ADEChallengeData2016\.zip again"),
        ("a150", "*2.png", holding(0, 0, 0, 0, 0), DataError, "is 5 x 2 but its photo is 4 x 2"),
        ("pas20", "*33.jpg", removed, DataError, r"photo '.*2007_000033\.jpg' is missing"),
        (
            "cocostuff",
            "*285.png",
            holding(11, 182, 0, 0),
            DataError,
            "values 11, 182, which cocostuff does not have",
        ),
        ("pc459", "*3.mat", damaged, ImageError, r"2008_000003\.mat: cannot be read as a MATLAB file"),
        ("pc459", "*3.mat", mapping(Other=1), ImageError, "holds no LabelMap"),
        ("pc459", "*3.mat", mapping(LabelMap=[[460] * 4]), DataError, "the values 460, which pc459 does not have"),
    ],
)
def test_a_photo_that_is_missing_or_wrong_is_named_and_the_others_are_read(
    tmp_path: Path, name: str, file: str, change: Callable[[Path], None], error: type[Exception], message: str
) -> None:
    DOWNLOADS[name].write(tmp_path)
    (changed,) = tmp_path.rglob(file)
    change(changed)
    dataset = open_dataset(name, tmp_path)
    assert dataset[0].mask.tolist() == DOWNLOADS[name].mask
    with pytest.raises(error, match=message) as caught:
        dataset[1]
    assert changed.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_context_prefers_lists_made_from_the_detail_file_and_compares_names(tmp_path: Path) -> None:
    write_context(tmp_path)
    home = tmp_path / "VOCdevkit" / "VOC2010"
    (home / "pascalcontext_val.txt").write_text("2008_000003\n")
    assert open_dataset("pc59", tmp_path).stems == ("2008_000003",)
    (home / "pascalcontext_val.txt").write_text("\n")
    with pytest.raises(DataError, match="is empty"):
        open_dataset("pc59", tmp_path)
    (home / "pascalcontext_val.txt").unlink()
    official = dict(zip(CONTEXT_59, (name.split(",")[0] for name in shipped_names("pc59")), strict=True))

    def write_labels(changed: dict[int, str]) -> None:
        lines = (f"{value}: {(official | changed).get(value, 'x')}\n" for value in range(1, 460))
        (home / "labels.txt").write_text("".join(lines))

    write_labels({308: "pottedplant", 427: "tv monitor"})
    assert len(open_dataset("pc459", tmp_path)) == 2
    write_labels({397: "tablet"})
    with pytest.raises(DataError, match=r"labels\.txt' calls value 397 'tablet', not 'table'"):
        open_dataset("pc459", tmp_path)


@pytest.mark.parametrize(("name", "mode"), [("pc59", "L"), ("pc459", "I;16"), ("a847", "I;16")])
def test_masks_are_prepared_once_then_read_and_follow_their_sources(tmp_path: Path, name: str, mode: str) -> None:
    DOWNLOADS[name].write(tmp_path)
    direct, _ = open_benchmark(name, tmp_path, "val")
    assert with_prepared(direct, "val") is direct
    steps: list[int] = []
    done = prepare(direct, "val", lambda: steps.append(1))
    count = len(direct)
    assert (done.written, done.kept, done.problems, len(steps)) == (count, 0, (), count)
    assert done.folder.parent == direct.root / "dpseg-masks"
    assert cache_folder(direct, "train") != done.folder == cache_folder(direct, "val")
    assert done.folder.name.startswith(f"{name}-val-")
    target = done.folder / f"{direct.stems[-1]}.png"
    with Image.open(target) as written:
        assert written.mode == mode
    cached = open_dataset(name, tmp_path)
    assert isinstance(cached, MappedSet)
    assert cached.pairs.mask_paths[-1] == target
    assert cached[count - 1].mask.tolist() == DOWNLOADS[name].mask
    assert cached.mask(0).dtype == np.int32
    assert (prepare(direct, "val").written, prepare(direct, "val").kept) == (0, count)
    save(target, np.full((2, 4), 7, np.uint8 if mode == "L" else np.uint16))  # the prepared file is what is read
    assert set(open_dataset(name, tmp_path).mask(count - 1).flat) == {7}
    newer = target.stat().st_mtime + 10
    os.utime(direct.pairs.mask_paths[-1], (newer, newer))
    assert (prepare(direct, "val").written, cached.mask(count - 1).tolist()) == (1, DOWNLOADS[name].mask)


def test_prepared_masks_that_do_not_fit_are_not_used_and_damaged_ones_are_told(tmp_path: Path) -> None:
    write_a847(tmp_path)
    direct, _ = open_benchmark("a847", tmp_path, "val")
    folder = prepare(direct, "val").folder
    (folder / f"{ADE_STEM}.png").unlink()
    with pytest.raises(DataError, match="is missing; run dpseg data prepare a847 again"):
        with_prepared(direct, "val")[0]
    photo = direct.image_paths[0]
    photo.with_name("ADE_val_00000002.jpg").write_bytes(photo.read_bytes())
    more, _ = open_benchmark("a847", tmp_path, "val")
    assert with_prepared(more, "val") is more
    photo.with_name("ADE_val_00000002.jpg").unlink()
    (folder / "index.json").unlink()
    photo.with_name("ADE_val_00000001_seg.png").write_bytes(b"not a picture")
    done = prepare(direct, "val")
    assert len(done.problems) == 1
    assert "ADE_val_00000001_seg.png" in done.problems[0]
    assert not (done.folder / "index.json").exists()
    with pytest.raises(ImageError):
        direct[0]
