"""What callers are told when a request cannot be answered: a status and one sentence, never more of the server."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from dpseg.errors import ConfigError, DPSegError, ImageError, PromptError

OUR_FAULT = "the server failed at this request, which may be right; its log says why"
"""All that a caller hears of an error that is not the caller's."""

_SHOWN = 60  # characters of a value that is wrong
_THEIRS = (PromptError, ImageError, ConfigError)


class RequestError(DPSegError):
    """A request that is refused.

    Attributes:
        status: of HTTP.
        headers: of the answer.
    """

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = dict(headers or {})


def status_of(error: Exception) -> int:
    """Returns the status that an error is answered with: 500 for what the caller cannot mend."""
    if isinstance(error, RequestError):
        return error.status
    return 422 if isinstance(error, _THEIRS) else 500


def sentence_of(error: Exception) -> str:
    """Returns what the caller is told of an error, in one line."""
    return " ".join(str(error).split()) if status_of(error) != 500 else OUR_FAULT


def invalid(what: str, error: ValidationError) -> RequestError:
    """Returns the error for values that do not fit a schema: the first of them, named.

    Args:
        what: the part of the request.
        error: of pydantic.
    """
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in (what, *first["loc"]) if part != "")
    value = first.get("input")
    shown = "" if first["type"] in ("missing", "json_invalid") else f" (it is {shorten(repr(value))})"
    return RequestError(
        400 if first["type"] == "json_invalid" else 422,
        f"{place}: {first['msg'][:1].lower()}{first['msg'][1:]}{shown}; /openapi.json describes what it may be",
    )


def shorten(text: str) -> str:
    """Returns the beginning of a text that a caller sent, fit for a sentence."""
    plain = " ".join(text.split())
    return plain if len(plain) <= _SHOWN else f"{plain[:_SHOWN]}..."
