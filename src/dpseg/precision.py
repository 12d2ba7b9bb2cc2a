"""In which numbers a model computes when testing."""

from __future__ import annotations

from typing import Literal, get_args

from dpseg.errors import ConfigError, did_you_mean

Precision = Literal["32", "bf16"]
"""Single precision; or bfloat16 for the image encoder and the decoder.

bfloat16 pays where the processor or GPU has instructions for it, and is slower elsewhere. Prompts are encoded in single
precision all the same, so saved prompts and banks fit both.
"""


def precision_of(word: str) -> Precision:
    """Reads --precision.

    Raises:
        ConfigError: there is no such precision.
    """
    for known in get_args(Precision):
        if word.strip().lower() == known:
            return known  # type: ignore[no-any-return]
    raise ConfigError(f"precision {word!r} is unknown; {did_you_mean(word, get_args(Precision))}")
