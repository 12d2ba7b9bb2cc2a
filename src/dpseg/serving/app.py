"""The HTTP application: routes, who may call them, and what they answer."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from dpseg import __version__
from dpseg.errors import DPSegError
from dpseg.prompts.prompt_set import PromptSet
from dpseg.segmenter import Segmenter
from dpseg.serving import openapi
from dpseg.serving.answers import MEDIA_TYPES, answer, wanted_format
from dpseg.serving.forms import discard, read_form
from dpseg.serving.metrics import Measured
from dpseg.serving.problems import OUR_FAULT, RequestError, invalid, sentence_of, shorten, status_of
from dpseg.serving.prompt_requests import read_prompts
from dpseg.serving.schemas import PromptsAnswer, SegmentAnswer, SegmentBody, State
from dpseg.serving.service import Service
from dpseg.serving.settings import ServeSettings

T = TypeVar("T")

_log = logging.getLogger("dpseg.serving")
_PROMPT_FIELDS = ("prompts",)
_SEGMENT_FIELDS = ("prompts", *SegmentBody.model_fields)


def create_app(settings: ServeSettings, segmenter: Segmenter) -> FastAPI:
    """Returns the application; `app.state.service` is what it works with, for pages that are mounted on it.

    Args:
        settings: limits and options.
        segmenter: the model, which the application alone uses from now on.

    Raises:
        OutputError: the folder of prompt sets cannot be made.
    """
    service = Service(settings, segmenter)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.stop)

    app = FastAPI(
        title="dpseg",
        version=__version__,
        description=openapi.ABOUT,
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = service
    app.add_middleware(Measured, metrics=service.metrics)
    app.add_exception_handler(DPSegError, _refused)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_exception_handler(Exception, _failed)
    app.include_router(_open)
    app.include_router(_closed)
    openapi.complete(app)
    return app


_bearer = HTTPBearer(auto_error=False, description="Where the server was started with a token.")


def _authorised(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Service:
    """Lets callers with the token in, and returns the service."""
    service: Service = request.app.state.service
    token = service.settings.token
    if token is not None:
        given = "" if credentials is None else credentials.credentials
        # Hashes, because the comparison's time tells the length.
        same = hmac.compare_digest(*(hashlib.sha256(text.encode()).digest() for text in (given, token)))
        if not same:
            what = "no token is given" if credentials is None else "the token is wrong"
            raise RequestError(401, f"{what}; send Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})
    return service


Authorised = Annotated[Service, Depends(_authorised)]

_open = APIRouter()
_closed = APIRouter()


@_open.get("/healthz", summary="Whether the server works", responses=openapi.STATE)
def healthz(request: Request) -> State:
    """Answers as long as the model's threads run."""
    if not request.app.state.service.threads.alive:
        raise RequestError(503, "a thread of the model has ended; start the server again")
    return State(status="ok")


@_open.get("/readyz", summary="Whether there is room for a request", responses=openapi.STATE)
def readyz(request: Request) -> State:
    """Answers as `/healthz`, and is 503 while no more requests are taken."""
    service: Service = request.app.state.service
    if service.door.count >= service.door.room:
        raise RequestError(503, "no more requests are taken at the moment; try again later", {"Retry-After": "1"})
    return healthz(request)


@_closed.get("/metrics", summary="Figures for Prometheus", response_class=PlainTextResponse, responses=openapi.CLOSED)
def metrics(service: Authorised) -> Response:
    """Returns requests, batches, times and memory in Prometheus' text format."""
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@_closed.post(
    "/v1/segment",
    summary="Segment a photo",
    response_model=SegmentAnswer,
    responses=openapi.SEGMENT,
    openapi_extra=openapi.SEGMENT_FORM,
)
async def segment(request: Request, service: Authorised) -> Response:
    """Names every pixel of `image` with one of the classes in `prompts`, or in the prompt set `prompts_id`."""
    with service.door.enter(_address(request)):
        form = await read_form(request, service.settings)
        form.check(("image",), ("files",), _SEGMENT_FIELDS)
        if "image" not in form.files:
            raise RequestError(422, "the field image is missing; send the photo as a file")
        body = _segment_body(form.fields)
        kind = wanted_format(body.format, request.headers.get("accept"))

        async def work() -> bytes:
            if body.prompts_id is None:
                asked = await run_in_threadpool(read_prompts, form, service.settings, service.model)
                key, prompts = asked.key, await service.prompts(asked)
            else:
                key, prompts = body.prompts_id, await service.saved(body.prompts_id)
            data = form.files["image"][0].data
            return await service.segment(data, prompts, key, partial(answer, form=kind), body.refine, body.background)

        return Response(await _unless_gone(request, work()), media_type=MEDIA_TYPES[kind])


@_closed.post(
    "/v1/prompts",
    summary="Keep classes for many photos",
    status_code=201,
    responses=openapi.PROMPTS,
    openapi_extra=openapi.PROMPTS_FORM,
)
async def save_prompts(request: Request, service: Authorised) -> PromptsAnswer:
    """Encodes classes once, and returns the id by which POST /v1/segment finds them.

    The id is a hash of what was sent: the same classes have the same id. Sets that were not used for longest make room
    for others; an id that is no longer known is answered with 404.
    """
    with service.door.enter(_address(request)):
        form = await read_form(request, service.settings)
        form.check((), ("files",), _PROMPT_FIELDS)
        if "prompts" not in form.fields:
            raise RequestError(422, "the field prompts is missing; send the classes as JSON")
        asked = await run_in_threadpool(read_prompts, form, service.settings, service.model)
        return _described(asked.key, await _unless_gone(request, service.save(asked)))


@_closed.get("/v1/prompts/{prompts_id}", summary="What a kept prompt set holds", responses=openapi.FOUND)
async def get_prompts(prompts_id: str, service: Authorised) -> PromptsAnswer:
    """Returns the classes of a prompt set, in the order of the PNG's values."""
    return _described(prompts_id, await service.saved(prompts_id))


def _segment_body(fields: dict[str, str]) -> SegmentBody:
    """Checks the plain fields of POST /v1/segment, and that there is one kind of prompts."""
    if ("prompts" in fields) == ("prompts_id" in fields):
        both = "prompts" in fields
        raise RequestError(
            422,
            f"{'both' if both else 'neither'} prompts {'and' if both else 'nor'} prompts_id"
            f" {'are' if both else 'is'} given; send one of the two",
        )
    try:
        return SegmentBody.model_validate({name: value for name, value in fields.items() if name != "prompts"})
    except ValidationError as error:
        raise invalid("", error) from error


def _described(key: str, prompts: PromptSet) -> PromptsAnswer:
    return PromptsAnswer(id=key, names=list(prompts.names), sources=[list(kinds) for kinds in prompts.sources])


def _address(request: Request) -> str:
    return "" if request.client is None else request.client.host


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Returns the result of some work, which is given up when the caller has hung up."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise RequestError(499, "the caller has hung up")  # as nginx counts it; nobody reads this
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        with suppress(asyncio.CancelledError):
            await gone


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _refused(request: Request, error: Exception) -> Response:
    status = status_of(error)
    if status == 500:
        _log.error("%s %s failed: %s", request.method, request.url.path, error)
    if status != 408:  # who sends too slowly has had the time for it
        await discard(request, request.app.state.service.settings)
    headers = error.headers if isinstance(error, RequestError) else None
    return JSONResponse({"error": sentence_of(error)}, status, headers)


async def _no_route(request: Request, error: Exception) -> Response:
    """Answers where the path or the method is not one of ours."""
    assert isinstance(error, HTTPException)
    path = shorten(request.url.path)
    sentences = {404: f"there is no {path}", 405: f"{path} does not take {request.method}"}
    sentence = sentences.get(error.status_code, str(error.detail))
    return JSONResponse({"error": f"{sentence}; see /openapi.json"}, error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    """Answers where we have made a mistake; the error is logged by the server."""
    return JSONResponse({"error": OUR_FAULT}, 500)
