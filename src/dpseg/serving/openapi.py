"""What /openapi.json says beyond the routes: forms, examples, and the answers when something is wrong."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from dpseg.serving.schemas import Problem, PromptsBody, SegmentBody

ABOUT = (
    "Names every pixel of a photo from words and reference pictures. Errors are one sentence in `error`. Forms are"
    " multipart/form-data; `prompts` is JSON, and pictures of it are sent in `files` and named there."
)

_REF = "#/components/schemas/{model}"
_WORDS = json.dumps({"classes": ["cat", "couch, sofa", "wall"]})
_PICTURES = json.dumps(
    {
        "classes": ["mug", "wall"],
        "references": [{"class": "mug", "picture": "shelf.jpg", "box": [120, 40, 260, 210]}],
    }
)
_FILE = {"type": "string", "format": "binary"}
_FILES = {"type": "array", "items": _FILE, "description": "Pictures and masks that `prompts` names by file name."}
_SEGMENTED = {
    "width": 640,
    "height": 480,
    "classes": [
        {
            "name": "cat",
            "index": 0,
            "area": 0.25,
            "confidence": 0.91,
            "color": [31, 119, 180],
            "prompts": ["text", "bank"],
            "pixels": 76800,
            "bbox": [160.0, 120.0, 320.0, 240.0],
            "segmentation": {"size": [480, 640], "counts": "PPX17..."},
        }
    ],
    "none": 0.0,
    "names": ["cat", "couch", "wall"],
    "dpseg": "0.1.0",
}
_KEPT = {"id": "0f343b0931126a20f133d67c2b018a3b", "names": ["cat", "wall"], "sources": [["text", "bank"], ["text"]]}

_DESCRIPTIONS = {
    400: "The form cannot be read.",
    401: "The token is missing or wrong.",
    404: "There is no such prompt set.",
    406: "`Accept` admits neither JSON nor PNG.",
    408: "The request took too long to arrive.",
    413: "The request, the photo or the references are too large.",
    415: "It is no multipart/form-data.",
    422: "A field, a class or a picture cannot be used.",
    429: "Too many requests of this caller are in work; see `Retry-After`.",
    500: "The server failed.",
    503: "Too many requests are in work, or the server is being stopped; see `Retry-After`.",
}

Responses = dict[int | str, dict[str, Any]]


def _problems(*statuses: int) -> Responses:
    return {status: {"model": Problem, "description": _DESCRIPTIONS[status]} for status in statuses}


def _example(status: int, value: object, png: bool = False) -> Responses:
    content: dict[str, Any] = {"application/json": {"example": value}}
    if png:
        content["image/png"] = {"schema": _FILE}
    return {status: {"content": content}}


STATE = _problems(503)
CLOSED = _problems(401)
FOUND = _example(200, _KEPT) | _problems(401, 404, 422)
PROMPTS = _example(201, _KEPT) | _problems(400, 401, 408, 413, 415, 422, 429, 500, 503)
SEGMENT = _example(200, _SEGMENTED, png=True) | _problems(400, 401, 404, 406, 408, 413, 415, 422, 429, 500, 503)


def _form(rules: dict[str, Any], properties: dict[str, Any], examples: dict[str, dict[str, str]]) -> dict[str, Any]:
    schema = {"type": "object", "additionalProperties": False, "properties": properties, **rules}
    content = {
        "schema": schema,
        "encoding": {"prompts": {"contentType": "application/json"}},
        "examples": {name: {"value": value} for name, value in examples.items()},
    }
    return {"requestBody": {"required": True, "content": {"multipart/form-data": content}}}


def _plain_fields() -> dict[str, Any]:
    about = {
        "prompts_id": "Of a kept prompt set, in place of `prompts`.",
        "refine": "Look again with crops of what was found (Inference II). Default: as suits the model.",
        "background": "Pixels whose best score is below it get no class. Default: every pixel gets one.",
        "format": "Default: as `Accept` says, else json. png: label map with a palette, 255 where there is no class.",
    }
    kinds: dict[str, Any] = {
        "prompts_id": {"type": "string"},
        "refine": {"type": "boolean"},
        "background": {"type": "number", "minimum": 0, "maximum": 1},
        "format": {"type": "string", "enum": ["json", "png"]},
    }
    return {name: kinds[name] | {"description": about[name]} for name in SegmentBody.model_fields}


_PROMPTS = {"$ref": _REF.format(model=PromptsBody.__name__)}

PROMPTS_FORM = _form({"required": ["prompts"]}, {"prompts": _PROMPTS, "files": _FILES}, {"words": {"prompts": _WORDS}})
SEGMENT_FORM = _form(
    {"required": ["image"], "oneOf": [{"required": ["prompts"]}, {"required": ["prompts_id"]}]},
    {"image": _FILE, "prompts": _PROMPTS, "files": _FILES, **_plain_fields()},
    {
        "words": {"image": "(photo.jpg)", "prompts": _WORDS},
        "a picture": {"image": "(desk.jpg)", "files": "(shelf.jpg)", "prompts": _PICTURES},
        "kept classes": {"image": "(photo.jpg)", "prompts_id": str(_KEPT["id"]), "format": "png"},
    },
)


def complete(app: FastAPI) -> None:
    """Has the application describe the JSON of `prompts` too, which no route declares."""

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            _, bodies = models_json_schema([(PromptsBody, "validation")], ref_template=_REF)
            schema["components"]["schemas"] |= bodies["$defs"]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]
