"""The class lists of the usual benchmarks, and the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpseg.data.vocabularies import VOCABULARIES, load_vocabulary, read_classes
from dpseg.errors import DataError, ModelNotFoundError
from dpseg.prompts.text import parse_classes
from support.commands import DATA, needs_photo_data

COUNTS = {
    "coco": 133, "coco80": 80, "cocostuff171": 171, "ade150": 150, "ade847": 847, "pc59": 59, "pc459": 459, "voc20": 20,
}  # fmt: skip
WELL_KNOWN = {
    "coco80": {0: "person", 11: "stop sign", 57: "couch", 79: "toothbrush"},
    "coco": {80: "banner", 87: "wooden floor", 116: "tree", 119: "sky", 132: "rug"},
    "cocostuff171": {80: "banner", 84: "building", 102: "marble floor", 145: "sky", 157: "tree", 170: "wood"},
    "ade150": {0: "wall", 2: "sky", 12: "person", 20: "car", 89: "tv", 149: "flag"},
    "pc59": {0: "aeroplane", 29: "ground", 58: "wood"},
    "voc20": {0: "aeroplane", 10: "dining table", 14: "person", 19: "tv monitor"},
}


def names(vocabulary: str) -> list[str]:
    return [entry.name for entry in parse_classes(load_vocabulary(vocabulary))]


def test_every_vocabulary_is_counted() -> None:
    assert set(COUNTS) == set(VOCABULARIES)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_a_list_is_complete_in_order_and_of_readable_and_distinct_words(vocabulary: str) -> None:
    lines = load_vocabulary(vocabulary)
    assert len(lines) == COUNTS[vocabulary]
    words = [word.lower() for entry in parse_classes(lines) for word in entry.synonyms]
    assert {word for word in words if words.count(word) > 1} == set()
    for line in lines:
        assert line == line.strip()
        assert not any(sign in line for sign in ("_", "/", "merged", "other", "stuff,", "(", "  "))
    known = WELL_KNOWN.get(vocabulary, {})
    assert {index: names(vocabulary)[index] for index in known} == known
    if vocabulary in ("voc20", "pc59"):
        assert names(vocabulary) == sorted(names(vocabulary))


def test_coco_lists_share_their_things_and_names_count_in_any_case() -> None:
    things = load_vocabulary("coco80")
    assert load_vocabulary("COCO80") == things
    assert load_vocabulary("coco")[:80] == things
    assert load_vocabulary("cocostuff171")[:80] == things


@needs_photo_data
def test_coco_names_are_those_of_the_photo_sets() -> None:
    assert names("coco") == (DATA / "coco_panoptic" / "classes.txt").read_text("utf-8").splitlines()


def test_a_file_of_ones_own_is_read_without_comments_and_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes("\ufeff# my things\ncouch, sofa\r\n\n  mug \nécran\n".encode())
    assert load_vocabulary(path) == ["couch, sofa", "mug", "écran"]
    assert read_classes("# x\n\n a\nb # c\n") == ["a", "b # c"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "no classes"),
        (b"# nothing\n", "no classes"),
        (b"cat\ndog\nCAT\n", "twice"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (None, "cannot be read as a vocabulary"),  # a folder
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "mine.txt"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=problem) as caught:
        load_vocabulary(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_and_files_that_are_not_there_are_refused_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="'ade15'; did you mean 'ade150'"):
        load_vocabulary("ade15")
    with pytest.raises(ModelNotFoundError, match=r"no vocabulary file .*mine\.txt"):
        load_vocabulary(tmp_path / "mine.txt")
