"""The page in a real Chromium, at the width of a phone and of a desk, with the mouse and with the keyboard alone."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from dpseg.commands.serve import listen
from dpseg.segmenter import Segmenter
from dpseg.serving.app import create_app
from dpseg.serving.page.mount import mount_page
from dpseg.serving.settings import ServeSettings
from support.served import PHOTO, PICTURES

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None and not os.environ.get("CI"),  # CI installs one, and fails without it
        reason="no Chromium on this machine; on Debian: apt install chromium",
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio"),
]

UPLOAD = {"name": "halves.png", "mimeType": "image/png", "buffer": PHOTO}
PIXELS = """() => {
  const canvas = document.querySelector("#dp-viewer canvas");
  return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
}"""
SECONDS = 60_000  # milliseconds, as a busy machine may need


@pytest.fixture(scope="module")
def app(segmenter: Segmenter) -> Any:
    return mount_page(create_app(ServeSettings(), segmenter))


@pytest.fixture(scope="module")
def address(app: Any) -> Iterator[str]:
    import uvicorn

    with listen("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        app.state.end_streams()
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    assert CHROMIUM is not None, "CI installs a Chromium, but there is none"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser: Any, address: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A page at some width; at its end, it has asked no other host for anything, and nothing of it has failed."""
    page = browser.new_page(viewport={"width": getattr(request, "param", 1280), "height": 800})
    hosts, errors = set(), []
    page.on("request", lambda one: hosts.add(urlsplit(one.url).netloc))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("response", lambda one: errors.append(one.url) if one.status >= 500 else None)
    page.set_default_timeout(SECONDS)
    page.goto(address)
    page.wait_for_selector("#dp-run")
    yield page
    page.close()
    assert hosts - {""} == {urlsplit(address).netloc}  # "": data and blobs
    assert errors == []


def wait_for(page: Any, beginning: str) -> None:
    page.wait_for_function(f"document.querySelector('#dp-status [role=status]').textContent.startsWith({beginning!r})")


def choose_by_keyboard(page: Any) -> Any:
    """Presses Enter until the file dialog opens: a busy browser shows the button before it listens to it."""
    from playwright.sync_api import TimeoutError as NoChooser

    for _ in range(10):
        try:
            with page.expect_file_chooser(timeout=SECONDS / 10) as chooser:
                page.keyboard.press("Enter")
            return chooser.value
        except NoChooser:
            continue
    raise AssertionError("Enter never opens the file dialog")


def choose(page: Any, names: str) -> None:
    """Chooses the photo, and writes the names."""
    page.set_input_files("#dp-photo input[type=file]", UPLOAD)
    page.wait_for_selector("#dp-photo img")
    page.fill("#dp-names textarea", names)


def legend(page: Any) -> list[str]:
    names: list[str] = page.locator("#dp-viewer .dp-name").all_inner_texts()
    return names


def add_reference(page: Any, name: str) -> None:
    page.set_input_files(
        "#dp-marker input[type=file]", {"name": "a.png", "mimeType": "image/png", "buffer": PICTURES[f"{name}.png"]}
    )
    page.wait_for_selector("#dp-marker .dp-marker:not([data-empty=yes])")
    page.fill("#dp-marked-class input", name)
    page.keyboard.press("Enter")
    page.click("#dp-add-reference")
    page.wait_for_function(f"document.querySelector('#dp-references li:last-child span')?.textContent === {name!r}")
    page.wait_for_selector("#dp-marker .dp-marker[data-empty=yes]")


@pytest.mark.parametrize("opened", [390, 1280], indirect=True)
def test_a_photo_names_and_pictures_make_an_overlay_with_a_legend(opened: Any, tmp_path: Path) -> None:
    page = opened
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    choose(page, "red, blue")
    page.click("text=Reference pictures")
    for name in ("red", "blue"):
        add_reference(page, name)
    page.click("#dp-run")
    wait_for(page, "Found")
    page.wait_for_selector("#dp-viewer .dp-legend li")
    assert sorted(legend(page)) == ["blue", "red"]
    tinted = page.evaluate(PIXELS)
    page.click("#dp-viewer .dp-all")
    photo = page.evaluate(PIXELS)
    assert len(photo) == 4 * 128 * 64
    assert sum(a != b for a, b in zip(tinted, photo, strict=True)) > 128 * 64
    page.click("#dp-viewer .dp-legend li:first-child button")  # is shown again
    assert tinted != page.evaluate(PIXELS) != photo
    page.hover("#dp-viewer canvas", position={"x": 10, "y": 10})
    assert page.inner_text("#dp-viewer .dp-tip").split(",")[0] in ("red", "blue")
    with page.expect_download() as download:
        page.click("#dp-download-png")
    assert download.value.suggested_filename == "halves_labels.png"
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


def test_a_correction_with_the_brush_and_a_comparison(opened: Any) -> None:
    page = opened
    choose(page, "red\nblue")
    page.click("#dp-run")
    wait_for(page, "Found")
    before = page.evaluate(PIXELS)
    other = next(name for name in ("blue", "red") if name != legend(page)[0])
    page.click("button[role=tab]:has-text('Correct')")
    canvas = page.locator("#dp-fixer canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] * 0.5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] * 0.5, steps=5)
    page.mouse.up()
    page.click("#dp-fixed-class input")
    page.click(f"[role=option]:has-text('{other}')")
    page.click("#dp-correct")
    wait_for(page, f"The region is {other} now, and a reference")
    page.click("text=Reference pictures")
    page.wait_for_function(f"document.querySelector('#dp-references li span')?.textContent === {other!r}")
    assert other in legend(page)
    assert page.evaluate(PIXELS) != before
    page.click("button[role=tab]:has-text('Compare')")
    page.click("#dp-compare")
    wait_for(page, "Left Inference I, right Inference II")


def test_the_keyboard_is_enough(opened: Any) -> None:
    page = opened

    def tab_to(condition: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate(f"document.activeElement.matches({condition!r})"):
                return
        raise AssertionError(f"Tab never comes to {condition}")

    tab_to("#dp-photo button")
    choose_by_keyboard(page).set_files([UPLOAD])
    page.wait_for_selector("#dp-photo img")
    tab_to("#dp-names textarea")
    page.keyboard.type("red, blue")
    tab_to("#dp-run")
    page.keyboard.press("Enter")
    wait_for(page, "Found")
    tab_to("#dp-viewer canvas")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#dp-viewer .dp-spoken").split(",")[0] in ("red", "blue")
    tab_to("#dp-viewer .dp-legend button")
    page.keyboard.press("Enter")
    assert page.get_attribute("#dp-viewer .dp-legend button", "aria-pressed") == "false"


def test_mistakes_are_said(opened: Any) -> None:
    page = opened
    page.click("#dp-run")
    wait_for(page, "No photo yet")
    page.set_input_files("#dp-photo input[type=file]", {**UPLOAD, "buffer": b"no picture"})
    page.fill("#dp-names textarea", "red")
    page.wait_for_selector("#dp-photo img", state="attached")
    page.click("#dp-run")
    wait_for(page, "Image: not a picture, or damaged from its start")


def test_names_are_completed_and_taken_from_vocabularies(opened: Any) -> None:
    page = opened
    page.fill("#dp-names textarea", "cat")
    page.click("#dp-add input")
    page.keyboard.type("pizz")
    page.wait_for_selector("[role=option]:has-text('pizza')")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#dp-names textarea').value === 'cat\\npizza'")
    page.click("#dp-vocabulary input")
    page.click("[role=option]:has-text('PASCAL VOC')")
    page.wait_for_function("document.querySelector('#dp-names textarea').value.split('\\n').length === 20")


def test_while_it_works_the_page_says_so_and_for_how_long(opened: Any, app: Any) -> None:
    page = opened
    choose(page, "red, blue")
    held = threading.Event()
    app.state.service.threads.encode(lambda: held.wait(30))
    page.click("#dp-run")
    wait_for(page, "Looking for these names")
    page.wait_for_function("parseInt(document.querySelector('#dp-status .dp-clock').textContent) >= 2")
    held.set()
    wait_for(page, "Found")
    assert page.inner_text("#dp-status .dp-clock") == ""
