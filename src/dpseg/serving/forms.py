"""Multipart forms of requests, read into memory within limits; nothing of them touches the disk."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from dpseg.serving.problems import RequestError, shorten
from dpseg.serving.settings import MEGA, ServeSettings

_FIELDS = 16  # more than any form here has
_FIELD_BYTES = MEGA
_DISCARD_SECONDS = 5.0
_BROKEN = "send it as multipart/form-data, as curl -F does"


@dataclass(frozen=True)
class Upload:
    """A file of a form.

    Attributes:
        name: as the caller calls it; it is compared with other names, and never a path.
        data: its content.
    """

    name: str
    data: bytes


@dataclass(frozen=True)
class Form:
    """What a request's form holds.

    Attributes:
        fields: text by name.
        files: by name of the field, in their order.
    """

    fields: dict[str, str]
    files: dict[str, tuple[Upload, ...]]

    def check(self, single: tuple[str, ...], several: tuple[str, ...], fields: tuple[str, ...]) -> None:
        """Checks that the form has no other fields than these.

        Args:
            single: fields that hold a file.
            several: fields that hold any number of files.
            fields: that hold text.

        Raises:
            RequestError: it has others.
        """
        known = ", ".join((*single, *several, *fields))
        for name, uploads in self.files.items():
            if name not in single + several:
                what = "holds a file, but is a text" if name in fields else "is unknown"
                raise RequestError(422, f"the field {shorten(repr(name))} {what}; the fields are {known}")
            if name in single and len(uploads) > 1:
                raise RequestError(422, f"the field {name!r} is there {len(uploads)} times; send one file")
        for name in self.fields:
            if name not in fields:
                what = "holds text, but is a file" if name in single + several else "is unknown"
                raise RequestError(422, f"the field {shorten(repr(name))} {what}; the fields are {known}")


class _InMemory(MultiPartParser):
    """Starlette's parser; its files never go to the disk, for their size is limited already."""

    spool_max_size = sys.maxsize


async def read_form(request: Request, settings: ServeSettings) -> Form:
    """Reads a form, up to the limits.

    Raises:
        RequestError: it is none, too large, too slow, or broken.
    """
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "multipart/form-data":
        raise RequestError(415, f"the content type is {shorten(repr(content_type))}; {_BROKEN}")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > settings.max_body:
        raise _too_large(settings)
    files = 2 * settings.max_references + 1
    parser = _InMemory(
        request.headers,
        _limited(request, settings),
        max_files=files,
        max_fields=_FIELDS,
        max_part_size=_FIELD_BYTES,
    )
    try:
        async with asyncio.timeout(settings.body_seconds):
            return await _gathered(await parser.parse())
    except TimeoutError as error:
        raise RequestError(
            408, f"the request took more than {settings.body_seconds:g} s to arrive; try again"
        ) from error
    except ClientDisconnect as error:
        raise RequestError(400, "the connection ended before the request did; try again") from error
    except MultiPartException as error:
        raise RequestError(400, f"the form cannot be read: {error.message.rstrip('.').lower()}; {_BROKEN}") from error
    except (ValueError, LookupError, AssertionError) as error:  # what odd character sets and headers lead to
        raise RequestError(400, f"the form cannot be read; {_BROKEN}") from error


async def discard(request: Request, settings: ServeSettings) -> None:
    """Reads on for a while without keeping anything: a caller that still sends would not see the answer."""
    left = settings.max_body
    with contextlib.suppress(ClientDisconnect, TimeoutError, RuntimeError):  # RuntimeError: it was read to its end
        async with asyncio.timeout(_DISCARD_SECONDS):
            async for chunk in request.stream():
                left -= len(chunk)
                if left < 0:
                    return


async def _limited(request: Request, settings: ServeSettings) -> AsyncGenerator[bytes, None]:
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > settings.max_body:
            raise _too_large(settings)
        yield chunk


async def _gathered(data: FormData) -> Form:
    fields: dict[str, str] = {}
    files: dict[str, list[Upload]] = {}
    for name, value in data.multi_items():
        if not isinstance(value, str):
            files.setdefault(name, []).append(Upload(value.filename or "", await value.read()))
        elif name in fields:
            raise RequestError(422, f"the field {shorten(repr(name))} is there twice; send it once")
        else:
            fields[name] = value
    return Form(fields, {name: tuple(uploads) for name, uploads in files.items()})


def _too_large(settings: ServeSettings) -> RequestError:
    return RequestError(413, f"the request has more than {settings.max_body_mb:g} MB; send smaller pictures")
