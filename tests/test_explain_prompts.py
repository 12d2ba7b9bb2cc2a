"""What prompts say of their classes: cosines against plain NumPy, warnings of what was made wrong, page and picture."""

from __future__ import annotations

import io
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from dpseg.explain.origins import Origins, Picture, find_origins
from dpseg.explain.page import html_page
from dpseg.explain.prompt_report import PromptReport
from dpseg.explain.prompt_warnings import is_unknown
from dpseg.explain.prompts import inspect_prompts
from dpseg.explain.sheet import png_sheet
from dpseg.prompts.visual import Reference
from dpseg.segmenter import Segmenter
from support.commands import needs_lite
from support.explaining import eager_segmenter, unit
from support.pictures import BLUE, GREEN, RED, plain

pytestmark = pytest.mark.usefixtures("workplace")


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    return eager_segmenter(tmp_path_factory.mktemp("cache"))


def inspected(segmenter: Segmenter, text: list[str], pictures: dict[str, list[str]]) -> PromptReport:
    references = {name: [Reference(file) for file in files] for name, files in pictures.items()}
    prompts = segmenter.prompts(text or None, references or None)
    return inspect_prompts(segmenter.model.encoder, prompts, find_origins(segmenter, prompts, text, references))


@pytest.mark.numeric
def test_cosines_are_those_of_the_prompts(segmenter: Segmenter) -> None:
    plain(GREEN).save("green.png")
    text, pictures = ["red, crimson", "blue", "grey"], {"red": ["red.png", "green.png"], "blue": ["blue.png"]}
    red, blue, grey = inspected(segmenter, text, pictures).classes
    e = segmenter.prompts(text, pictures).embeddings
    t, v = unit(e.text.double().mean(dim=1)), unit(e.visual[:2].double().mean(dim=1))
    assert red.words == ("red", "crimson")
    assert red.sources == ("text", "reference")
    assert red.agreement == pytest.approx(t[0] @ v[0], abs=1e-4)
    assert grey.agreement is None
    others = t @ t[0]
    assert red.nearest["text"].name == ("blue" if others[1] > others[2] else "grey")
    assert red.nearest["text"].cosine == pytest.approx(max(others[1:]), abs=1e-4)
    assert red.nearest["visual"].name == "blue"
    assert red.nearest["visual"].cosine == pytest.approx(v[0] @ v[1], abs=1e-4)
    assert set(grey.nearest) == {"text", "dual"}
    alone, other = (unit(segmenter.prompts(None, {"x": file}).embeddings.visual[0])[0] for file in pictures["red"])
    assert [picture.source for picture in red.pictures] == ["red.png", "green.png"]
    assert red.pictures[0].to_words == pytest.approx(alone @ t[0], abs=1e-4)
    assert red.pictures[0].to_others == pytest.approx(alone @ other, abs=1e-4)
    assert blue.pictures[0].to_others is None


def test_equal_pictures_are_hardly_told_apart(segmenter: Segmenter) -> None:
    report = inspected(segmenter, [], {"a": ["red.png"], "b": ["red.png"], "c": ["blue.png"]})
    assert [(one.kind, one.classes) for one in report.warnings] == [("alike", ("a", "b"))]
    assert "cosine of 1.00" in report.warnings[0].text


def planted(segmenter: Segmenter, angles: list[float]) -> PromptReport:
    """A class with pictures at these angles, in degrees, and another at 90."""
    prompts = segmenter.prompts(None, {"odd": "red.png", "other": "blue.png"})

    def vector(angle: float) -> torch.Tensor:
        row = torch.zeros(prompts.embeddings.visual.shape[-1])
        row[0], row[1] = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
        return row

    prompts.embeddings.visual[:] = torch.stack([vector(0), vector(90)])[:, None]
    pictures = tuple(Picture(f"{angle:g}.png", None, vector(angle)) for angle in angles)
    origins = Origins({}, {"odd": pictures, "other": (Picture("", None, vector(90)),)}, {})
    return inspect_prompts(segmenter.model.encoder, prompts, origins)


def test_a_picture_unlike_the_others_is_named_with_the_class_that_it_is_nearer_to(segmenter: Segmenter) -> None:
    report = planted(segmenter, [0, 5, 10, 85])
    assert [picture.unlike for picture in report.classes[0].pictures] == [False, False, False, True]
    (warning,) = report.warnings
    assert warning.classes == ("odd",)
    assert "85.png" in warning.text
    assert "1.00 with those of 'other'" in warning.text


def test_of_two_pictures_of_an_average_or_of_nothing_in_common_none_is_odd(segmenter: Segmenter) -> None:
    report = planted(segmenter, [0, 90])
    assert not report.warnings
    assert report.notes == ("odd pictures cannot be told of 2 classes with fewer than 3",)
    prompts = segmenter.prompts(["red", "grey"], {"red": "red.png"})
    kept = inspect_prompts(segmenter.model.encoder, prompts, find_origins(segmenter, prompts))
    assert [one.words for one in kept.classes] == [("red",), ("grey",)]
    assert kept.notes == ("odd pictures cannot be told of 1 class: only the average of their pictures is kept",)
    assert not any(picture.unlike for picture in planted(segmenter, [0, 120, 240]).classes[0].pictures)


def test_words_in_many_short_pieces_are_unknown() -> None:
    pieces = [("cat",), ("x", "q", "z", "t"), ("t", "-", "shirt"), ("mo", "p")]
    assert [is_unknown(word) for word in pieces] == [False, True, False, False]


@needs_lite
def test_lite_warns_of_words_that_it_does_not_know(lite: Segmenter) -> None:
    report = inspected(lite, ["cat", "traffic light", "xqzt", "part 4711-b", "stairs", "escalator, stairs"], {})
    assert {one.classes for one in report.warnings if one.kind == "unknown"} == {("xqzt",), ("part 4711-b",)}
    assert [share.name for share in report.classes[0].bank] == ["cat"]
    assert sum(share.share for share in report.classes[1].bank) == pytest.approx(1, abs=1e-4)
    assert report.classes[2].bank == ()


class Page(HTMLParser):
    """Elements in their order, with all addresses, of a page whose elements close as they open."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_by_itself(segmenter: Segmenter) -> None:
    report = inspected(segmenter, [], {"<b>a</b>": ["red.png"], "b": ["red.png", "blue.png"]})
    content = html_page(report, "a & b").decode()
    page = Page(content)
    assert page.open == []
    assert not {"script", "link", "b"} & {*page.tags}
    assert len(page.addresses) == 3
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert "prefers-color-scheme: dark" in content
    assert "width=device-width" in content
    assert all(warning.text.split(":")[0].split("'")[-1] in content for warning in report.warnings)


def test_the_sheet_shows_the_pictures(segmenter: Segmenter) -> None:
    sheets = [inspected(segmenter, [], {"a": ["red.png"], "b": ["blue.png"]}), inspected(segmenter, ["a", "b"], {})]
    pictures, bare = (np.asarray(Image.open(io.BytesIO(png_sheet(one, "title"))).convert("RGB")) for one in sheets)
    for colour in (RED, BLUE):
        assert (np.abs(pictures.astype(int) - colour).sum(axis=-1) < 12).sum() > 2000
        assert not (np.abs(bare.astype(int) - colour).sum(axis=-1) < 12).any()
