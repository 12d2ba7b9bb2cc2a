"""What the API refuses, each time with a status of 4xx and one sentence."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from dpseg.segmenter import Segmenter
from dpseg.serving.problems import OUR_FAULT
from support.pictures import BLUE, encoded, halves, noisy
from support.served import COLOURS, PHOTO, PICTURES, WORDS, client_of, post, refusal, send_colours

pytest_plugins = "support.served"


@pytest.fixture(scope="module")
def small(segmenter: Segmenter) -> Iterator[TestClient]:
    """A server with narrow limits."""
    limits = {"max_body_mb": 0.4, "max_megapixels": 0.5, "max_reference_megapixels": 0.02}
    with client_of(segmenter, max_names=3, max_name_length=40, max_references=4, **limits) as started:
        yield started


def with_box(*box: float) -> dict[str, Any]:
    return {"references": [{"class": "red", "picture": "red.png", "box": box}]}


def with_mask(name: str) -> dict[str, Any]:
    return {"references": [{"class": "red", "picture": "red.png", "mask": name}]}


@pytest.mark.parametrize(
    ("prompts", "status", "words"),
    [
        ("{", 400, "prompts: invalid JSON"),
        ('{"classes": ["\\ud800"]}', 400, "invalid JSON"),
        ("[]", 422, "prompts: input should be"),
        ("null", 422, "prompts: input should be"),
        ({}, 422, "no classes given"),
        ({"classes": []}, 422, "no classes given"),
        ({"classes": ["cat", " , "]}, 422, "' , ' has no name"),
        ({"classes": ["cat", "Cat"]}, 422, "'Cat' is given twice"),
        ({"classes": "cat"}, 422, "prompts.classes: input should be a valid array (it is 'cat')"),
        ({"classes": ["cat", 7]}, 422, "prompts.classes.1: input should be a valid string (it is 7)"),
        ({"clases": ["cat"]}, 422, "prompts.clases: extra inputs are not permitted"),
        ({"classes": ["cat"], "context": "sharp"}, 422, "prompts.context: input should be 'keep', 'blur' or 'mean'"),
        ({"references": [{"class": "red"}]}, 422, "prompts.references.0.picture: field required"),
        ({"references": [{"class": "red", "picture": "x.png"}]}, 422, "no file is called 'x.png'"),
        ({"references": [{"class": "red", "picture": "/etc/passwd"}]}, 422, "no file is called '/etc/passwd'"),
        ({**COLOURS, "classes": ["red"]}, 422, "for a class that is not listed, 'blue'"),
        (with_box(0, 0, 40, 10), 422, "box 0,0,40,10 is not within 'red.png', which is 32 x 32"),
        (with_box(5, 5, 5, 10), 422, "give x0,y0,x1,y1"),
        (with_box(1.1, 1, 1.2, 10), 422, "give x0,y0,x1,y1"),
        (with_box(0, 0, 1), 422, "prompts.references.0.box.3: field required"),
        (with_mask("wide.png"), 422, "mask 'wide.png' is 40 x 32, but its picture is 32 x 32"),
        (with_mask("empty.png"), 422, "mask 'empty.png' is empty"),
        (with_mask("colours.png"), 422, "mask 'colours.png': a mask holds one value a pixel"),
        (with_mask("text.png"), 422, "mask 'text.png': not a picture"),
        ({"references": [{"class": "red", "picture": "text.png"}]}, 422, "reference 'text.png': not a picture"),
        ({"references": [{"class": "red", "picture": "cut.png"}]}, 422, "reference 'cut.png': truncated or damaged"),
    ],
)
def test_prompts_that_cannot_be_used(client: TestClient, prompts: object, status: int, words: str) -> None:
    everything = {
        **PICTURES,
        "wide.png": encoded(Image.new("L", (40, 32), 255)),
        "empty.png": encoded(Image.new("L", (32, 32))),
        "colours.png": encoded(halves(32, 32)),
        "text.png": b"hello",
        "cut.png": encoded(noisy(BLUE, 0, 64))[:6000],
    }
    files = {name: data for name, data in everything.items() if f"'{name}'" in str(prompts)}
    for path, image in (("/v1/segment", PHOTO), ("/v1/prompts", None)):
        assert words in refusal(post(client, prompts, image, files, path=path), status)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "neither prompts nor prompts_id"),
        ({"prompts": json.dumps(WORDS), "prompts_id": "x"}, "both prompts and prompts_id"),
        ({"prompts": json.dumps(WORDS), "refine": "perhaps"}, "refine: input should be a valid boolean"),
        ({"prompts": json.dumps(WORDS), "background": "2"}, "background: input should be less than or equal to 1"),
        ({"prompts": json.dumps(WORDS), "background": "nan"}, "background: input should be"),
        ({"prompts": json.dumps(WORDS), "format": "jpg"}, "format: input should be 'json' or 'png' (it is 'jpg')"),
        ({"prompts": json.dumps(WORDS), "colour": "red"}, "the field 'colour' is unknown; the fields are image,"),
    ],
)
def test_fields_that_cannot_be_used(client: TestClient, fields: dict[str, str], words: str) -> None:
    assert words in refusal(post(client, **fields), 422)


IMAGE, RED_FILE = ("image", ("a.png", PHOTO)), ("files", ("red.png", PICTURES["red.png"]))
ASKED = ("prompts", (None, json.dumps(COLOURS).encode()))


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((ASKED,), "the field image is missing"),
        ((ASKED, ("image", (None, b"red"))), "'image' holds text, but is a file"),
        ((ASKED, IMAGE, IMAGE), "'image' is there 2 times"),
        ((ASKED, IMAGE, ("picture", ("red.png", PHOTO))), "the field 'picture' is unknown"),
        ((ASKED, IMAGE, ("format", ("red.png", PHOTO))), "'format' holds a file, but is a text"),
        ((ASKED, IMAGE, RED_FILE, RED_FILE), "two files are called 'red.png'"),
        ((("prompts", (None, json.dumps(WORDS).encode())), IMAGE, RED_FILE), "is not named by a reference"),
        ((ASKED, ASKED, IMAGE), "'prompts' is there twice"),
    ],
)
def test_parts_that_cannot_be_used(client: TestClient, parts: Any, words: str) -> None:
    assert words in refusal(client.post("/v1/segment", files=list(parts)), 422)


FORM = "multipart/form-data; boundary=b"
ROT13 = b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\ny\r\n--b--'


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("", b"hello", 415),
        ("application/json", b"{}", 415),
        ("multipart/form-data", b"hello", 400),
        (FORM, b"", 422),
        (FORM, b"hello", 400),
        (FORM, b"--b\r\n\r\nno name\r\n--b--\r\n", 400),
        (f"{FORM}; charset=rot13", ROT13, 422),
        (FORM + 499 * "b", b"--b", 400),
    ],
)
def test_forms_that_cannot_be_read_are_not_waited_for(
    client: TestClient, kind: str, body: bytes, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[asyncio.Timeout] = []
    timeout = asyncio.timeout
    monkeypatch.setattr(asyncio, "timeout", lambda seconds: limits.append(timeout(seconds)) or limits[-1])
    sentence = refusal(client.post("/v1/segment", content=body, headers={"content-type": kind}), status)
    assert "multipart/form-data" in sentence or status == 422
    assert limits
    assert not any(limit.expired() for limit in limits)  # nobody waited for more of the request


def test_limits_of_a_request(small: TestClient) -> None:
    large = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (400, 400, 3), np.uint8)))
    assert len(large) > 400_000
    assert "more than 0.4 MB" in refusal(post(small, WORDS, large), 413)
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    chunks = chain([part], repeat(large[:50_000], 20))  # without a Content-Length
    response = small.post("/v1/segment", content=chunks, headers={"content-type": FORM})
    assert "more than 0.4 MB" in refusal(response, 413)
    assert "image: 1000 x 501 = 501,000 pixels" in refusal(post(small, WORDS, encoded(halves(1000, 501))), 413)
    assert post(small, WORDS, encoded(halves(1000, 500))).status_code == 200
    assert "4 classes; the limit is 3" in refusal(post(small, {"classes": list("abcd")}), 422)
    assert "41 characters" in refusal(post(small, {"classes": ["a" * 41]}), 422)
    many = [{"class": str(number % 3), "picture": "red.png"} for number in range(5)]
    assert "5 references; the limit is 4" in refusal(post(small, {"references": many}, files=PICTURES), 422)
    wide = [{"class": "a", "picture": "red.png", "mask": "mask.png"}] * 4
    files = {"red.png": encoded(halves(60, 50)), "mask.png": encoded(Image.new("1", (60, 50), 1))}
    assert "more than 20,000 pixels together" in refusal(post(small, {"references": wide}, files=files), 413)
    assert post(small, {"references": wide[:3]}, files=files).status_code == 200


def test_our_mistakes_say_nothing_of_the_server(
    client: TestClient, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise FileNotFoundError(f"{tmp_path}/weights are gone")

    with monkeypatch.context() as patch:
        patch.setattr(segmenter, "decode", fail)
        assert refusal(send_colours(client), 500) == OUR_FAULT
    assert send_colours(client).status_code == 200
    assert "there is no /nowhere" in refusal(client.get("/nowhere"), 404)
    assert "does not take GET" in refusal(client.get("/v1/segment"), 405)
    with client_of(segmenter, prompts_dir=tmp_path / "kept") as started:
        (tmp_path / "kept").rmdir()
        assert refusal(post(started, WORDS, None, path="/v1/prompts"), 500) == OUR_FAULT
