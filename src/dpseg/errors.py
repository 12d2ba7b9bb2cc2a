"""What can go wrong, in the user's words: what is wrong (with the value), why, and what to do.

Every error that a user can cause derives from `DPSegError`; the command line prints its text as one line and exits 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DPSegError(Exception):
    """Base of every error that the user can mend; its text is one line that says how."""


class ConfigError(DPSegError, ValueError):
    """A recipe or an option holds an unknown key or a value out of range."""


class PromptError(DPSegError, ValueError):
    """The classes, the words or the reference pictures cannot be used as given."""


class ImageError(DPSegError, ValueError):
    """A picture cannot be read, or its size is outside the limits."""


class ModelNotFoundError(DPSegError, LookupError):
    """No model, vocabulary or data set goes by that name."""


class WeightsError(DPSegError, RuntimeError):
    """Weights are missing, cannot be fetched, or do not fit the model."""


class DataError(DPSegError, ValueError):
    """A data set's files are missing, differ in size, or hold unknown label values."""


class OutputError(DPSegError, OSError):
    """A result cannot be written."""


class MissingExtraError(DPSegError, ImportError):
    """An optional dependency is not installed; the text names the extra to install."""


def did_you_mean(value: str, choices: Iterable[str]) -> str:
    """Returns a clause that suggests the nearest choices, or lists them all when none is near.

    Args:
        value: What the user wrote.
        choices: What exists.
    """
    known = sorted(choices)
    near = difflib.get_close_matches(value.lower(), known, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(name) for name in near) + "?"
    return "known: " + ", ".join(known)
