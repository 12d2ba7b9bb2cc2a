import errno
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dpseg import files
from dpseg.errors import ConfigError, OutputError, PromptError
from dpseg.palette import palette
from dpseg.result import FORMATS, Segmentation

NAMES = ("cat", "couch", "wall", "dog")


def make(labels: np.ndarray, names: tuple[str, ...] = NAMES, **fields) -> Segmentation:
    """A segmentation with logits of 4 where a label is, at half the size, and -4 elsewhere."""
    coarse = labels[::2, ::2]
    logits = np.where(coarse == np.arange(len(names))[:, None, None], 4.0, -4.0).astype(np.float32)
    return Segmentation(labels=labels.astype(np.int32), names=names, logits=logits, **fields)


@pytest.fixture
def result() -> Segmentation:
    """An 80 x 120 photo: two cats of 800 and 200 pixels, a couch on the lower half, wall above, a strip of none."""
    labels = np.full((80, 120), 2)
    labels[40:] = 1
    labels[10:30, 10:50] = 0
    labels[50:60, 90:110] = 0
    labels[:, 116:] = -1
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8))
    return make(
        labels, image=image, source="photos/sofa.jpg", prompts=(("text",), ("text", "bank"), ("text",), ("reference",))
    )


# Values


def test_areas_are_shares_of_the_photo_of_what_was_found_largest_first(result):
    assert list(result.areas) == ["couch", "wall", "cat"]
    assert result.areas["cat"] == pytest.approx(1000 / 9600)
    assert sum(result.areas.values()) == pytest.approx(1 - 4 / 120)


def test_scores_are_sigmoids_of_the_resized_logits(result):
    scores = result.scores
    assert scores.shape == (4, 80, 120)
    assert scores.dtype == np.float32
    assert scores[0, 20, 30] == pytest.approx(1 / (1 + np.exp(-4)), abs=1e-6)
    assert scores[0, 75, 5] == pytest.approx(1 / (1 + np.exp(4)), abs=1e-6)
    between = torch.from_numpy(result.logits)[None]
    expected = torch.nn.functional.interpolate(between, size=(80, 120), mode="bilinear").sigmoid()[0]
    assert np.allclose(scores, expected.numpy(), atol=1e-6)


def test_scores_stay_finite_where_a_class_was_not_decoded(result):
    logits = result.logits.copy()
    logits[3] = -np.inf
    logits[0, 0, 0] = -np.inf
    scores = replace(result, logits=logits).scores
    assert np.isfinite(scores).all()
    assert scores[3].max() < 1e-6


def test_confidences_are_mean_scores_over_the_class_own_pixels(result):
    assert list(result.confidences) == list(result.areas)
    for name, confidence in result.confidences.items():
        assert confidence == pytest.approx(result.scores[NAMES.index(name)][result.mask(name)].mean(), abs=1e-5)


def test_mask_of_a_class_found_of_one_not_found_and_of_one_unknown(result):
    assert np.array_equal(result.mask("cat"), result.labels == 0)
    assert result.mask("dog").shape == (80, 120)
    assert not result.mask("dog").any()
    with pytest.raises(PromptError, match=r"^'couhc' is not among .*; did you mean 'couch'\?$"):
        result.mask("couhc")


def test_repr_says_what_was_found(result):
    assert repr(result) == "Segmentation(120 x 80: couch 46.2%, wall 40.0%, cat 10.4%)"
    assert "nothing found" in repr(make(np.full((4, 4), -1)))


# Files


def test_save_writes_the_three_usual_files(result, tmp_path):
    written = result.save(tmp_path / "new" / "folder")
    assert [path.name for path in written] == ["sofa_labels.png", "sofa_result.json", "sofa_overlay.png"]
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == sorted(
        path.name for path in written
    )
    assert Image.open(written[2]).convert("RGB").tobytes() == result.plot().tobytes()


def test_label_map_keeps_label_values_and_overlay_colours(result, tmp_path):
    picture = Image.open(result.save(tmp_path, formats=["png"])[0])
    assert picture.mode == "P"
    assert np.array_equal(np.asarray(picture), np.where(result.labels < 0, 255, result.labels))
    assert picture.convert("RGB").getpixel((20, 20)) == tuple(palette(4)[0])
    assert picture.convert("RGB").getpixel((119, 0)) == (0, 0, 0)


@pytest.mark.parametrize(("count", "mode", "none"), [(255, "P", 255), (256, "I;16", 65535), (847, "I;16", 65535)])
def test_label_map_is_sixteen_bit_when_eight_cannot_hold_it(tmp_path, count, mode, none):
    labels = np.array([[-1, 0], [1, count - 1]])
    result = make(labels, tuple(f"class {i}" for i in range(count)))
    picture = Image.open(result.save(tmp_path, "many", ["png"])[0])
    assert picture.mode == mode
    assert np.asarray(picture).tolist() == [[none, 0], [1, count - 1]]


def test_json_lists_what_was_found(result, tmp_path):
    content = json.loads(result.save(tmp_path, "x", ["json"])[0].read_text(encoding="utf-8"))
    assert (content["width"], content["height"], content["source"]) == (120, 80, "photos/sofa.jpg")
    assert [entry["name"] for entry in content["classes"]] == ["couch", "wall", "cat"]
    cat = content["classes"][2]
    assert (cat["index"], cat["prompts"], cat["color"]) == (0, ["text"], palette(4)[0].tolist())
    assert cat["area"] == pytest.approx(1000 / 9600, abs=1e-6)
    assert cat["confidence"] == pytest.approx(result.confidences["cat"], abs=1e-4)
    assert content["none"] == pytest.approx(4 / 120, abs=1e-6)
    assert content["names"] == list(NAMES)


def test_npz_holds_labels_logits_and_names(result, tmp_path):
    with np.load(result.save(tmp_path, formats=["npz"])[0]) as content:
        assert np.array_equal(content["labels"], result.labels)
        assert np.array_equal(content["logits"], result.logits)
        assert tuple(content["names"]) == NAMES


def test_names_in_other_scripts_survive_json(tmp_path):
    path = make(np.zeros((4, 4)), ("猫", "straße")).save(tmp_path, formats=["json"])[0]
    assert json.loads(path.read_text(encoding="utf-8"))["classes"][0]["name"] == "猫"


def test_unknown_format_is_refused_before_anything_is_written(result, tmp_path):
    with pytest.raises(ConfigError, match=r"^format 'overlya' is unknown; did you mean 'overlay'\?$"):
        result.save(tmp_path / "out", formats=["png", "overlya"])
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_folders_place_is_one_clear_line(result, tmp_path):
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(OutputError) as info:
        result.save(tmp_path / "out")
    assert str(info.value).startswith(f"{tmp_path / 'out'}: cannot be written")
    assert "\n" not in str(info.value)
    with pytest.raises(OutputError, match="cannot be written"):
        files.write_atomically(tmp_path / "out" / "below.txt", b"")


def test_a_full_disk_leaves_the_old_file_and_no_remains(result, tmp_path, monkeypatch):
    old = result.save(tmp_path, formats=["png"])[0]
    before = old.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OutputError, match=r"sofa_labels.png: the disk is full; free some space"):
        make(np.zeros((80, 120)), source="sofa.jpg").save(tmp_path, formats=["png"])
    assert [path.name for path in tmp_path.iterdir()] == ["sofa_labels.png"]
    assert old.read_bytes() == before


def test_an_interrupt_leaves_no_remains(result, tmp_path, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        result.save(tmp_path, formats=["json"])
    assert list(tmp_path.iterdir()) == []


# COCO


def test_coco_is_read_by_pycocotools_and_gives_the_masks_back(result, tmp_path):
    from pycocotools.coco import COCO

    coco = COCO(str(result.save(tmp_path, formats=["coco"])[0]))
    assert coco.loadImgs(1)[0]["file_name"] == "sofa.jpg"
    assert [entry["name"] for entry in coco.loadCats(coco.getCatIds())] == list(NAMES)
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=1))
    assert len(annotations) == 3
    for annotation in annotations:
        name = NAMES[annotation["category_id"] - 1]
        assert np.array_equal(coco.annToMask(annotation).astype(bool), result.mask(name))
        assert annotation["area"] == result.mask(name).sum()
        assert annotation["score"] == pytest.approx(result.confidences[name], abs=1e-4)
    cat = next(entry for entry in annotations if entry["category_id"] == 1)
    assert cat["bbox"] == [10, 10, 100, 50]


def test_coco_by_region_separates_the_two_cats(result):
    cats = [entry for entry in result.to_coco(by_region=True)["annotations"] if entry["category_id"] == 1]
    assert [entry["area"] for entry in cats] == [800, 200]
    assert [entry["bbox"] for entry in cats] == [[10, 10, 40, 20], [90, 50, 20, 10]]
    json.dumps(cats)


def test_notebooks_and_show_get_the_overlay(result, monkeypatch):
    shown = []
    monkeypatch.setattr(Image.Image, "show", lambda image: shown.append(image.size))
    result.show()
    assert shown == [result.plot().size]
    assert result._repr_png_().startswith(b"\x89PNG")


def test_every_format_has_an_ending_of_its_own(result, tmp_path):
    written = result.save(tmp_path, "stem", tuple(FORMATS))
    assert len({path.name for path in written}) == len(FORMATS) + 1 == 8  # the panoptic one is two files
