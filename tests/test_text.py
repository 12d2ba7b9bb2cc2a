"""Class names and their synonyms, and the templates that make prompts of them."""

from __future__ import annotations

import itertools
import runpy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from dpseg.errors import ConfigError, PromptError
from dpseg.prompts.text import TEMPLATES, ClassName, expand, parse_class, parse_classes, templates


@pytest.mark.parametrize(
    ("text", "synonyms"),
    [
        ("couch, sofa", ("couch", "sofa")),
        ("  wooden \t floor ", ("wooden floor",)),
        ("tv,, television ,", ("tv", "television")),
        ("TV, tv, Tv set", ("TV", "Tv set")),
        ("café, 猫", ("café", "猫")),
        ("line\nbreak", ("line break",)),
    ],
)
def test_a_class_shows_its_first_synonym_and_is_tidied(text: str, synonyms: tuple[str, ...]) -> None:
    assert parse_class(text) == ClassName(synonyms[0], synonyms)


def test_classes_keep_their_order() -> None:
    assert [entry.name for entry in parse_classes(["wall", "cat", "couch, sofa"])] == ["wall", "cat", "couch"]


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        *(([text], "has no name") for text in ("", "  ", ",", " , ,")),
        ([], "no classes given"),
        (["cat", "dog", "Cat, kitten"], "'Cat' is given twice"),
        (["Cat", "dog", "cat"], "'cat' is given twice"),
        ("cat", "give a list"),
        (["cat", 3], "3 is not text"),
    ],
)
def test_what_is_no_list_of_classes_is_refused(classes: Any, said: str) -> None:
    with pytest.raises(PromptError, match=said):
        parse_classes(classes)


def test_there_are_80_different_templates_with_one_blank_each() -> None:
    assert len(TEMPLATES) == len(set(TEMPLATES)) == 80
    assert all(template.count("{}") == 1 and template.endswith(".") for template in TEMPLATES)


@pytest.mark.skipif(find_spec("open_clip") is None, reason="open_clip, which holds CLIP's list, is not installed")
def test_templates_are_those_of_clip() -> None:
    package = find_spec("open_clip")
    assert package is not None
    assert package.origin is not None
    lists = runpy.run_path(
        str(Path(package.origin).with_name("zero_shot_metadata.py"))
    )  # the rest takes long to import
    assert tuple(fill("{}") for fill in lists["OPENAI_IMAGENET_TEMPLATES"]) == TEMPLATES


def test_selections_are_nested_and_begin_with_the_plain_one() -> None:
    chosen = [templates(count) for count in (1, 10, 20, 40, 80)]
    assert [len(selection) for selection in chosen] == [1, 10, 20, 40, 80]
    assert chosen[0] == ("a photo of a {}.",)
    for smaller, larger in itertools.pairwise(chosen):
        assert larger[: len(smaller)] == smaller
    assert set(chosen[-1]) == set(TEMPLATES)
    assert all("photo" in template for template in chosen[3])
    for count in (0, -1, 81):
        with pytest.raises(ConfigError, match=f"^{count} templates"):
            templates(count)


def test_each_template_is_filled_with_each_synonym_braces_and_all() -> None:
    assert expand(parse_class("couch, {0} {}"), templates(2)) == [
        ["a photo of a couch.", "a photo of a {0} {}."],
        ["a photo of the couch.", "a photo of the {0} {}."],
    ]
