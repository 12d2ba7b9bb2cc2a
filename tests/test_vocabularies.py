from pathlib import Path

import pytest

from dpseg.data.vocabularies import VOCABULARIES, load_vocabulary, read_classes
from dpseg.errors import DataError, ModelNotFoundError
from dpseg.prompts.text import parse_classes

COUNTS = {
    "coco": 133,
    "coco80": 80,
    "cocostuff171": 171,
    "ade150": 150,
    "ade847": 847,
    "pc59": 59,
    "pc459": 459,
    "voc20": 20,
}
SHARED = Path(__file__).parents[2] / "shared" / "data"


def names(vocabulary: str) -> list[str]:
    return [entry.name for entry in parse_classes(load_vocabulary(vocabulary))]


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_counts(vocabulary: str) -> None:
    assert len(load_vocabulary(vocabulary)) == COUNTS[vocabulary]


def test_every_vocabulary_is_counted() -> None:
    assert set(COUNTS) == set(VOCABULARIES)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_no_word_stands_for_two_classes(vocabulary: str) -> None:
    words = [word.lower() for entry in parse_classes(load_vocabulary(vocabulary)) for word in entry.synonyms]
    assert {word for word in words if words.count(word) > 1} == set()


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_names_are_readable_words(vocabulary: str) -> None:
    for line in load_vocabulary(vocabulary):
        assert line == line.strip()
        assert not any(sign in line for sign in ("_", "/", "merged", "other", "stuff,", "(", "  "))


@pytest.mark.parametrize(
    ("vocabulary", "index", "name"),
    [
        ("coco80", 0, "person"),
        ("coco80", 11, "stop sign"),
        ("coco80", 57, "couch"),
        ("coco80", 79, "toothbrush"),
        ("coco", 80, "banner"),
        ("coco", 87, "wooden floor"),
        ("coco", 116, "tree"),
        ("coco", 119, "sky"),
        ("coco", 132, "rug"),
        ("cocostuff171", 80, "banner"),
        ("cocostuff171", 84, "building"),
        ("cocostuff171", 102, "marble floor"),
        ("cocostuff171", 145, "sky"),
        ("cocostuff171", 157, "tree"),
        ("cocostuff171", 170, "wood"),
        ("ade150", 0, "wall"),
        ("ade150", 2, "sky"),
        ("ade150", 12, "person"),
        ("ade150", 20, "car"),
        ("ade150", 89, "tv"),
        ("ade150", 149, "flag"),
        ("pc59", 0, "aeroplane"),
        ("pc59", 29, "ground"),
        ("pc59", 58, "wood"),
        ("voc20", 0, "aeroplane"),
        ("voc20", 10, "dining table"),
        ("voc20", 14, "person"),
        ("voc20", 19, "tv monitor"),
    ],
)
def test_well_known_entries(vocabulary: str, index: int, name: str) -> None:
    assert names(vocabulary)[index] == name


def test_coco_lists_share_their_things() -> None:
    things = load_vocabulary("coco80")
    assert load_vocabulary("coco")[:80] == things
    assert load_vocabulary("cocostuff171")[:80] == things


def test_benchmarks_in_alphabetical_order() -> None:
    for vocabulary in ("voc20", "pc59"):
        assert names(vocabulary) == sorted(names(vocabulary))


def test_coco_names_are_those_of_the_photo_sets() -> None:
    path = SHARED / "coco_panoptic" / "classes.txt"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    assert names("coco") == path.read_text("utf-8").splitlines()


def test_name_in_any_case() -> None:
    assert load_vocabulary("COCO80") == load_vocabulary("coco80")


def test_misspelt_name_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ModelNotFoundError, match="'ade15'; did you mean 'ade150'"):
        load_vocabulary("ade15")


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no vocabulary file .*mine\.txt"):
        load_vocabulary(tmp_path / "mine.txt")


def test_own_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes("\ufeff# my things\ncouch, sofa\r\n\n  mug \nécran\n".encode())
    assert load_vocabulary(path) == ["couch, sofa", "mug", "écran"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "no classes"),
        (b"# nothing\n", "no classes"),
        (b"cat\ndog\nCAT\n", "twice"),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_bad_file_is_refused_by_name(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=problem) as caught:
        load_vocabulary(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folder_is_no_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read as a vocabulary"):
        load_vocabulary(tmp_path)


def test_comments_and_empty_lines_do_not_count() -> None:
    assert read_classes("# x\n\n a\nb # c\n") == ["a", "b # c"]
