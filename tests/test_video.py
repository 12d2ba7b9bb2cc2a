"""Videos from end to end with the tiny encoder: frames, smoothing, what is carried along, files, memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

from dpseg.errors import ConfigError
from dpseg.model.class_logits import UNDECODED
from dpseg.palette import palette
from dpseg.prompts.prompt_set import PromptSet
from dpseg.result import Segmentation
from dpseg.segmenter import Segmenter
from dpseg.video.clip import open_clip
from dpseg.video.painter import Painter
from dpseg.video.segment import VideoOptions, VideoSegmentation, segment_video
from dpseg.video.smoothing import Smoother, check_smoothing
from support.clips import GREEN, RED, pictures_of, square, squares, write_clip
from support.large_pictures import CONFIG, make_segmenter, prompts_of


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    return make_segmenter(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def prompts(segmenter: Segmenter) -> PromptSet:
    return prompts_of(segmenter)


def segmented(segmenter: Segmenter, prompts: PromptSet, path: Path, **options: Any) -> VideoSegmentation:
    formats = options.pop("formats", ("overlay", "json", "coco"))
    with open_clip(path) as clip:
        return segment_video(segmenter, clip, prompts, path.parent, path.stem, VideoOptions(**options), formats)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.with_name(f"{path.stem}_frames.jsonl").read_text("utf-8").splitlines()]


def labels_of(line: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    labels = np.full(size, -1)
    for entry in line["classes"]:
        labels[coco.decode(entry["segmentation"]).astype(bool)] = entry["index"]
    return labels


def result_of(logits: list[list[list[float]]], size: tuple[int, int] = (4, 4)) -> Segmentation:
    """What a photo of 4 x 4 pixels has that is labelled by logits (K, h, w)."""
    values = torch.tensor(logits)
    labels = np.kron(values.argmax(0).numpy(), np.ones((size[0] // values.shape[1], size[1] // values.shape[2])))
    return Segmentation(labels.astype(np.int32), tuple("abcd"[: len(logits)]), values.numpy())


def test_every_frame_is_segmented_as_a_photo_is(segmenter: Segmenter, prompts: PromptSet, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", squares(12))
    result = segmented(segmenter, prompts, path)
    assert (result.width, result.height, result.frames, result.problem) == (96, 64, 12, None)
    assert result.seconds == pytest.approx(1.1)
    assert {file.name for file in tmp_path.iterdir()} == {"a.mp4", "a_overlay.mp4", "a_frames.jsonl"}
    lines = lines_of(path)
    assert [line["frame"] for line in lines] == list(range(12))
    assert [line["time"] for line in lines] == pytest.approx([n / 10 for n in range(12)])
    shares: dict[str, float] = dict.fromkeys(prompts.names, 0.0)
    for line, picture in zip(lines, pictures_of(path), strict=True):
        alone = segmenter(picture, prompts=prompts)
        assert np.array_equal(labels_of(line, (64, 96)), alone.labels)
        assert {entry["name"]: entry["area"] for entry in line["classes"]} == pytest.approx(alone.areas, abs=1e-5)
        for name, area in alone.areas.items():
            shares[name] += area / 12
    assert result.areas == pytest.approx({name: share for name, share in shares.items() if share})
    drawn = pictures_of(tmp_path / "a_overlay.mp4")
    assert len(drawn) == 12
    assert drawn[0].size == (96, 64)


def test_smoothing_averages_logits() -> None:
    smoother = Smoother(CONFIG, 0.75)
    first, second = result_of([[[4.0]], [[0.0]]]), result_of([[[0.0]], [[2.0]]])
    assert smoother.next(first) is first
    found = smoother.next(second)
    assert found.logits.ravel().tolist() == [3.0, 0.5]
    assert found.areas == {"a": 1.0}
    assert second.areas == {"b": 1.0}
    for _ in range(5):
        found = smoother.next(second)
    assert found.areas == {"b": 1.0}  # the past fades
    unsteady = Smoother(CONFIG, 0.75, background=0.6)
    unsteady.next(second)
    assert unsteady.next(result_of([[[0.0]], [[-10.0]]])).labels.max() == -1


def test_a_class_that_is_not_decoded_in_one_frame_is_not_lost() -> None:
    smoother = Smoother(CONFIG, 0.5)
    smoother.next(result_of([[[4.0]], [[0.0]], [[-1.0]]]))
    found = smoother.next(result_of([[[UNDECODED]], [[1.0]], [[-1.0]]]))
    assert found.logits.ravel().tolist() == [1.5, 0.5, -1.0]
    assert found.areas == {"a": 1.0}


@pytest.mark.parametrize("weight", [-0.1, 1.0, 2.0, float("nan")])
def test_smoothing_has_bounds(weight: float) -> None:
    with pytest.raises(ConfigError, match=r"smooth .* is out of range; give 0, or more and below 1"):
        check_smoothing(weight, 2)
    check_smoothing(0.0, 5000)
    with pytest.raises(ConfigError, match="1024 classes at most, and these are 5000"):
        check_smoothing(0.5, 5000)


def test_a_flash_that_smoothing_swallows(segmenter: Segmenter, prompts: PromptSet, tmp_path: Path) -> None:
    pictures = [square(0, colour=GREEN if number == 5 else RED) for number in range(10)]
    path = write_clip(tmp_path / "a.mp4", pictures, crf=1)
    segmented(segmenter, prompts, path)
    assert any(entry["name"] == "green" for entry in lines_of(path)[5]["classes"])
    segmented(segmenter, prompts, path, smooth=0.8)
    assert not any(entry["name"] == "green" for entry in lines_of(path)[5]["classes"])
    logits = np.stack([segmenter(picture, prompts=prompts).logits for picture in pictures_of(path)])
    mean = logits[0]
    for number, line in enumerate(lines_of(path)):
        mean = 0.8 * mean + 0.2 * logits[number]
        at = labels_of(line, (64, 96))[2::4, 2::4]  # a logit for each 4 x 4 pixels
        assert (at == mean.argmax(axis=0)).mean() > 0.95


@pytest.mark.parametrize("options", [{"smooth": 0.8}, {"refine": "sequence"}])
def test_nothing_is_carried_over_a_cut(
    segmenter: Segmenter, prompts: PromptSet, tmp_path: Path, options: dict[str, Any]
) -> None:
    second = [Image.new("RGB", (96, 64), GREEN)] * 3
    both = write_clip(tmp_path / "both.mp4", [*squares(5), *second], crf=1)
    segmented(segmenter, prompts, both, **options)
    after = lines_of(both)[5:]
    assert [[entry["name"] for entry in line["classes"]] for line in after] == [["green"]] * 3
    alone = segmenter(pictures_of(both)[5], prompts=prompts)
    assert after[0]["classes"][0]["confidence"] == pytest.approx(alone.confidences["green"], abs=1e-4)


def test_refined_prompts_are_carried_along(segmenter: Segmenter, prompts: PromptSet, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", squares(6))
    segmented(segmenter, prompts, path, refine="sequence")
    carried = lines_of(path)
    results = segmenter.stream(pictures_of(path), prompts, refine="sequence")
    for line, (_, found) in zip(carried, results, strict=True):
        assert isinstance(found, Segmentation)
        assert np.array_equal(labels_of(line, (64, 96)), found.labels)
        assert {e["name"]: e["confidence"] for e in line["classes"]} == pytest.approx(found.confidences, abs=1e-4)
    segmented(segmenter, prompts, path)
    assert lines_of(path) != carried


def test_the_legend_stays_where_it_is() -> None:
    names = ("red", "blue", "a name that is long")
    labels = np.zeros((240, 320), dtype=np.int32)
    painter = Painter(names, (320, 240))
    corners = dict(painter.corners)
    assert list(corners) == [0, 1, 2]
    grey = Image.new("RGB", (320, 240), (128, 128, 128))
    first = np.asarray(painter.draw(Segmentation(labels, names, np.zeros((3, 1, 1), np.float32), grey)))
    second = np.asarray(painter.draw(Segmentation(labels + 1, names, np.zeros((3, 1, 1), np.float32), grey)))
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
    logits = np.zeros((200, 1, 1), np.float32)
    painter.draw(Segmentation(np.full((240, 320), 150, np.int32), names, logits))
    where = painter.corners[150]
    for number in (7, 9, 150, *range(20, 60)):
        painter.draw(Segmentation(np.full((240, 320), number, np.int32), names, logits))
    assert list(painter.corners)[:3] == [150, 7, 9]
    assert painter.corners[150] == where
    assert 3 < len(painter.corners) < 43
    assert max(y for _, y in painter.corners.values()) < 60
    tiny = Painter(names, (40, 30))  # a thumbnail has no legend
    assert tiny.draw(Segmentation(np.zeros((30, 40), np.int32), names, logits)).size == (40, 30)
    assert tiny.corners == {}


MEMORY = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support.clips import squares, write_clip
from dpseg.video.clip import open_clip
from dpseg.video.segment import VideoOptions, segment_video
from support.large_pictures import make_segmenter, prompts_of
folder = Path(sys.argv[2])
segmenter = make_segmenter(folder / "cache")
prompts = prompts_of(segmenter)
for count in (30, 120):
    path = write_clip(folder / f"{count}.mp4", squares(count, (320, 240)))
    with open_clip(path) as clip:
        done = segment_video(segmenter, clip, prompts, folder, path.stem, VideoOptions(smooth=0.5, size=32))
    status = Path("/proc/self/status").read_text()
    print(done.frames, int(status.split("VmHWM:")[1].split()[0]) // 1000, flush=True)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read as Linux tells it")
def test_memory_is_that_of_a_few_frames(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEMORY, str(Path(__file__).parent), str(tmp_path)]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    (short, first), (long, second) = [map(int, line.split()) for line in output.splitlines()]
    assert (short, long) == (30, 120)
    assert second - first < 10  # MB; 90 frames more are 20 MB as they are read, and as much as they are drawn
