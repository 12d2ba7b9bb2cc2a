"""The page's message line, and errors on it as sentences."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, Literal, Protocol, TypeAlias

from dpseg.errors import DPSegError
from dpseg.serving.problems import OUR_FAULT, sentence_of

Update: TypeAlias = dict[Any, Any]
"""Components of the page, and what they show from now on."""

_log = logging.getLogger("dpseg.serving")


class HasLine(Protocol):
    """Whose handlers can be `told`."""

    def say(self, kind: Literal["done", "error"], text: str) -> Update:
        """Returns the update that shows a message."""


def message(kind: str, text: str) -> dict[str, str]:
    """Returns a message for the line: its kind, and a sentence."""
    sentence = text[:1].upper() + text[1:]
    return {"kind": kind, "text": sentence if sentence.endswith((".", "…")) else f"{sentence}."}


def working(text: str) -> str:
    """Returns a script that shows at once, before the server hears of it, that there is work."""
    return f"() => ({json.dumps({'kind': 'work', 'text': text}, ensure_ascii=False)})"


def told(handler: Callable[..., Awaitable[Update]]) -> Callable[..., Awaitable[Update]]:
    """Has the errors of a handler, a method, said on the page in one sentence."""

    @wraps(handler)
    async def wrapped(self: HasLine, *arguments: Any) -> Update:
        try:
            return await handler(self, *arguments)
        except Exception as error:
            return self.say("error", _sentence(error))

    return wrapped


def _sentence(error: Exception) -> str:
    """Returns what the visitor is told; what is not the visitor's mistake is logged."""
    if isinstance(error, DPSegError):
        sentence = sentence_of(error)
        if sentence == OUR_FAULT:
            _log.error("the page failed: %s", error)
        return sentence
    _log.error("the page failed", exc_info=error)
    return OUR_FAULT
