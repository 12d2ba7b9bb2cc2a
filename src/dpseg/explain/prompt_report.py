"""What there is to say about the prompts of classes, as values: one report a class, warnings, notes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dpseg.explain.origins import Share
from dpseg.prompts.visual import Reference


@dataclass(frozen=True)
class Near:
    """The nearest other class.

    Attributes:
        name: its name.
        cosine: in [-1, 1].
    """

    name: str
    cosine: float


@dataclass(frozen=True, eq=False)
class PictureReport:
    """One picture of a class.

    Attributes:
        source: how it was given; may be empty.
        reference: the picture; None where only its features are at hand.
        to_words: cosine of its V with the class's T; None where the class has no words.
        to_others: cosine of its V with the average of the class's other pictures; None where there are none.
        unlike: whether it is unlike the others, see `explain.prompt_warnings.UNLIKE`.
    """

    source: str
    reference: Reference | None
    to_words: float | None
    to_others: float | None
    unlike: bool


@dataclass(frozen=True, eq=False)
class ClassReport:
    """One class.

    Attributes:
        name: its name.
        words: its names; empty where it has none.
        sources: where its prompts come from, as in `PromptSet.sources`.
        agreement: cosine of T and V; None where one is missing.
        nearest: the nearest other class by each of `KINDS`; no entry where there is none.
        bank: what the banks have for its words.
        pictures: those that are known one by one.
    """

    name: str
    words: tuple[str, ...]
    sources: tuple[str, ...]
    agreement: float | None
    nearest: Mapping[str, Near]
    bank: tuple[Share, ...]
    pictures: tuple[PictureReport, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values."""
        return {
            "name": self.name,
            "words": list(self.words),
            "prompts": list(self.sources),
            "agreement": self.agreement,
            "nearest": {kind: {"name": near.name, "cosine": near.cosine} for kind, near in self.nearest.items()},
            "bank": [{"name": one.name, "share": one.share, "source": one.source} for one in self.bank],
            "pictures": [
                {"source": one.source, "to_words": one.to_words, "to_others": one.to_others, "unlike": one.unlike}
                for one in self.pictures
            ],
        }


@dataclass(frozen=True)
class PromptWarning:
    """Something that looks wrong.

    Attributes:
        kind: "alike": two classes; "unlike": a picture among those of its class; "unknown": a word.
        classes: whom it concerns.
        text: one line.
    """

    kind: str
    classes: tuple[str, ...]
    text: str


@dataclass(frozen=True, eq=False)
class PromptReport:
    """K classes.

    Attributes:
        classes: K.
        warnings: the worst of each kind first.
        notes: what could not be told.
    """

    classes: tuple[ClassReport, ...]
    warnings: tuple[PromptWarning, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values."""
        return {
            "classes": [one.to_json() for one in self.classes],
            "warnings": [{"kind": one.kind, "classes": list(one.classes), "text": one.text} for one in self.warnings],
            "notes": list(self.notes),
        }
