"""`dpseg predict clip.mp4`: videos, frame by frame."""

from __future__ import annotations

import glob
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from dpseg.commands.found import print_found
from dpseg.commands.places import output_places, without_results
from dpseg.commands.progress import progress
from dpseg.errors import ConfigError, ImageError, did_you_mean
from dpseg.result import FORMATS
from dpseg.video.clip import SUFFIXES, av_library, open_clip

if TYPE_CHECKING:
    from dpseg.large.grid import Tiling
    from dpseg.prompts.prompt_set import PromptSet
    from dpseg.segmenter import Segmenter
    from dpseg.video.segment import VideoOptions, VideoSegmentation

_USUAL = ("png", "json", "overlay")  # the formats of photos where none are asked for
_LONG = 100  # a video of so many frames says how far it is where there is no bar


def find_videos(patterns: Sequence[str], out: Path) -> list[Path]:
    """Returns the video files that are named or that globs match, sorted; none where photos are named.

    Args:
        patterns: what the user named; folders are searched for photos only.
        out: the output folder, whose videos an earlier run wrote.

    Raises:
        ConfigError: both photos and videos are named.
        ImageError: a video that is named is not there, or only an earlier run's are.
    """
    named = [pattern for pattern in patterns if Path(pattern).suffix.lower() in SUFFIXES and not Path(pattern).is_dir()]
    others = [pattern for pattern in patterns if pattern not in named]
    if named and others:
        raise ConfigError(f"{named[0]} is a video and {others[0]} is none; give videos and photos to a command each")
    found: dict[Path, None] = {}
    for pattern in named:
        path = Path(pattern).expanduser()
        matches = [path] if path.is_file() else [Path(name) for name in glob.glob(str(path), recursive=True)]
        if not matches:
            raise ImageError(f"{pattern}: no such file; check the path")
        found |= dict.fromkeys(matches)
    videos = without_results(sorted(found), named, out)
    if named and not videos:
        raise ImageError(f"{named[0]}: matches only what lies in the output folder {out}; choose another with --out")
    return videos


def check_video(formats: Sequence[str], tiling: Tiling | None, smooth: float) -> tuple[str, ...]:
    """Checks what does not go with videos, before anything is loaded, and returns the formats that do.

    Raises:
        ConfigError: a format or --tile does not, or --smooth is out of range.
        MissingExtraError: the extra "video" is missing.
    """
    from dpseg.video.segment import VIDEO_FORMATS
    from dpseg.video.smoothing import check_smoothing

    check_smoothing(smooth, 0)
    if tiling is not None:
        raise ConfigError("--tile does not go with videos, whose frames are looked at as a whole; leave it out")
    formats = [name for name in formats if name != "png"] if tuple(formats) == _USUAL else formats
    for name in formats:
        if name not in (*FORMATS, "tiff"):
            raise ConfigError(f"format {name!r} is unknown; {did_you_mean(name, VIDEO_FORMATS)}")
        if name not in VIDEO_FORMATS:
            raise ConfigError(f"format {name!r} does not go with videos; choose of {', '.join(VIDEO_FORMATS)}")
    av_library()
    return tuple(formats)


def predict_videos(
    segmenter: Segmenter,
    prompts: PromptSet,
    videos: Sequence[Path],
    options: VideoOptions,
    formats: Sequence[str],
    out: Path,
    console: Console,
    errors: Console,
) -> int:
    """Segments and saves video after video.

    Args:
        segmenter: the model.
        prompts: of that model.
        videos: files.
        options: how frames are segmented.
        formats: what is written.
        out: folder of the results.
        console: where what was found is printed.
        errors: where what cannot be read is reported.

    Returns:
        The exit status: 0, or 1 where a video could not be read to its end.
    """
    start, whole, done = time.perf_counter(), 0, 0
    for number, (video, (folder, stem)) in enumerate(output_places(videos).items(), start=1):
        count = f"[{number}/{len(videos)}] " if len(videos) > 1 else ""
        try:
            result = _predict_one(segmenter, prompts, video, options, formats, (out / folder, stem), console)
        except ImageError as error:
            errors.print(f"{count}skipped: {error}", markup=False, soft_wrap=True)
            continue
        done += result.frames
        whole += result.problem is None
        size = result.width, result.height
        print_found(f"{count}{video}", size, result.areas, result.confidences, console)
        console.print(f"  mean of {result.frames} frames, the last at {result.seconds:.2f} s", markup=False)
        if result.problem is not None:
            errors.print(f"{count}{result.problem}; what could be read is written", markup=False, soft_wrap=True)
    seconds = time.perf_counter() - start
    if done:
        files = ", ".join(formats)
        console.print(f"{done} frames in {seconds:.1f} s; {files} in {out}", markup=False, soft_wrap=True)
    return 0 if whole == len(videos) else 1


def _predict_one(
    segmenter: Segmenter,
    prompts: PromptSet,
    video: Path,
    options: VideoOptions,
    formats: Sequence[str],
    place: tuple[Path, str],
    console: Console,
) -> VideoSegmentation:
    from dpseg.video.segment import segment_video

    with open_clip(video) as clip, progress(console, clip.expected, "frames", lines=clip.expected >= _LONG) as advance:
        return segment_video(segmenter, clip, prompts, *place, options, formats, advance)
