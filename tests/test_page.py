"""What stands behind the page: names, views, corrections, comparisons, and its handlers with the tiny model."""

from __future__ import annotations

import asyncio
import base64
import http.client
import io
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse

from dpseg.errors import DPSegError, ImageError, PromptError
from dpseg.segmenter import Segmenter
from dpseg.serving.app import create_app
from dpseg.serving.page import work
from dpseg.serving.page.kept import DOWNLOADS, KeptResult, PageReference, mask_file
from dpseg.serving.page.mount import SizeLimit, mount_page
from dpseg.serving.page.names import add_names, offered_vocabularies, read_names, shown_names, suggestions, write_names
from dpseg.serving.page.view import SHOWN_SIDE, view_of
from dpseg.serving.problems import OUR_FAULT
from dpseg.serving.service import Service
from dpseg.serving.settings import ServeSettings
from support.pictures import BLUE, RED, halves, plain
from support.served import PHOTO, PICTURES
from support.serving import ask

if TYPE_CHECKING:
    from dpseg.serving.page.events import Events

pytest_plugins = ("support.served", "support.serving")

CALLER = SimpleNamespace(client=SimpleNamespace(host="10.0.0.1"))
COLOURS = (PageReference("red", PICTURES["red.png"]), PageReference("blue", PICTURES["blue.png"]))


@pytest.fixture(scope="module")
def service(segmenter: Segmenter) -> Iterator[Service]:
    made = Service(ServeSettings(max_names=6, max_references=2, max_megapixels=1), segmenter)
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def events(service: Service) -> Events:
    import gradio as gr

    from dpseg.serving.page.events import Events
    from dpseg.serving.page.layout import lay_out

    with gr.Blocks(analytics_enabled=False):
        made = Events(lay_out(service.settings, False, 60, lambda: 0), service)
        made.connect()
    return made


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "halves.png"
    path.write_bytes(PHOTO)
    return str(path)


def ran(events: Events, photo: str, names: str = "red, blue", references: Any = COLOURS) -> dict[Any, Any]:
    """Presses Segment, and returns what changes on the page."""
    return asyncio.run(events.run(photo, names, references, False, 0.0, CALLER))


def told(events: Events, update: dict[Any, Any]) -> tuple[str, str]:
    message = update[events.parts.status]
    return message["kind"], message["text"]


def picture(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def uri(file: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(file).decode()


def test_names_are_parted_by_lines_and_commas_and_joined_by_equals_signs() -> None:
    text = " cat, dog\n\ncouch =  sofa ,\r\nCAT;traffic  light, =, "
    assert read_names(text) == ["cat", "dog", "couch, sofa", "traffic light"]
    assert read_names(write_names(read_names(text))) == read_names(text)
    assert shown_names(text) == ["cat", "dog", "couch", "traffic light"]
    assert add_names("cat\nwall", ["Cat", "sea, ocean"]) == "cat\nwall\nsea = ocean"
    assert add_names("", ["cat"]) == "cat"


def test_only_vocabularies_within_the_limit_are_offered_and_suggestions_are_names() -> None:
    assert {name for _, name in offered_vocabularies(100)} == {"coco80", "pc59", "voc20"}
    assert {"cat", "pizza", "wall"} <= set(suggestions())
    assert not [name for name in suggestions() if "," in name or "=" in name]


def test_a_view_holds_every_pixels_class_and_score(segmenter: Segmenter) -> None:
    result = segmenter(halves(), ["red", "blue", "green"], {"red": plain(RED, 9)})
    view = view_of(result)
    coded = np.asarray(picture(view["map"])).astype(int)
    names = [entry["name"] for entry in view["entries"]]
    assert names == list(result.areas)
    places = coded[..., 0] + 256 * coded[..., 1]
    for index, name in enumerate(names):
        assert np.array_equal(places == index + 1, result.mask(name))
        own = result.scores[result.names.index(name)][result.mask(name)]
        assert np.abs(coded[..., 2][places == index + 1] - 100 * own).max() <= 1
    assert picture(view["photo"]).size == (view["width"], view["height"]) == (128, 64)


def test_a_large_view_is_made_smaller_and_pixels_without_a_class_are_zero(segmenter: Segmenter) -> None:
    view = view_of(segmenter(halves(3000, 500), ["red"], background=1.0))
    assert (view["width"], view["height"], view["entries"]) == (SHOWN_SIDE, round(500 * SHOWN_SIDE / 3000), [])
    assert not np.asarray(picture(view["map"])).any()


def test_a_run_finds_what_the_references_show_and_what_is_kept_is_the_whole_result(
    events: Events, photo: str, segmenter: Segmenter
) -> None:
    update = ran(events, photo)
    kind, text = told(events, update)
    assert (kind, text.startswith("Found ")) == ("done", True)
    kept = update[events.parts.kept]
    expected = segmenter(halves(), ["red", "blue"], {"red": plain(RED), "blue": plain(BLUE)}, refine=False)
    assert np.array_equal(kept.segmentation().labels, expected.labels)
    assert kept.segmentation().confidences == pytest.approx(expected.confidences, abs=1e-3)
    assert {entry["name"] for entry in update[events.showing.viewer]["entries"]} == set(expected.areas)
    for kind, (ending, _) in DOWNLOADS.items():
        name, _, data = kept.download(kind)
        assert name == f"halves{ending}"
        if kind in ("png", "overlay"):
            assert data == expected.encoded(kind)
    assert json.loads(kept.download("json")[2])["names"] == ["red", "blue"]
    assert json.loads(kept.download("coco")[2])["images"][0]["file_name"] == "halves.png"


def test_a_correction_changes_the_result_and_becomes_a_reference(events: Events, photo: str) -> None:
    kept: KeptResult = ran(events, photo)[events.parts.kept]
    mask = np.zeros((32, 64), dtype=bool)  # half the photo's size
    mask[:16, :10] = True
    marked = {"picture": uri(PHOTO), "mask": uri(mask_file(mask))}
    update = asyncio.run(events.correct(marked, "blue", True, kept, COLOURS[:1]))
    fixed: KeptResult = update[events.parts.kept]
    before, after = kept.segmentation().labels, fixed.segmentation().labels
    large = np.kron(mask, np.ones((2, 2), dtype=bool))
    assert (after[large] == 1).all()
    assert np.array_equal(after[~large], before[~large])
    added = update[events.parts.references][-1]
    assert (added.name, Image.open(io.BytesIO(added.picture)).size) == ("blue", (128, 64))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(added.mask))) > 0, large)
    assert len(update[events.asking.reference_list]) == 2
    full = asyncio.run(events.correct(marked, "blue", True, kept, COLOURS))
    assert told(events, full) == ("error", "2 reference pictures, the limit; remove one first.")
    with pytest.raises(PromptError, match="'green' was not looked for"):
        kept.corrected(mask, "green")
    with pytest.raises(PromptError, match="nothing is marked; paint over the region"):
        kept.corrected(~mask & mask, "blue")


def test_words_and_pictures_are_compared(events: Events, service: Service, photo: str) -> None:
    kept = ran(events, photo)[events.parts.kept]
    prompts = asyncio.run(service.prompts(kept.asked))
    words, pictures = work.words_alone(prompts), work.pictures_alone(prompts)
    assert not words.embeddings.has_visual.any()
    assert not pictures.embeddings.has_text.any()
    assert (words.sources[0], pictures.sources[0]) == (("text",), ("reference",))
    for kind in work.COMPARISONS:
        last = asyncio.run(events.compare(kind, kept, CALLER))
        assert told(events, last)[0] == "done"
        left, right = asyncio.run(work.compare(service, kept, kind))
        assert left.size == right.size == (128, 64)
    bare = ran(events, photo, references=())[events.parts.kept]
    last = asyncio.run(events.compare("prompts", bare, CALLER))
    assert told(events, last) == ("error", "None of the names has a picture; add a reference picture first.")


@pytest.mark.parametrize(
    ("names", "references", "sentence"),
    [
        ("", (), "no names yet"),
        ("a,b,c,d,e,f,g", (), "7 classes; the limit is 6"),
        ("x" * 300, (), "300 characters; the limit is 200"),
        ("red", (*COLOURS, *COLOURS), "4 references; the limit is 2"),
    ],
)
def test_what_the_api_refuses_the_page_refuses(service: Service, names: str, references: Any, sentence: str) -> None:
    with pytest.raises(DPSegError, match=sentence):
        work.ask(service, names, references)


def test_a_reference_may_use_a_synonym_or_add_a_class(service: Service) -> None:
    asked = work.ask(service, "scarlet = red", COLOURS)
    assert asked.body.classes == ["scarlet, red", "blue"]
    prompts = asyncio.run(service.prompts(asked))
    assert prompts.names == ("scarlet", "blue")
    assert prompts.embeddings.has_visual.all()


def test_mistakes_are_sentences_on_the_page(
    events: Events, photo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, large = tmp_path / "broken.png", tmp_path / "large.png"
    broken.write_bytes(PHOTO[:40])
    Image.new("L", (2000, 1000)).save(large)
    for path, sentence in (
        ("", "No photo yet"),
        (broken, "Image: not a picture"),
        (large, "2,000,000 pixels, the limit"),
    ):
        kind, text = told(events, ran(events, str(path)))
        assert (kind, sentence in text, text.endswith(".")) == ("error", True, True)
    assert told(events, ran(events, photo, names=""))[0] == "done"  # the references name the classes
    for nothing in (asyncio.run(events.download("png", None)), asyncio.run(events.compare("prompts", None, CALLER))):
        assert told(events, nothing) == ("error", "No result yet, or no longer; press Segment first.")
    with events.service.door.enter("10.0.0.1"):
        monkeypatch.setattr(events.service.door, "per_client", 1)
        assert "1 requests of yours are in work" in told(events, ran(events, photo))[1]
    monkeypatch.setattr(work, "ask", lambda *_: 1 / 0)
    monkeypatch.setattr(events.service.door, "per_client", 9)
    assert told(events, ran(events, photo))[1].lower() == f"{OUR_FAULT}.".lower()


@pytest.mark.parametrize("value", [None, {}, {"picture": "data:,x"}, {"picture": "data:image/png;base64,!"}, 3])
def test_what_is_no_marked_picture_is_refused(service: Service, value: object) -> None:
    with pytest.raises(ImageError):
        work.read_marked(value, service)


def test_a_marked_picture_needs_a_name(events: Events) -> None:
    marked = {"picture": uri(PHOTO), "mask": None}
    update = asyncio.run(events.add_reference(marked, " ", ()))
    assert told(events, update) == ("error", "Say what the picture shows: choose or write a name below it.")
    update = asyncio.run(events.add_reference(marked, "red", ()))
    (one,) = update[events.parts.references]
    assert (one.name, one.picture, one.mask) == ("red", PHOTO, None)
    left = asyncio.run(events.remove_reference((one,), SimpleNamespace(index=0)))
    assert left[events.parts.references] == ()


def test_names_are_suggested_from_the_photo(events: Events, photo: str) -> None:
    update = asyncio.run(events.suggest(photo, "my own", CALLER))
    names = update[events.asking.names].splitlines()
    assert names[0] == "my own"
    assert set(names[1:]) <= set(suggestions())
    assert len(names) > 1


def test_the_page_is_beside_the_api_and_asks_for_the_token(segmenter: Segmenter) -> None:
    settings = ServeSettings(token="open-sesame")
    with TestClient(create_app(settings, segmenter)) as client:
        assert client.get("/").status_code == 404
    with TestClient(mount_page(create_app(settings, segmenter))) as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.post("/v1/segment").status_code == 401
        assert '"auth_required":true' in client.get("/").text.replace(" ", "")
        assert client.post("/gradio_api/queue/join", json={"data": []}).status_code == 401
        wrong = client.post("/login", data={"username": "me", "password": "sesame"})
        assert wrong.status_code == 400
        assert client.post("/login", data={"username": "me", "password": "open-sesame"}).status_code == 200
        page = client.get("/").text
        assert '"auth_required":true' not in page.replace(" ", "")
        assert "dp-run" in page


def test_more_bytes_than_the_limit_are_not_read() -> None:
    async def echo(scope: Any, receive: Any, send: Any) -> None:
        answer: Any = PlainTextResponse("read")
        try:
            await Request(scope, receive).body()
        except ClientDisconnect:
            answer = PlainTextResponse("not read")
        await answer(scope, receive, send)

    client = TestClient(SizeLimit(echo, 10))
    assert client.post("/gradio_api/queue/join", content=b"x" * 10).text == "read"
    assert client.post("/gradio_api/queue/join", content=b"x" * 11).text == "not read"
    assert client.post("/v1/segment", content=b"x" * 11).text == "read"  # it has a limit of its own


def test_an_open_page_does_not_hold_up_a_stop(serve: Callable[..., None]) -> None:
    def visit(port: int, stop: Callable[[], None]) -> None:
        assert ask(port)[0] == 200
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as page:
            page.request("GET", "/")
            assert b"dp-run" in page.getresponse().read()
            page.request("GET", "/gradio_api/heartbeat/a")  # what a page in a browser keeps open
            stream = page.getresponse()
            assert stream.readline().startswith(b"data:")
            stop()
            assert b"" in [stream.readline() for _ in range(8)]  # the server ends it

    serve(visit)
