"""The HTTP API with the tiny model, and what tests send to it; pytest_plugins = "support.served" brings `client`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from fastapi.testclient import TestClient

from dpseg.segmenter import Segmenter
from dpseg.serving.app import create_app
from dpseg.serving.settings import ServeSettings
from support.pictures import BLUE, RED, encoded, halves, plain

PHOTO = encoded(halves())
PICTURES = {"red.png": encoded(plain(RED)), "blue.png": encoded(plain(BLUE))}
COLOURS: dict[str, Any] = {
    "references": [{"class": "red", "picture": "red.png"}, {"class": "blue", "picture": "blue.png"}]
}
WORDS: dict[str, Any] = {"classes": ["red", "blue, navy"]}


def client_of(segmenter: Segmenter, **settings: Any) -> TestClient:
    """Returns a client; used as a context manager, it starts and stops the model's threads."""
    return TestClient(create_app(ServeSettings(**settings), segmenter), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(segmenter: Segmenter) -> Iterator[TestClient]:
    """A client of the tiny model with the usual limits."""
    with client_of(segmenter) as started:
        yield started


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


def send_colours(client: TestClient, image: bytes = PHOTO, **fields: Any) -> Any:
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
