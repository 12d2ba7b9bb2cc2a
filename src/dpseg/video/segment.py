"""A video -> what is seen in each of its frames: an MP4 with the regions drawn, and a line of JSON for each frame."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from PIL import Image

from dpseg.config import Refine
from dpseg.errors import DPSegError, ImageError
from dpseg.files import make_folder, written_beside
from dpseg.prompts.prompt_set import PromptSet
from dpseg.result import Segmentation
from dpseg.segmenter import Segmenter
from dpseg.video.clip import Clip, Frame
from dpseg.video.movie import Movie
from dpseg.video.painter import Painter
from dpseg.video.shots import shots
from dpseg.video.smoothing import Smoother, check_smoothing

VIDEO_FORMATS = {"overlay": "_overlay.mp4", "json": "_frames.jsonl", "coco": "_frames.jsonl"}
"""The formats that videos are written in, and their endings; "coco" is "json" with masks in COCO's run lengths."""


@dataclass(frozen=True)
class VideoOptions:
    """How frames are segmented.

    Attributes:
        refine: as for `Segmenter.stream`; "sequence": each frame by what those before it in its shot showed.
        smooth: weight, in [0, 1), of the frames before in a shot; 0: none.
        background: as for one image.
        size: as for one image.
        batch_size: as for `Segmenter.stream`.
    """

    refine: Refine = None
    smooth: float = 0.0
    background: float | None = None
    size: int | None = None
    batch_size: int | None = None


@dataclass(frozen=True)
class VideoSegmentation:
    """What was found in a video; the frames are in its files.

    Attributes:
        width: of the frames, in pixels.
        height: of the frames, in pixels.
        frames: so many were read, 1 or more.
        seconds: time of the last one.
        areas: mean share over the frames, in (0, 1], of each class that was found, largest first.
        confidences: mean score, in [0, 1], of each over all its pixels, in the order of `areas`.
        problem: what of the file could not be read; None: nothing that is known.
        files: what was written.
    """

    width: int
    height: int
    frames: int
    seconds: float
    areas: dict[str, float]
    confidences: dict[str, float]
    problem: str | None
    files: tuple[Path, ...]


def segment_video(
    segmenter: Segmenter,
    clip: Clip,
    prompts: PromptSet,
    folder: str | Path,
    stem: str,
    options: VideoOptions | None = None,
    formats: Sequence[str] = ("overlay", "json"),
    advance: Callable[[], None] = lambda: None,
) -> VideoSegmentation:
    """Segments a video in the memory of a few frames; its files appear when it is done.

    Args:
        segmenter: the model.
        clip: an open file of which nothing was read.
        prompts: of that model.
        folder: where to; made if need be.
        stem: beginning of the files' names.
        options: how frames are segmented.
        formats: any of `VIDEO_FORMATS`.
        advance: called after each frame.

    Raises:
        ImageError: not one frame can be read.
        ConfigError: an option is out of range.
        PromptError: the prompts are of another model.
        OutputError: the folder cannot be written, or the disk is full.
    """
    options = options or VideoOptions()
    check_smoothing(options.smooth, len(prompts.names))
    files = tuple(make_folder(folder) / (stem + ending) for ending in dict.fromkeys(VIDEO_FORMATS[f] for f in formats))
    tally = _Tally()
    with ExitStack() as stack:
        writers = [_writer(stack, path, clip, "coco" in formats) for path in files]
        for frame, found in _found(segmenter, clip, prompts, options):
            for write in writers:
                write(frame, found)
            tally.add(frame, found)
            advance()
        if not tally.frames:
            raise ImageError(f"{clip.path}: not one frame of it can be read; copy or save it again")
    return tally.result(clip.problem, files)


def _found(
    segmenter: Segmenter, clip: Clip, prompts: PromptSet, options: VideoOptions
) -> Iterator[tuple[Frame, Segmentation]]:
    """Segments frame after frame; at a cut, what was carried along is forgotten."""
    carried = options.smooth > 0 or options.refine == "sequence"
    for shot in shots(clip.frames()) if carried else [clip.frames()]:
        smoother = None
        if options.smooth:
            adjustment = prompts.embeddings.adjustment
            smoother = Smoother(segmenter.model.config, options.smooth, options.background, adjustment)
        waiting: deque[Frame] = deque()
        results = segmenter.stream(
            _images(shot, waiting),
            prompts,
            batch_size=options.batch_size,
            refine=options.refine,
            background=options.background,
            size=options.size,
        )
        for _, found in results:
            if isinstance(found, DPSegError):
                raise found
            yield waiting.popleft(), found if smoother is None else smoother.next(found)


def _images(frames: Iterator[Frame], waiting: deque[Frame]) -> Iterator[Image.Image]:
    for frame in frames:
        waiting.append(frame)
        yield frame.image


def _writer(stack: ExitStack, path: Path, clip: Clip, masks: bool) -> Callable[[Frame, Segmentation], None]:
    """Begins a file, which the stack ends, and returns what writes a frame to it."""
    temporary = stack.enter_context(written_beside(path))
    if path.name.endswith(VIDEO_FORMATS["json"]):
        file = stack.enter_context(temporary.open("x", encoding="utf-8"))
        return lambda frame, found: _write_line(file, frame, found, masks)
    movie: list[tuple[Movie, Painter]] = []

    def draw(frame: Frame, found: Segmentation) -> None:
        if not movie:  # the size is known with the first frame
            size = frame.image.size
            opened = stack.enter_context(Movie(temporary, clip.rate, size))
            movie.append((opened, Painter(found.names, size)))
        movie[0][0].add(movie[0][1].draw(found), frame.time)

    return draw


def _write_line(file: TextIO, frame: Frame, found: Segmentation, masks: bool) -> None:
    """Writes what was found in a frame as one line of JSON."""
    content = found.to_dict()
    shapes = {mask["category_id"] - 1: mask for mask in found.to_coco()["annotations"]} if masks else {}
    classes = [
        {key: entry[key] for key in ("name", "index", "area", "confidence")}
        | ({"segmentation": shapes[entry["index"]]["segmentation"]} if masks else {})
        for entry in content["classes"]
    ]
    line = {"frame": frame.number, "time": round(frame.time, 6), "classes": classes, "none": content["none"]}
    file.write(json.dumps(line, ensure_ascii=False) + "\n")


class _Tally:
    """Sums over the frames of a video."""

    def __init__(self) -> None:
        self.frames, self._last = 0, 0.0
        self._size = (0, 0)
        self._areas: dict[str, float] = {}
        self._scores: dict[str, float] = {}

    def add(self, frame: Frame, found: Segmentation) -> None:
        """Counts a frame."""
        self.frames, self._last, self._size = self.frames + 1, frame.time, frame.image.size
        for name, area in found.areas.items():
            self._areas[name] = self._areas.get(name, 0.0) + area
            self._scores[name] = self._scores.get(name, 0.0) + area * found.confidences[name]

    def result(self, problem: str | None, files: tuple[Path, ...]) -> VideoSegmentation:
        """Returns the means."""
        order = sorted(self._areas, key=lambda name: -self._areas[name])
        areas = {name: self._areas[name] / self.frames for name in order}
        confidences = {name: self._scores[name] / self._areas[name] for name in order}
        return VideoSegmentation(*self._size, self.frames, self._last, areas, confidences, problem, files)
