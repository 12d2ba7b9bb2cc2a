"""A segmentation's values, its files and their names, and its COCO file as pycocotools reads it."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dpseg.commands.places import output_places
from dpseg.errors import ConfigError, OutputError, PromptError
from dpseg.files import write_atomically, written_beside
from dpseg.palette import palette
from dpseg.result import FORMATS, Segmentation
from support.results import NAMES, segmentation, sofa
from support.strategies import STEM, segmentations


@pytest.fixture
def result() -> Segmentation:
    return sofa()


# Values


def test_areas_are_shares_of_the_photo_of_what_was_found_largest_first(result: Segmentation) -> None:
    assert list(result.areas) == list(result.confidences) == ["couch", "wall", "cat"]
    assert result.areas["cat"] == pytest.approx(1000 / 9600)
    assert sum(result.areas.values()) == pytest.approx(1 - 4 / 120)
    assert repr(result) == "Segmentation(120 x 80: couch 46.2%, wall 40.0%, cat 10.4%)"
    assert "nothing found" in repr(segmentation(np.full((4, 4), -1)))


@pytest.mark.numeric
def test_scores_are_sigmoids_of_the_resized_logits_and_confidences_their_means(result: Segmentation) -> None:
    scores = result.scores
    assert scores.shape == (4, 80, 120)
    assert scores.dtype == np.float32
    assert scores[0, 20, 30] == pytest.approx(1 / (1 + np.exp(-4)), abs=1e-6)
    assert scores[0, 75, 5] == pytest.approx(1 / (1 + np.exp(4)), abs=1e-6)
    between = torch.from_numpy(result.logits)[None]
    expected = torch.nn.functional.interpolate(between, size=(80, 120), mode="bilinear").sigmoid()[0]
    assert np.allclose(scores, expected.numpy(), atol=1e-6)
    for name, confidence in result.confidences.items():
        assert confidence == pytest.approx(scores[NAMES.index(name)][result.mask(name)].mean(), abs=1e-5)
    logits = result.logits.copy()
    logits[3] = logits[0, 0, 0] = -np.inf  # a class that was not decoded
    scores = replace(result, logits=logits).scores
    assert np.isfinite(scores).all()
    assert scores[3].max() < 1e-6


def test_a_mask_is_of_a_class_found_or_not_found_and_an_unknown_one_is_refused(result: Segmentation) -> None:
    assert np.array_equal(result.mask("cat"), result.labels == 0)
    assert result.mask("dog").shape == (80, 120)
    assert not result.mask("dog").any()
    with pytest.raises(PromptError, match=r"^'couhc' is not among .*; did you mean 'couch'\?$"):
        result.mask("couhc")


def test_notebooks_viewers_and_files_get_the_same_overlay(
    result: Segmentation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[bytes] = []
    monkeypatch.setattr(Image.Image, "show", lambda image: shown.append(image.tobytes()))
    result.show()
    assert shown == [result.plot().tobytes()]
    assert result._repr_png_().startswith(b"\x89PNG")
    written = result.save(tmp_path / "new" / "folder")
    assert [path.name for path in written] == ["sofa_labels.png", "sofa_result.json", "sofa_overlay.png"]
    assert {*(tmp_path / "new" / "folder").iterdir()} == {*written}
    assert Image.open(written[2]).convert("RGB").tobytes() == shown[0]


# Files; the label maps and other formats are in test_formats


def test_json_lists_what_was_found(result: Segmentation) -> None:
    content = json.loads(result.encoded("json"))
    assert (content["width"], content["height"], content["source"]) == (120, 80, "photos/sofa.jpg")
    assert [entry["name"] for entry in content["classes"]] == ["couch", "wall", "cat"]
    cat = content["classes"][2]
    assert (cat["index"], cat["prompts"], cat["color"]) == (0, ["text"], palette(4)[0].tolist())
    assert cat["area"] == pytest.approx(1000 / 9600, abs=1e-6)
    assert cat["confidence"] == pytest.approx(result.confidences["cat"], abs=1e-4)
    assert content["none"] == pytest.approx(4 / 120, abs=1e-6)


@given(result=segmentations(), stem=STEM, named=st.booleans())
@settings(max_examples=25)
def test_names_of_classes_and_files_survive_in_any_script(
    result: Segmentation, stem: str, named: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("out")
    result = replace(result, source=f"photos/{stem}.jpg")
    written = result.save(folder, stem if named else None, tuple(FORMATS))
    assert len(written) == len(FORMATS) + 1  # the panoptic one is two files
    assert {path.name for path in written} == {stem + ending for ending in (*FORMATS.values(), "_panoptic.png")}
    assert {*folder.iterdir()} == {*written}
    content = json.loads(written[1].read_text("utf-8"))
    assert (content["names"], content["source"]) == (list(result.names), result.source)
    assert [entry["name"] for entry in content["classes"]] == list(result.areas)


@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(["a", "B", "b", "ß"]), max_size=2),
            st.sampled_from(["one", "ONE", "one-2", "one.jpg", "straße", "STRASSE", "猫"]) | STEM,
            st.sampled_from([".jpg", ".JPG", ".png", ""]),
        ),
        max_size=8,
    )
)
@settings(max_examples=50)
def test_no_two_photos_share_the_names_of_their_results(parts: list[tuple[list[str], str, str]]) -> None:
    photos = list(dict.fromkeys(Path("photos", *folders, stem + ending) for folders, stem, ending in parts))
    places = output_places(photos)
    assert list(places) == photos
    names = {str(folder / (stem + end)).casefold() for folder, stem in places.values() for end in FORMATS.values()}
    assert len(names) == len(photos) * len(FORMATS)
    if len({photo.stem.casefold() for photo in photos}) == len(photos):
        assert [*places.values()] == [(Path(), photo.stem) for photo in photos]


def test_an_unknown_format_is_refused_before_anything_is_written(result: Segmentation, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^format 'overlya' is unknown; did you mean 'overlay'\?$"):
        result.save(tmp_path / "out", formats=["png", "overlya"])
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_folders_place_is_one_clear_line(result: Segmentation, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("in the way")
    with pytest.raises(OutputError, match=f"^{out}: cannot be written") as info:
        result.save(out)
    assert "\n" not in str(info.value)
    with pytest.raises(OutputError, match="cannot be written"):
        write_atomically(out / "below.txt", b"")


@pytest.mark.parametrize("problem", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt("stopped")])
def test_a_full_disk_or_an_interrupt_leaves_the_old_file_and_no_remains(
    result: Segmentation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: BaseException
) -> None:
    (old,) = result.save(tmp_path, formats=["png"])
    before = old.read_bytes()

    def fail(*_: Any) -> None:
        raise problem

    monkeypatch.setattr(Path, "replace", fail)
    said = "sofa_labels.png: the disk is full; free some space" if isinstance(problem, OSError) else "^stopped$"
    with pytest.raises((OutputError, KeyboardInterrupt), match=said):
        segmentation(np.zeros((80, 120)), source="sofa.jpg").save(tmp_path, formats=["png"])
    assert [*tmp_path.iterdir()] == [old]
    assert old.read_bytes() == before


# COCO


@given(result=segmentations())
@settings(max_examples=40)
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
def test_coco_is_read_by_pycocotools_and_gives_the_masks_back(result: Segmentation, tmp_path_factory: Any) -> None:
    from pycocotools.coco import COCO

    coco = COCO(str(result.save(tmp_path_factory.getbasetemp(), formats=["coco"])[0]))
    assert coco.loadImgs(1)[0]["file_name"] == "photo.jpg"
    assert [entry["name"] for entry in coco.loadCats(coco.getCatIds())] == list(result.names)
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=1))
    assert [result.names[entry["category_id"] - 1] for entry in annotations] == list(result.areas)
    for annotation in annotations:
        name = result.names[annotation["category_id"] - 1]
        mask = result.mask(name)
        assert np.array_equal(coco.annToMask(annotation).astype(bool), mask)
        assert annotation["area"] == mask.sum()
        assert annotation["score"] == pytest.approx(result.confidences[name], abs=1e-4)
        rows, columns = np.nonzero(mask)
        box = [columns.min(), rows.min(), columns.max() - columns.min() + 1, rows.max() - rows.min() + 1]
        assert annotation["bbox"] == box


def test_coco_by_region_separates_the_two_cats(result: Segmentation) -> None:
    cats = [entry for entry in result.to_coco(by_region=True)["annotations"] if entry["category_id"] == 1]
    assert [entry["area"] for entry in cats] == [800, 200]
    assert [entry["bbox"] for entry in cats] == [[10, 10, 40, 20], [90, 50, 20, 10]]
    json.dumps(cats)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_file_takes_the_place_of_no_device_or_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for place in (pipe, Path("/dev/null")):
        with pytest.raises(OutputError, match=f"{place}: is a device, a pipe or a socket"):
            write_atomically(place, b"labels")
        with pytest.raises(OutputError, match="choose another place"), written_beside(place):
            raise AssertionError("nothing is begun")
    assert pipe.is_fifo()
    assert Path("/dev/null").is_char_device()
