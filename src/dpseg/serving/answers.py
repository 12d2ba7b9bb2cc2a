"""A segmentation -> the bytes of an answer, and which kind of answer a caller wants."""

from __future__ import annotations

import json
from typing import Any

from dpseg.result import Segmentation
from dpseg.serving.problems import RequestError, shorten
from dpseg.serving.schemas import AnswerFormat

MEDIA_TYPES: dict[AnswerFormat, str] = {"json": "application/json", "png": "image/png"}
"""Format -> media type."""


def wanted_format(asked: AnswerFormat | None, accept: str | None) -> AnswerFormat:
    """Returns the format of an answer; JSON where the caller does not mind.

    Args:
        asked: the field `format`, which counts before the header.
        accept: the header.

    Raises:
        RequestError: the header admits neither.
    """
    if asked is not None:
        return asked
    if not accept or not accept.strip():
        return "json"
    weights = {kind: _weight(media, accept) for kind, media in MEDIA_TYPES.items()}
    best: AnswerFormat = "png" if weights["png"] > weights["json"] else "json"
    if weights[best] <= 0:
        raise RequestError(406, f"Accept is {shorten(repr(accept))}; answers are application/json or image/png")
    return best


def answer(result: Segmentation, form: AnswerFormat) -> bytes:
    """Returns the body of an answer.

    Args:
        result: of the photo.
        form: "json", or "png": the label map, whose pixel is the class's place in `names`, 255 where there is none;
            above 255 classes 16-bit, 65535 where there is none.
    """
    return result.encoded("png") if form == "png" else json.dumps(_content(result), ensure_ascii=False).encode()


def _content(result: Segmentation) -> dict[str, Any]:
    """Returns what `SegmentAnswer` describes."""
    content = result.to_dict()
    masks = {mask["category_id"] - 1: mask for mask in result.to_coco()["annotations"]}
    for found in content["classes"]:
        mask = masks[found["index"]]
        found |= {"pixels": mask["area"], "bbox": mask["bbox"], "segmentation": mask["segmentation"]}
    del content["source"]
    return content


def _weight(media: str, accept: str) -> float:
    """Returns how much a header wants a media type, 0 to 1: the most specific of its ranges decides."""
    ranges = {media: 2, f"{media.partition('/')[0]}/*": 1, "*/*": 0}
    found: list[tuple[int, float]] = []
    for part in accept.split(","):
        name, *parameters = (word.strip().lower() for word in part.split(";"))
        if name in ranges:
            found.append((ranges[name], _quality(parameters)))
    return max(found, default=(0, 0.0))[1]


def _quality(parameters: list[str]) -> float:
    try:
        return next((float(text.removeprefix("q=")) for text in parameters if text.startswith("q=")), 1.0)
    except ValueError:
        return 1.0
