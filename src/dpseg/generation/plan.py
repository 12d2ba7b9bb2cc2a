"""Which pictures are painted for a class: the sentence of each, its seed and its place on disk."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from dpseg.prompts.text import ClassName, templates

_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)  # by Windows
_LONGEST = 100  # bytes of a folder's name


@dataclass(frozen=True)
class Slot:
    """A place for one picture of a class. A picture that fails is painted again, with the next try's seed.

    Attributes:
        entry: the class.
        template: 1 to 80, a number in the order of `templates`.
        turn: how often the template was used for the class before, 0 or more.
    """

    entry: ClassName
    template: int
    turn: int = 0

    @property
    def key(self) -> tuple[str, int, int]:
        """What tells the slot from all others."""
        return self.entry.name, self.template, self.turn

    @property
    def sentence(self) -> str:
        """What is painted: the template, filled with the class's names in turn."""
        synonym = self.entry.synonyms[(self.template - 1 + self.turn) % len(self.entry.synonyms)]
        return templates(self.template)[-1].replace("{}", synonym)

    def seed(self, base: int, attempt: int) -> int:
        """Returns the seed of a try, in [0, 2^32): it depends on nothing but the class, the template and the try.

        Args:
            base: the run's seed.
            attempt: 0 for the first try.
        """
        text = f"{base}\n{self.entry.name}\n{self.template}\n{self.turn}\n{attempt}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")

    def file(self, seed: int) -> str:
        """Returns the picture's place, below the folder of all: NAME/TEMPLATE-SEED.png."""
        return f"{folder_name(self.entry.name)}/{self.template:02d}-{seed}.png"


def plan(classes: Sequence[ClassName], per_class: int, template_count: int) -> list[Slot]:
    """Returns the slots of all classes, class by class; each class takes the templates in their order, again and again.

    Args:
        classes: K classes.
        per_class: N pictures a class, 1 or more.
        template_count: M, 1 to 80.

    Raises:
        ConfigError: M is out of range.
    """
    count = len(templates(template_count))
    return [Slot(entry, number % count + 1, number // count) for entry in classes for number in range(per_class)]


def folder_name(name: str) -> str:
    """Returns a class's name as one that every disk takes; where it differs, a hash keeps it apart from other names."""
    plain = unicodedata.normalize("NFC", name)
    safe = _UNSAFE.sub("_", plain).strip(". ").encode()[:_LONGEST].decode(errors="ignore").rstrip(". ")
    if safe == plain and not _RESERVED.fullmatch(safe):
        return safe
    return f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
