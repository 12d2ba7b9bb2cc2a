"""`--refine` of `dpseg predict`: a flag that may have a value, which says how prompts are refined."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import typer
from typer.core import TyperCommand

from dpseg.config import Refine, RefineConfig
from dpseg.errors import ConfigError, did_you_mean

_HOW: dict[str, dict[str, Any]] = {"cores": {"core": 0.5}, "pooled": {"features": "pooled"}, "sequence": {}}
"""What each word changes in a `RefineConfig`; they can be given together."""

WORDS = ("on", "off", *_HOW)


@dataclass(frozen=True)
class Refinement:
    """What --refine says.

    Attributes:
        refine: as for `Segmenter.stream`.
        config: what becomes a prompt, and how.
    """

    refine: Refine = None
    config: RefineConfig = field(default_factory=RefineConfig)


def read_refinement(text: str | None) -> Refinement:
    """Reads --refine: on, off, or some of cores, pooled and sequence with commas; None: it was not given.

    Raises:
        ConfigError: a word is unknown, or on or off stands beside others.
    """
    if text is None:
        return Refinement()
    words = _words(text)
    for word in words:
        if word not in WORDS:
            raise ConfigError(f"refine {word!r} is unknown; {did_you_mean(word, WORDS)}")
    if words in (["on"], ["off"]):
        return Refinement(words == ["on"])
    if not words or {"on", "off"} & set(words):
        raise ConfigError(f"refine {text!r} is not clear; give on, off, or some of {', '.join(_HOW)} with commas")
    config = RefineConfig(**{key: value for word in words for key, value in _HOW[word].items()})
    return Refinement("sequence" if "sequence" in words else True, config)


class FlagWithValue(TyperCommand):
    """A command whose --refine is a flag, or an option with a value where one of its words comes next.

    The parser knows one or the other, so arguments are rewritten for it: --refine alone is --refine=on, and
    --no-refine is --refine=off.
    """

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Parses the arguments of the command.

        Args:
            ctx: the parser's.
            args: what follows the command's name.
        """
        return super().parse_args(ctx, with_values(args))


def with_values(args: list[str]) -> list[str]:
    """Returns arguments in which every --refine has a value; what follows "--" is left as it is."""
    end = args.index("--") if "--" in args else len(args)
    written: list[str] = []
    for word, following in zip(args[:end], [*args[1:end], ""], strict=False):
        if word == "--no-refine":
            written.append("--refine=off")
        elif word == "--refine" and not (set(_words(following)) & set(WORDS)):
            written.append("--refine=on")
        else:
            written.append(word)
    return written + args[end:]


def _words(text: str) -> list[str]:
    return [word.strip().lower() for word in text.split(",") if word.strip()]
