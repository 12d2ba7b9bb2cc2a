"""The API with the tiny model, and what tests send to it."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fastapi.testclient import TestClient
from PIL import Image

from dpseg.cache import EmbeddingCache
from dpseg.config import ModelConfig
from dpseg.model.dpseg import DPSeg
from dpseg.segmenter import Segmenter
from dpseg.serving.app import create_app
from dpseg.serving.settings import ServeSettings

CONFIG = ModelConfig(
    encoder="tiny", image_size=64, keep_aspect=True, templates=1, logit_scale=10.0, tune_encoder=False, refine=False
)
RED, BLUE = (220, 30, 20), (20, 40, 220)


def tiny_segmenter(cache: Path) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(DPSeg(CONFIG), cache=EmbeddingCache(cache))


def client_of(segmenter: Segmenter, settings: ServeSettings | None = None) -> TestClient:
    """Returns a client; used as a context manager, it starts and stops the model's thread."""
    return TestClient(create_app(settings or ServeSettings(), segmenter), raise_server_exceptions=False)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def halves(width: int = 128, height: int = 64) -> Image.Image:
    """A photo whose left half is red and whose right half is blue."""
    photo = Image.new("RGB", (width, height), RED)
    photo.paste(BLUE, (width // 2, 0, width, height))
    return photo


PHOTO = encoded(halves())
PICTURES = {
    "red.png": encoded(Image.new("RGB", (32, 32), RED)),
    "blue.png": encoded(Image.new("RGB", (32, 32), BLUE)),
}
COLOURS: dict[str, Any] = {
    "references": [{"class": "red", "picture": "red.png"}, {"class": "blue", "picture": "blue.png"}]
}
WORDS: dict[str, Any] = {"classes": ["red", "blue, navy"]}


def post(
    client: TestClient,
    prompts: object = None,
    image: bytes | None = PHOTO,
    files: Mapping[str, bytes] | None = None,
    path: str = "/v1/segment",
    headers: Mapping[str, str] | None = None,
    **fields: str,
) -> Any:
    """Posts a form; `prompts` that are no text are sent as JSON."""
    parts: list[tuple[str, tuple[str | None, bytes]]] = [("files", part) for part in (files or {}).items()]
    if image is not None:
        parts.append(("image", ("photo", image)))
    if prompts is not None:
        fields["prompts"] = prompts if isinstance(prompts, str) else json.dumps(prompts)
    parts += [(name, (None, value.encode())) for name, value in fields.items()]
    return client.post(path, files=parts, headers=dict(headers or {}))


def colours(client: TestClient, image: bytes = PHOTO, **fields: str) -> Any:
    """Posts a photo with a red and a blue reference."""
    return post(client, COLOURS, image, PICTURES, **fields)


def refusal(response: Any, status: int) -> str:
    """Returns the one sentence that a request was refused with."""
    assert response.status_code == status, response.text
    content = response.json()
    assert list(content) == ["error"]
    sentence: str = content["error"]
    assert "\n" not in sentence
    assert "Traceback" not in sentence
    assert len(sentence) < 300
    return sentence
