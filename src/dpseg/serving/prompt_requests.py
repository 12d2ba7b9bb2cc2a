"""What a caller looks for, checked before the model sees it: JSON and files of a request -> a `PromptSet`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image
from pydantic import ValidationError

from dpseg.cache import content_key
from dpseg.errors import PromptError
from dpseg.prompts.prompt_set import PromptSet
from dpseg.prompts.text import parse_classes
from dpseg.prompts.visual import Reference
from dpseg.segmenter import Segmenter
from dpseg.serving.forms import Form, Upload
from dpseg.serving.pictures import open_mask, open_picture
from dpseg.serving.problems import RequestError, invalid, shorten
from dpseg.serving.schemas import PromptsBody, ReferenceBody
from dpseg.serving.settings import ServeSettings

KEY_LENGTH = 32
"""Hexadecimal digits of a key: 128 bits of a SHA-256."""


@dataclass(frozen=True, eq=False)
class PromptRequest:
    """Classes as a caller sent them.

    Attributes:
        body: the JSON.
        files: content of the pictures and masks, by the caller's names.
        key: of all of it; the same request has the same key.
        max_pixels: of all pictures and masks together.
    """

    body: PromptsBody
    files: Mapping[str, bytes]
    key: str
    max_pixels: int

    def build(self, segmenter: Segmenter) -> PromptSet:
        """Encodes the classes.

        Raises:
            DPSegError: a picture cannot be used.
        """
        references = self._references() or None
        text = None if self.body.classes is None else list(self.body.classes)
        return segmenter.prompts(text, references, self.body.bank)

    def _references(self) -> dict[str, list[Reference]]:
        found: dict[str, list[Reference]] = {}
        left = self.max_pixels
        for reference in self.body.references:
            name = f"reference {shorten(repr(reference.picture))}"
            picture = open_picture(self.files[reference.picture], name, self.max_pixels)
            left -= picture.width * picture.height * (1 if reference.mask is None else 2)
            if left < 0:
                raise RequestError(
                    413, f"the references have more than {self.max_pixels:,} pixels together; make them smaller first"
                )
            found.setdefault(reference.name, []).append(self._cut(reference, picture))
        return found

    def _cut(self, reference: ReferenceBody, picture: Image.Image) -> Reference:
        """Says where in the picture the thing is."""
        mask, box = None, reference.box
        if reference.mask is not None:
            mask = open_mask(self.files[reference.mask], f"mask {shorten(repr(reference.mask))}", picture.size)
            if not mask.any():
                raise PromptError(f"mask {shorten(repr(reference.mask))} is empty; mark the thing with values above 0")
        if box is not None and not (box[0] < box[2] <= picture.width and box[1] < box[3] <= picture.height):
            numbers = ",".join(f"{value:g}" for value in box)
            raise PromptError(
                f"box {numbers} is not within {shorten(repr(reference.picture))}, which is"
                f" {picture.width} x {picture.height}; give x0,y0,x1,y1 in pixels with x0 < x1 and y0 < y1"
            )
        return Reference(picture, mask=mask, box=box, context=self.body.context)


def read_prompts(form: Form, settings: ServeSettings, model: str) -> PromptRequest:
    """Reads and checks the fields `prompts` and `files`.

    Args:
        form: of the request.
        settings: the limits.
        model: fingerprint of the model that will use them.

    Raises:
        RequestError: they cannot be used.
        PromptError: the classes cannot.
    """
    try:
        body = PromptsBody.model_validate_json(form.fields["prompts"])
    except ValidationError as error:
        raise invalid("prompts", error) from error
    if not body.classes and not body.references:
        raise PromptError('no classes given; send {"classes": ["cat", "wall"]}, or references')
    _check_counts(body, settings)
    if body.classes is not None:
        parse_classes(body.classes)
    files = _by_name(form.files.get("files", ()))
    used = {name for one in body.references for name in (one.picture, one.mask) if name is not None}
    for name in used - files.keys():
        raise RequestError(422, f"no file is called {shorten(repr(name))}; send it in the field files, under that name")
    for name in files.keys() - used:
        raise RequestError(422, f"the file {shorten(repr(name))} is not named by a reference; name it, or leave it out")
    parts: list[str | bytes] = [model, body.model_dump_json()]
    for name in sorted(files):
        parts += [name, files[name]]
    return PromptRequest(body, files, content_key(*parts)[:KEY_LENGTH], settings.max_reference_pixels)


def _check_counts(body: PromptsBody, settings: ServeSettings) -> None:
    names = set(body.classes or ()) | {reference.name for reference in body.references}
    count = max(len(body.classes or ()), len(names) if body.classes is None else 0)
    if count > settings.max_names:
        raise RequestError(422, f"{count} classes; the limit is {settings.max_names}, so ask for fewer at a time")
    if len(body.references) > settings.max_references:
        raise RequestError(
            422, f"{len(body.references)} references; the limit is {settings.max_references}, so send fewer"
        )
    for name in names:
        if len(name) > settings.max_name_length:
            raise RequestError(
                422, f"class {shorten(repr(name))} has {len(name)} characters; the limit is {settings.max_name_length}"
            )


def _by_name(uploads: Sequence[Upload]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for upload in uploads:
        if not upload.name:
            raise RequestError(422, "a file in the field files has no name; give it one, which references can name")
        if upload.name in files:
            raise RequestError(422, f"two files are called {shorten(repr(upload.name))}; give each its own name")
        files[upload.name] = upload.data
    return files
