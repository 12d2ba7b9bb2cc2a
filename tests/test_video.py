"""Videos from end to end with the tiny encoder: frames, smoothing, what is carried along, legends, memory."""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from dpseg.errors import ConfigError
from dpseg.model.class_logits import UNDECODED
from dpseg.palette import palette
from dpseg.prompts.prompt_set import PromptSet
from dpseg.result import Segmentation
from dpseg.segmenter import Segmenter
from dpseg.video.clip import Frame, open_clip
from dpseg.video.painter import Painter
from dpseg.video.segment import VideoOptions, VideoSegmentation, segment_video
from dpseg.video.smoothing import Smoother, check_smoothing
from support.clips import pictures_of, square, squares, write_clip
from support.commands import python
from support.large_pictures import four_colours
from support.pictures import GREEN, RED
from support.tiny import tiny_config


@pytest.fixture(scope="module")
def prompts(segmenter: Segmenter) -> PromptSet:
    return four_colours(segmenter)


def segmented(
    segmenter: Segmenter, prompts: PromptSet, path: Path, **options: Any
) -> tuple[VideoSegmentation, list[dict[str, Any]]]:
    """Segments a clip beside itself; returns the result and the lines of its file."""
    with open_clip(path) as clip:
        formats = ("overlay", "json", "coco")
        result = segment_video(segmenter, clip, prompts, path.parent, path.stem, VideoOptions(**options), formats)
    lines = path.with_name(f"{path.stem}_frames.jsonl").read_text("utf-8").splitlines()
    return result, [json.loads(line) for line in lines]


def labels_of(line: dict[str, Any]) -> np.ndarray:
    labels = np.full((64, 96), -1)
    for entry in line["classes"]:
        labels[coco.decode(entry["segmentation"]).astype(bool)] = entry["index"]
    return labels


def column_of(*logits: float) -> Segmentation:
    """A photo of 4 x 4 pixels with one position, whose classes a, b and so on have these logits."""
    labels = np.full((4, 4), np.argmax(logits), dtype=np.int32)
    return Segmentation(labels, tuple("abcd"[: len(logits)]), np.float32(logits)[:, None, None])


@pytest.mark.numeric
def test_every_frame_is_segmented_as_a_photo_is(segmenter: Segmenter, prompts: PromptSet, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", squares(12))
    result, lines = segmented(segmenter, prompts, path)
    assert (result.width, result.height, result.frames, result.problem) == (96, 64, 12, None)
    assert result.seconds == pytest.approx(1.1)
    assert {file.name for file in tmp_path.iterdir()} == {"a.mp4", "a_overlay.mp4", "a_frames.jsonl"}
    assert [line["frame"] for line in lines] == list(range(12))
    assert [line["time"] for line in lines] == pytest.approx([n / 10 for n in range(12)])
    shares: dict[str, float] = dict.fromkeys(prompts.names, 0.0)
    for line, picture in zip(lines, pictures_of(path), strict=True):
        alone = segmenter(picture, prompts=prompts)
        assert np.array_equal(labels_of(line), alone.labels)
        assert {entry["name"]: entry["area"] for entry in line["classes"]} == pytest.approx(alone.areas, abs=1e-5)
        for name, area in alone.areas.items():
            shares[name] += area / 12
    assert result.areas == pytest.approx({name: share for name, share in shares.items() if share})
    drawn = pictures_of(tmp_path / "a_overlay.mp4")
    assert len(drawn) == 12
    assert drawn[0].size == (96, 64)


def test_smoothing_averages_logits_and_no_class_is_lost() -> None:
    first, second = column_of(4.0, 0.0), column_of(0.0, 2.0)
    smoother = Smoother(tiny_config(), 0.75)
    assert smoother.next(first) is first
    found = smoother.next(second)
    assert found.logits.ravel().tolist() == [3.0, 0.5]
    assert (found.areas, second.areas) == ({"a": 1.0}, {"b": 1.0})
    for _ in range(5):
        found = smoother.next(second)
    assert found.areas == {"b": 1.0}  # the past fades
    unsteady = Smoother(tiny_config(), 0.75, background=0.6)
    unsteady.next(second)
    assert unsteady.next(column_of(0.0, -10.0)).labels.max() == -1
    sparse = Smoother(tiny_config(), 0.5)  # a class is not decoded in one frame
    sparse.next(column_of(4.0, 0.0, -1.0))
    found = sparse.next(column_of(UNDECODED, 1.0, -1.0))
    assert found.logits.ravel().tolist() == [1.5, 0.5, -1.0]
    assert found.areas == {"a": 1.0}


def test_smoothing_has_bounds() -> None:
    for weight in (-0.1, 1.0, 2.0, float("nan")):
        with pytest.raises(ConfigError, match=r"smooth .* is out of range; give 0, or more and below 1"):
            check_smoothing(weight, 2)
    check_smoothing(0.0, 5000)
    with pytest.raises(ConfigError, match="1024 classes at most, and these are 5000"):
        check_smoothing(0.5, 5000)


@pytest.mark.numeric
def test_smoothing_swallows_a_flash(segmenter: Segmenter, prompts: PromptSet, tmp_path: Path) -> None:
    pictures = [square(0, colour=GREEN if number == 5 else RED) for number in range(10)]
    path = write_clip(tmp_path / "a.mp4", pictures, crf=1)
    _, lines = segmented(segmenter, prompts, path)
    assert "green" in [entry["name"] for entry in lines[5]["classes"]]
    _, lines = segmented(segmenter, prompts, path, smooth=0.8)
    assert "green" not in [entry["name"] for entry in lines[5]["classes"]]
    logits = [segmenter(picture, prompts=prompts).logits for picture in pictures_of(path)]
    mean = logits[0]
    for one, line in zip(logits, lines, strict=True):
        mean = 0.8 * mean + 0.2 * one
        at = labels_of(line)[2::4, 2::4]  # a logit for each 4 x 4 pixels
        assert (at == mean.argmax(axis=0)).mean() > 0.95


@pytest.mark.parametrize("options", [{"smooth": 0.8}, {"refine": "sequence"}])
def test_nothing_is_carried_over_a_cut(
    segmenter: Segmenter, prompts: PromptSet, tmp_path: Path, options: dict[str, Any]
) -> None:
    second = [Image.new("RGB", (96, 64), GREEN)] * 3
    both = write_clip(tmp_path / "both.mp4", [*squares(5), *second], crf=1)
    after = segmented(segmenter, prompts, both, **options)[1][5:]
    assert [[entry["name"] for entry in line["classes"]] for line in after] == [["green"]] * 3
    alone = segmenter(pictures_of(both)[5], prompts=prompts)
    assert after[0]["classes"][0]["confidence"] == pytest.approx(alone.confidences["green"], abs=1e-4)


def test_refined_prompts_are_carried_along(segmenter: Segmenter, prompts: PromptSet, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", squares(6))
    _, carried = segmented(segmenter, prompts, path, refine="sequence")
    results = segmenter.stream(pictures_of(path), prompts, refine="sequence")
    for line, (_, found) in zip(carried, results, strict=True):
        assert isinstance(found, Segmentation)
        assert np.array_equal(labels_of(line), found.labels)
        assert {e["name"]: e["confidence"] for e in line["classes"]} == pytest.approx(found.confidences, abs=1e-4)
    assert segmented(segmenter, prompts, path)[1] != carried


def painted(painter: Painter, names: tuple[str, ...], label: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """Draws a grey frame whose pixels all have one label."""
    labels, logits = np.full(size[::-1], label, np.int32), np.zeros((len(names), 1, 1), np.float32)
    return painter.draw(Segmentation(labels, names, logits, Image.new("RGB", size, (128, 128, 128))))


def test_the_legend_stays_where_it_is() -> None:
    names = ("red", "blue", "a name that is long")
    painter = Painter(names, (320, 240))
    corners = dict(painter.corners)
    assert list(corners) == [0, 1, 2]
    first, second = (np.asarray(painted(painter, names, label)) for label in (0, 1))
    assert painter.corners == corners
    assert first.shape == (240, 320, 3)
    for number, (x, y) in corners.items():
        assert np.array_equal(first[y + 8, x + 4], second[y + 8, x + 4])
        assert np.array_equal(first[y + 8, x + 4], palette(3)[number])
    assert not np.array_equal(first[200, 100], second[200, 100])


def test_of_many_names_those_that_occur_get_a_place_and_keep_it() -> None:
    names = tuple(f"class number {number}" for number in range(200))
    painter = Painter(names, (320, 240))
    assert painter.corners == {}
    painted(painter, names, 150)
    where = painter.corners[150]
    for number in (7, 9, 150, *range(20, 60)):
        painted(painter, names, number)
    assert list(painter.corners)[:3] == [150, 7, 9]
    assert painter.corners[150] == where
    assert 3 < len(painter.corners) < 43
    assert max(y for _, y in painter.corners.values()) < 60
    thumbnail = Painter(names, (40, 30))  # which has no legend
    assert painted(thumbnail, names, 0, (40, 30)).size == (40, 30)
    assert thumbnail.corners == {}


@pytest.mark.parametrize("options", [{}, {"smooth": 0.5}, {"refine": "sequence"}])
def test_few_frames_are_held_at_a_time(
    segmenter: Segmenter, prompts: PromptSet, tmp_path: Path, options: dict[str, Any]
) -> None:
    path = write_clip(tmp_path / "a.mp4", squares(24))
    pictures: list[weakref.ref[Image.Image]] = []
    held: list[int] = []

    def watched(frames: Iterator[Frame]) -> Iterator[Frame]:
        for frame in frames:
            pictures.append(weakref.ref(frame.image))
            yield frame

    def count() -> None:
        held.append(sum(picture() is not None for picture in pictures))

    with open_clip(path) as clip:
        frames = watched(clip.frames())
        clip.frames = lambda: frames  # type: ignore[method-assign]
        segment_video(segmenter, clip, prompts, tmp_path, "a", VideoOptions(size=32, **options), advance=count)
    assert len(held) == len(pictures) == 24
    assert max(held) <= 6


MEMORY = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from dpseg.video.clip import open_clip
from dpseg.video.segment import VideoOptions, segment_video
from support.clips import squares, write_clip
from support.large_pictures import four_colours
from support.tiny import tiny_segmenter
folder = Path(sys.argv[2])
segmenter = tiny_segmenter(folder / "cache")
prompts = four_colours(segmenter)
for count in (30, 120):
    path = write_clip(folder / f"{count}.mp4", squares(count, (320, 240)))
    with open_clip(path) as clip:
        done = segment_video(segmenter, clip, prompts, folder, path.stem, VideoOptions(smooth=0.5, size=32))
    status = Path("/proc/self/status").read_text()
    print(done.frames, int(status.split("VmHWM:")[1].split()[0]) // 1000, flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read as Linux tells it")
def test_memory_is_that_of_a_few_frames(tmp_path: Path) -> None:
    output = python(MEMORY, str(Path(__file__).parent), str(tmp_path)).stdout
    (short, first), (long, second) = [map(int, line.split()) for line in output.splitlines()]
    assert (short, long) == (30, 120)
    assert second - first < 10  # MB; 90 frames more are 20 MB as they are read, and as much as they are drawn
