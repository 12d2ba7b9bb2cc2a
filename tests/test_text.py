import itertools

import pytest

from dpseg.errors import ConfigError, PromptError
from dpseg.prompts.text import TEMPLATES, ClassName, expand, parse_class, parse_classes, templates


def test_class_with_synonyms_shows_the_first() -> None:
    assert parse_class("couch, sofa") == ClassName("couch", ("couch", "sofa"))


@pytest.mark.parametrize(
    ("text", "synonyms"),
    [
        ("  wooden \t floor ", ("wooden floor",)),
        ("tv,, television ,", ("tv", "television")),
        ("TV, tv, Tv set", ("TV", "Tv set")),
        ("café, 猫", ("café", "猫")),
        ("line\nbreak", ("line break",)),
    ],
)
def test_class_is_tidied(text: str, synonyms: tuple[str, ...]) -> None:
    assert parse_class(text).synonyms == synonyms


@pytest.mark.parametrize("text", ["", "  ", ",", " , ,"])
def test_empty_class_is_refused(text: str) -> None:
    with pytest.raises(PromptError, match="has no name"):
        parse_class(text)


def test_classes_keep_their_order() -> None:
    assert [entry.name for entry in parse_classes(["wall", "cat", "couch, sofa"])] == ["wall", "cat", "couch"]


def test_no_classes_is_refused() -> None:
    with pytest.raises(PromptError, match="no classes given"):
        parse_classes([])


def test_duplicate_class_is_refused_whatever_its_case() -> None:
    with pytest.raises(PromptError, match="'Cat' is given twice"):
        parse_classes(["cat", "dog", "Cat, kitten"])


def test_one_string_in_place_of_a_list_is_refused() -> None:
    with pytest.raises(PromptError, match=r"give a list"):
        parse_classes("cat")


def test_class_that_is_not_text_is_refused() -> None:
    with pytest.raises(PromptError, match="3 is not text"):
        parse_classes(["cat", 3])  # type: ignore[list-item]


def test_there_are_80_different_templates_with_one_blank_each() -> None:
    assert len(TEMPLATES) == len(set(TEMPLATES)) == 80
    assert all(template.count("{}") == 1 and template.endswith(".") for template in TEMPLATES)


def test_templates_are_those_of_clip() -> None:
    open_clip = pytest.importorskip("open_clip", reason="open_clip, which holds CLIP's list, is not installed")
    assert tuple(fill("{}") for fill in open_clip.OPENAI_IMAGENET_TEMPLATES) == TEMPLATES


def test_selections_are_nested_and_begin_with_the_plain_one() -> None:
    chosen = [templates(count) for count in (1, 10, 20, 40, 80)]
    assert [len(selection) for selection in chosen] == [1, 10, 20, 40, 80]
    assert chosen[0] == ("a photo of a {}.",)
    for smaller, larger in itertools.pairwise(chosen):
        assert larger[: len(smaller)] == smaller
    assert set(chosen[-1]) == set(TEMPLATES)
    assert all("photo" in template for template in chosen[3])


@pytest.mark.parametrize("count", [0, -1, 81])
def test_impossible_number_of_templates_is_refused(count: int) -> None:
    with pytest.raises(ConfigError, match=f"^{count} templates"):
        templates(count)


def test_expand_fills_each_template_with_each_synonym() -> None:
    assert expand(parse_class("couch, sofa"), templates(2)) == [
        ["a photo of a couch.", "a photo of a sofa."],
        ["a photo of the couch.", "a photo of the sofa."],
    ]


def test_expand_takes_names_with_braces() -> None:
    assert expand(ClassName("{0} {}", ("{0} {}",)), ["a {}."]) == [["a {0} {}."]]
