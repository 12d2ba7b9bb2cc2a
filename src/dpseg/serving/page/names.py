"""The box of names on the page: text that people type, and vocabularies, to classes and back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from dpseg.data.vocabularies import VOCABULARIES, load_vocabulary
from dpseg.prompts.text import parse_class

SUGGESTED_FROM = ("coco", "cocostuff171", "ade150")
"""The vocabularies whose names are suggested while somebody types."""

_BETWEEN = re.compile(r"[\n\r,;]+")
_SAME = "="  # "couch = sofa": two words for one class; commas part classes here, as people write lists


def read_names(text: str) -> list[str]:
    """Returns the classes in a text, as `parse_classes` takes them, synonyms after commas.

    A class is a line or stands between commas; synonyms are joined by "=". A class that comes again counts once.
    """
    classes: dict[str, str] = {}
    for part in _BETWEEN.split(text):
        words = [" ".join(word.split()) for word in part.split(_SAME)]
        kept = [word for word in words if word]
        if kept:
            classes.setdefault(kept[0].casefold(), ", ".join(kept))
    return list(classes.values())


def write_names(classes: Iterable[str]) -> str:
    """Returns the text that `read_names` reads as these classes, one a line."""
    return "\n".join(f" {_SAME} ".join(parse_class(text).synonyms) for text in classes)


def add_names(text: str, more: Sequence[str]) -> str:
    """Returns a text with classes added that are not in it yet."""
    return write_names(read_names("\n".join((text, write_names(more)))))


def shown_names(text: str) -> list[str]:
    """Returns how the classes in a text are shown: the first name of each."""
    return [parse_class(entry).name for entry in read_names(text)]


def offered_vocabularies(most: int) -> list[tuple[str, str]]:
    """Returns (what it is, its name) of the vocabularies that have no more than so many classes."""
    return [(about, name) for name, about in VOCABULARIES.items() if len(load_vocabulary(name)) <= most]


@lru_cache(maxsize=1)
def suggestions() -> tuple[str, ...]:
    """Returns names of things and stuff, sorted, each once."""
    found: dict[str, str] = {}
    for vocabulary in SUGGESTED_FROM:
        for text in load_vocabulary(vocabulary):
            name = parse_class(text).name
            found.setdefault(name.casefold(), name)
    return tuple(sorted(found.values(), key=str.casefold))
