"""The page's requests: checked as the API's are, by the same code, and worked off by the same service."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from starlette.concurrency import run_in_threadpool

from dpseg.errors import ImageError, PromptError
from dpseg.images import load_image, read_mask
from dpseg.prompts.prompt_set import TEXT_SOURCE, PromptSet
from dpseg.prompts.text import parse_class
from dpseg.result import Segmentation
from dpseg.serving.forms import Form, Upload
from dpseg.serving.page.kept import KeptResult, PageReference, keep
from dpseg.serving.page.names import read_names
from dpseg.serving.page.view import data_uri, overlay_of, view_of
from dpseg.serving.pictures import open_picture
from dpseg.serving.problems import RequestError
from dpseg.serving.prompt_requests import PromptRequest, read_prompts
from dpseg.serving.service import Service

COMPARISONS = {
    "refinement": ("Inference I", "Inference II"),
    "prompts": ("words alone", "pictures alone"),
}
"""What can be compared, and what stands left and right."""

_THUMBNAIL = 96  # pixels of the longer side


@dataclass(frozen=True)
class Task:
    """What a visitor asked for.

    Attributes:
        photo: path of the file that was uploaded.
        names: the text of the box.
        references: pictures of classes.
        refine: look twice.
        background: threshold in [0, 1]; 0: every pixel gets a class.
    """

    photo: str
    names: str
    references: tuple[PageReference, ...] = ()
    refine: bool = False
    background: float = 0.0


async def read_photo(service: Service, path: str | None) -> bytes:
    """Returns the file of an uploaded photo.

    Raises:
        ImageError: there is none.
        RequestError: it is too large.
    """
    if not path:
        raise ImageError("no photo yet; drop one, or choose a file")
    file = Path(path)
    if file.stat().st_size > service.settings.max_body:
        raise RequestError(413, f"the photo has more than {service.settings.max_body_mb:g} MB; make it smaller first")
    return await run_in_threadpool(file.read_bytes)


def ask(service: Service, names: str, references: tuple[PageReference, ...]) -> PromptRequest:
    """Reads and checks names and references, as the API does.

    Raises:
        DPSegError: they cannot be used.
    """
    classes = read_names(names)
    known = {word for entry in classes for word in parse_class(entry).synonyms}
    extra = [name for name in dict.fromkeys(one.name for one in references) if name not in known]
    if not classes and not extra:
        raise PromptError("no names yet; write what to look for, e.g. cat, wall")
    uploads: list[Upload] = []
    entries: list[dict[str, str]] = []
    for number, one in enumerate(references):
        entry = {"class": one.name, "picture": f"picture {number + 1}"}
        uploads.append(Upload(entry["picture"], one.picture))
        if one.mask is not None:
            entry["mask"] = f"mask {number + 1}"
            uploads.append(Upload(entry["mask"], one.mask))
        entries.append(entry)
    body = json.dumps({"classes": classes + extra, "references": entries})
    return read_prompts(Form({"prompts": body}, {"files": tuple(uploads)}), service.settings, service.model)


async def segment(
    service: Service, asked: PromptRequest, photo: bytes, task: Task
) -> tuple[KeptResult, dict[str, Any]]:
    """Segments a photo; returns what is kept of it, and what the page shows.

    Raises:
        DPSegError: the photo or a reference cannot be used.
    """
    prompts = await service.prompts(asked)
    background = task.background or None

    def packed(result: Segmentation) -> tuple[KeptResult, dict[str, Any]]:
        return keep(result, photo, Path(task.photo).name, asked, task.refine, background), view_of(result)

    return await service.segment(photo, prompts, asked.key, packed, task.refine, background)


async def compare(service: Service, kept: KeptResult, kind: str) -> tuple[Any, Any]:
    """Returns two overlays of a photo, see `COMPARISONS`.

    Raises:
        PromptError: pictures are asked for, and no class has one.
    """
    prompts = await service.prompts(kept.asked)
    key = kept.asked.key
    if kind == "refinement":
        sides = [(prompts, key, False), (prompts, key, True)]
    else:
        sides = [
            (words_alone(prompts), f"{key} words", False),  # a second look would give words pictures too
            (pictures_alone(prompts), f"{key} pictures", False),
        ]
    left, right = [
        await service.segment(kept.photo, mine, name, overlay_of, refine, kept.background)
        for mine, name, refine in sides
    ]
    return left, right


def words_alone(prompts: PromptSet) -> PromptSet:
    """Returns prompts without their pictures."""
    old = prompts.embeddings
    stages = (torch.zeros_like(old.stages[0]), torch.zeros_like(old.stages[1]), torch.zeros_like(old.stages[2]))
    embeddings = dataclasses.replace(
        old, visual=torch.zeros_like(old.visual), stages=stages, has_visual=torch.zeros_like(old.has_visual)
    )
    return dataclasses.replace(prompts, embeddings=embeddings, sources=((TEXT_SOURCE,),) * len(prompts))


def pictures_alone(prompts: PromptSet) -> PromptSet:
    """Returns prompts without their words: the classes that have pictures, of the visitor or of the bank.

    Raises:
        PromptError: no class has any.
    """
    has = prompts.embeddings.has_visual.tolist()
    names = [name for name, there in zip(prompts.names, has, strict=True) if there]
    if not names:
        raise PromptError("none of the names has a picture; add a reference picture first")
    chosen = prompts.select(names)
    old = chosen.embeddings
    embeddings = dataclasses.replace(old, text=torch.zeros_like(old.text), has_text=torch.zeros_like(old.has_text))
    sources = tuple(tuple(kind for kind in kinds if kind != TEXT_SOURCE) for kinds in chosen.sources)
    return dataclasses.replace(chosen, embeddings=embeddings, sources=sources)


def read_marked(value: object, service: Service) -> tuple[bytes, npt.NDArray[np.bool_] | None]:
    """Reads what the page's marker sends: a picture's file, and where in it the thing is, (H, W); None: nothing marked.

    Raises:
        ImageError: there is no picture, or what was sent is none.
        RequestError: it is too large.
    """
    content = value if isinstance(value, dict) else {}
    if not content.get("picture"):
        raise ImageError("no picture yet; choose one first")
    picture = _content(content["picture"])
    open_picture(picture, "the picture", service.settings.max_pixels)
    if not content.get("mask"):
        return picture, None
    mask = open_picture(_content(content["mask"]), "the marks", service.settings.max_pixels)
    marked: npt.NDArray[np.bool_] = read_mask(mask.convert("L")) > 0
    return picture, marked if marked.any() else None


def _content(uri: object) -> bytes:
    """Returns the content of a data URI."""
    try:
        return base64.b64decode(str(uri).partition(";base64,")[2], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError("the picture did not arrive whole; choose it again") from error


def thumbnails(references: tuple[PageReference, ...]) -> list[dict[str, str]]:
    """Returns what the page lists of reference pictures: name and a small picture, dark where it is not meant."""
    return [{"name": one.name, "picture": _thumbnail(one)} for one in references]


def _thumbnail(one: PageReference) -> str:
    picture = load_image(Image.open(io.BytesIO(one.picture)))
    if one.mask is not None:
        mask = read_mask(Image.open(io.BytesIO(one.mask))) > 0
        shade = Image.fromarray(np.where(mask, 255, 90).astype(np.uint8))
        picture = Image.composite(picture, Image.new("RGB", picture.size), shade)
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return data_uri(picture, "JPEG")
