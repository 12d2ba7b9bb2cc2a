"""ADE20K as it is distributed, in miniature: which value becomes which class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpseg.data.ade20k import object_indices, open_ade150, open_ade847
from dpseg.data.labelled import MappedSet, shipped_names
from dpseg.data.mask_cache import cache_folder, prepare, with_prepared
from dpseg.errors import DataError, ImageError


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def write_challenge(root: Path) -> Path:
    home = root / "ADEChallengeData2016"
    for number in (1, 2):
        save(home / "images" / "validation" / f"ADE_val_0000000{number}.jpg", np.zeros((2, 4, 3), np.uint8))
        values = np.array([[0, 1, 2, 150], [13, 13, 90, 0]], np.uint8)
        save(home / "annotations" / "validation" / f"ADE_val_0000000{number}.png", values)
    return home


def write_full(root: Path, objects: list[list[int]], size: tuple[int, int] = (4, 2)) -> Path:
    """Writes one photo and its _seg.png, whose red holds the hundreds of the index and a part's number."""
    folder = root / "ADE20K_2021_17_01" / "images" / "ADE" / "validation" / "cultural" / "apse__indoor"
    width, height = size
    save(folder / "ADE_val_00000001.jpg", np.zeros((height, width, 3), np.uint8))
    index = np.array(objects)
    index = np.repeat(np.repeat(index, height // index.shape[0], 0), width // index.shape[1], 1)
    channels = np.stack([index // 256 * 10 + 3, index % 256, index * 0 + 77], axis=-1).astype(np.uint8)
    save(folder / "ADE_val_00000001_seg.png", channels)
    save(folder / "ADE_val_00000001_parts_1.png", channels)
    return root / "ADE20K_2021_17_01"


def test_150_classes_begin_at_1_and_0_is_ignored(tmp_path: Path) -> None:
    home = write_challenge(tmp_path)
    for root in (tmp_path, home):
        dataset = open_ade150(root, "val")
        assert dataset.stems == ("ADE_val_00000001", "ADE_val_00000002")
        assert (len(dataset.class_names), dataset.ignore_index, dataset.background_line0) == (150, 255, False)
        stem, image, mask = dataset[0]
        assert (stem, image.size) == ("ADE_val_00000001", (4, 2))
        assert mask.tolist() == [[255, 0, 1, 149], [12, 12, 89, 255]]
        assert mask.dtype == np.int32
    assert [dataset.class_names[k].split(",")[0] for k in (0, 12, 89, 149)] == ["wall", "person", "tv", "flag"]


def test_150_refuses_other_values(tmp_path: Path) -> None:
    home = write_challenge(tmp_path)
    save(home / "annotations" / "validation" / "ADE_val_00000001.png", np.array([[0, 151, 255, 3]] * 2, np.uint8))
    with pytest.raises(DataError, match=r"ADE_val_00000001\.png' holds the values 151, 255, which a150 does not have"):
        open_ade150(tmp_path, "val")[0]


def test_150_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"ADEChallengeData2016' is missing; unpack ADEChallengeData2016\.zip"
    ) as caught:
        open_ade150(tmp_path, "val")
    assert "\n" not in str(caught.value)
    home = write_challenge(tmp_path)
    with pytest.raises(DataError, match=r"training' is missing; unpack ADEChallengeData2016\.zip"):
        open_ade150(tmp_path, "train")
    with pytest.raises(DataError, match=r"no split 'vall'; did you mean 'val'"):
        open_ade150(tmp_path, "vall")
    (home / "annotations" / "validation" / "ADE_val_00000002.png").unlink()
    with pytest.raises(DataError, match=r"ADE_val_00000002\.png' is missing; unpack ADEChallengeData2016\.zip again"):
        open_ade150(tmp_path, "val")[1]


def test_150_refuses_sizes_that_differ(tmp_path: Path) -> None:
    home = write_challenge(tmp_path)
    save(home / "annotations" / "validation" / "ADE_val_00000001.png", np.zeros((3, 4), np.uint8))
    with pytest.raises(DataError, match="is 4 x 3 but its photo is 4 x 2"):
        open_ade150(tmp_path, "val")[0]


def test_847_reads_the_object_of_red_and_green(tmp_path: Path) -> None:
    write_full(tmp_path, [[2978, 312, 3148, 2420], [0, 1831, 1, 976]])
    dataset = open_ade847(tmp_path, "val")
    assert dataset.stems == ("cultural/apse__indoor/ADE_val_00000001",)
    assert (len(dataset.class_names), dataset.ignore_index) == (847, 65535)
    assert dataset[0].mask.tolist() == [[0, 1, 846, 2], [65535, 11, 65535, 5]]
    assert dataset.pairs.unpaired == ()


def test_847_reduces_photo_and_mask_alike(tmp_path: Path) -> None:
    write_full(tmp_path, [[2978, 3148, 2420]], size=(1536, 1024))
    sample = open_ade847(tmp_path, "val")[0]
    assert sample.image.size == (768, 512)
    assert sample.mask.shape == (512, 768)
    assert sample.mask[0, ::256].tolist() == [0, 846, 2]
    assert set(np.unique(sample.mask)) == {0, 846, 2}


def test_847_lists_agree() -> None:
    indices, names, objects = object_indices(), shipped_names("ade847"), shipped_names("ade847_objects")
    assert len(indices) == len(set(indices)) == len(names) == len(objects) == 847
    assert max(indices) < 26 * 256
    assert objects[0] == "2978 wall"
    assert objects[-1] == "3148 adding machine, totalizer, totaliser"
    for name, line in zip(names, objects, strict=True):
        official = {word.lower() for word in line.split(" ", 1)[1].split(", ")}
        ours = {word.lower() for word in name.split(", ")}
        assert ours <= official | {"terrace", "control board", "trousers", "pants"}, (name, line)
    words = [word.lower() for name in names for word in name.split(", ")]
    assert len(words) == len(set(words))


def test_847_is_prepared_once_and_then_read(tmp_path: Path) -> None:
    home = write_full(tmp_path, [[2978, 312, 3148, 2420], [0, 1831, 1, 976]])
    direct = open_ade847(tmp_path, "val")
    assert with_prepared(direct, "val") is direct
    steps: list[int] = []
    done = prepare(direct, "val", lambda: steps.append(1))
    assert (done.written, done.kept, done.problems, len(steps)) == (1, 0, (), 1)
    assert done.folder.parent == home / "dpseg-masks"
    cached = with_prepared(direct, "val")
    assert cached is not direct
    assert cached.pairs.mask_paths[0].name == "ADE_val_00000001.png"
    assert Image.open(cached.pairs.mask_paths[0]).mode == "I;16"
    assert cached[0].mask.tolist() == [[0, 1, 846, 2], [65535, 11, 65535, 5]]
    assert (prepare(direct, "val").written, prepare(direct, "val").kept) == (0, 1)


def test_prepared_masks_that_do_not_fit_are_not_used(tmp_path: Path) -> None:
    home = write_full(tmp_path, [[2978, 312]])
    direct = open_ade847(tmp_path, "val")
    folder = prepare(direct, "val").folder
    assert isinstance(with_prepared(direct, "val"), MappedSet)
    assert cache_folder(direct, "train") != folder
    assert cache_folder(open_ade150(write_challenge(tmp_path), "val"), "val").name.startswith("a150-val-")
    next(folder.rglob("*.png")).unlink()
    with pytest.raises(DataError, match="is missing; run dpseg data prepare a847 again"):
        with_prepared(direct, "val")[0]
    photo = home / "images" / "ADE" / "validation" / "cultural" / "apse__indoor" / "ADE_val_00000001.jpg"
    (photo.parent / "ADE_val_00000002.jpg").write_bytes(photo.read_bytes())
    more = open_ade847(tmp_path, "val")
    assert with_prepared(more, "val") is more


def test_damaged_masks_are_problems_and_leave_no_index(tmp_path: Path) -> None:
    home = write_full(tmp_path, [[2978, 312]])
    next(home.rglob("*_seg.png")).write_bytes(b"not a picture")
    dataset = open_ade847(tmp_path, "val")
    done = prepare(dataset, "val")
    assert len(done.problems) == 1
    assert "ADE_val_00000001_seg.png" in done.problems[0]
    assert not (done.folder / "index.json").exists()
    with pytest.raises(ImageError):
        dataset[0]
