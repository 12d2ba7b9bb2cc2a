"""The HTTP API, as programs use it: photos and prompts in, run lengths or a PNG out."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from pycocotools import mask as coco

from dpseg.segmenter import Segmenter
from support.pictures import encoded
from support.served import COLOURS, PHOTO, PICTURES, WORDS, client_of, post, refusal, send_colours

pytest_plugins = "support.served"


def labels_of(response: Any) -> np.ndarray:
    """Returns the label map that run lengths say, -1 where there is no class."""
    answer = response.json()
    labels = np.full((answer["height"], answer["width"]), -1)
    for found in answer["classes"]:
        labels[coco.decode(found["segmentation"]).astype(bool)] = found["index"]
    return labels


def test_the_answer_is_what_the_segmenter_says(client: TestClient, segmenter: Segmenter) -> None:
    response = send_colours(client)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    answer = response.json()
    pictures = {name.partition(".")[0]: Image.open(io.BytesIO(data)) for name, data in PICTURES.items()}
    expected = segmenter(Image.open(io.BytesIO(PHOTO)), references=pictures)
    assert np.array_equal(labels_of(response), expected.labels)
    assert (expected.labels[:, :60] == 0).all()
    assert (answer["width"], answer["height"], answer["names"], answer["none"]) == (128, 64, ["red", "blue"], 0)
    for found in answer["classes"]:
        assert found["area"] == pytest.approx(expected.areas[found["name"]], abs=1e-6)
        assert found["confidence"] == pytest.approx(expected.confidences[found["name"]], abs=1e-4)
        assert found["pixels"] == (expected.labels == found["index"]).sum()
        assert found["prompts"] == ["reference"]
    assert "source" not in answer
    picture = Image.open(io.BytesIO(send_colours(client, format="png").content))
    assert picture.mode == "P"
    assert np.array_equal(np.asarray(picture), expected.labels)
    palette = picture.getpalette()
    assert {tuple(one["color"]) for one in answer["classes"]} == {tuple(palette[:3]), tuple(palette[3:6])}


def test_words_and_pictures_go_together_and_options_reach_the_model(client: TestClient) -> None:
    prompts = {"classes": ["red, crimson", "blue"], "references": [{"class": "Crimson", "picture": "red.png"}]}
    answer = post(client, prompts, files={"red.png": PICTURES["red.png"]}).json()
    assert answer["names"] == ["red", "blue"]
    assert ["text", "reference"] in [found["prompts"] for found in answer["classes"]]
    nothing = send_colours(client, background="1").json()
    assert (nothing["none"], nothing["classes"]) == (1, [])
    crops = send_colours(client, refine="true").json()
    assert {kind for found in crops["classes"] for kind in found["prompts"]} == {"crop"}


@pytest.mark.parametrize("name", ["mask.png", "mask.jpg"])
def test_a_mask_or_a_box_says_where_the_thing_is(client: TestClient, name: str) -> None:
    mask = Image.new("L", (128, 64), 0)
    mask.paste(255, (64, 0, 128, 64))
    left = {"class": "left", "picture": "both.png", "box": [0, 0, 60, 64]}
    right = {"class": "right", "picture": "both.png", "mask": name}
    files = {"both.png": PHOTO, name: encoded(mask, "PNG" if name == "mask.png" else "JPEG")}
    labels = labels_of(post(client, {"references": [left, right]}, files=files))
    assert (labels[:, :60] == 0).all()
    assert (labels[:, 68:] == 1).all()


@pytest.mark.parametrize(
    ("accept", "fields", "kind"),
    [
        ("image/png", {}, "image/png"),
        ("image/*;q=0.9, text/html", {}, "image/png"),
        ("application/json;q=0.5, image/png", {}, "image/png"),
        ("application/json;q=0.1, */*", {}, "image/png"),
        ("*/*", {}, "application/json"),
        ("image/png;q=0, */*", {}, "application/json"),
        ("image/png", {"format": "json"}, "application/json"),
        ("application/json", {"format": "png"}, "image/png"),
        ("text/html", {}, None),
    ],
)
def test_the_caller_chooses_the_format(
    client: TestClient, accept: str, fields: dict[str, str], kind: str | None
) -> None:
    response = send_colours(client, headers={"accept": accept}, **fields)
    if kind is None:
        assert accept in refusal(response, 406)
    else:
        assert (response.status_code, response.headers["content-type"]) == (200, kind)


def test_prompts_are_kept_under_an_id_of_what_was_sent(client: TestClient) -> None:
    kept = post(client, COLOURS, None, PICTURES, path="/v1/prompts")
    assert kept.status_code == 201
    answer = kept.json()
    assert (answer["names"], answer["sources"]) == (["red", "blue"], [["reference"], ["reference"]])
    assert post(client, COLOURS, None, PICTURES, path="/v1/prompts").json() == answer
    assert client.get(f"/v1/prompts/{answer['id']}").json() == answer
    assert post(client, prompts_id=answer["id"]).json() == send_colours(client).json()
    assert post(client, WORDS, None, path="/v1/prompts").json()["id"] != answer["id"]
    swapped = {"red.png": PICTURES["blue.png"], "blue.png": PICTURES["red.png"]}
    assert np.array_equal(labels_of(post(client, COLOURS, files=swapped)), 1 - labels_of(send_colours(client)))


def test_a_folder_keeps_prompts_over_a_restart_and_ids_are_no_paths(segmenter: Segmenter, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    segmenter.prompts(["cat", "dog"]).save(folder / "pets.safetensors")
    segmenter.prompts(["cat"]).save(tmp_path / "secret.safetensors")
    with client_of(segmenter, prompts_dir=folder) as started:
        kept = post(started, COLOURS, None, PICTURES, path="/v1/prompts").json()["id"]
        before = set(folder.iterdir())
        for name in ("../secret", "..%2Fsecret", str(tmp_path / "secret"), "secret", ".", "%00", "kept/../../secret"):
            assert started.get(f"/v1/prompts/{name}").status_code in (404, 405)
            assert "no prompt set has the id" in refusal(post(started, prompts_id=name), 404)
        assert set(folder.iterdir()) == before
    with client_of(segmenter, prompts_dir=folder) as again:
        assert again.get("/v1/prompts/pets").json()["names"] == ["cat", "dog"]
        assert np.array_equal(labels_of(post(again, prompts_id=kept)), labels_of(send_colours(again)))


def test_a_token_is_asked_for(segmenter: Segmenter) -> None:
    with client_of(segmenter, token="let-me-in") as started:
        for headers in ({}, {"authorization": "Bearer let-me"}, {"authorization": "Basic let-me-in"}):
            response = send_colours(started, headers=headers)
            assert "Authorization: Bearer" in refusal(response, 401)
            assert response.headers["www-authenticate"] == "Bearer"
            assert started.get("/metrics", headers=headers).status_code == 401
            assert started.get("/v1/prompts/x", headers=headers).status_code == 401
        assert send_colours(started, headers={"authorization": "Bearer let-me-in"}).status_code == 200
        assert started.get("/healthz").json() == {"status": "ok"}
        assert "let-me-in" not in repr(started.app.state.service.settings)  # type: ignore[attr-defined]


def test_metrics_count_what_was_done_and_health_follows_the_model_s_threads(segmenter: Segmenter) -> None:
    with client_of(segmenter) as started:
        assert started.get("/healthz").status_code == started.get("/readyz").status_code == 200
        for _ in range(3):
            assert send_colours(started).status_code == 200
        assert post(started).status_code == 422
        started.get("/nowhere")
        figures = dict(line.rsplit(" ", 1) for line in started.get("/metrics").text.splitlines() if line[0] != "#")
    assert "has ended" in refusal(started.get("/healthz"), 503)
    assert float(figures['dpseg_requests_total{route="/v1/segment",status="200"}']) == 3
    assert float(figures['dpseg_requests_total{route="/v1/segment",status="422"}']) == 1
    assert float(figures['dpseg_requests_total{route="other",status="404"}']) == 1
    assert float(figures["dpseg_batch_photos_count"]) == 3
    assert float(figures['dpseg_prompts_total{memory="hit"}']) == 2
    assert float(figures["dpseg_requests_inside"]) == 0
    assert float(figures["process_resident_memory_bytes"]) > 1e7


def test_openapi_describes_it_with_examples_that_work(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    form = schema["paths"]["/v1/segment"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert form["schema"]["required"] == ["image"]
    for example in form["examples"].values():
        assert set(example["value"]) <= set(form["schema"]["properties"])
        if "prompts_id" not in example["value"]:
            pictures = {"shelf.jpg": PHOTO} if "files" in example["value"] else {}
            sent = example["value"]["prompts"].replace("[120, 40, 260, 210]", "[0, 0, 60, 60]")
            assert post(client, sent, files=pictures).status_code == 200
    assert {"PromptsBody", "ReferenceBody", "Problem", "SegmentAnswer"} <= set(schema["components"]["schemas"])
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404
