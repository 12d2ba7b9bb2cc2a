"""`dpseg predict`: photos in, segmentations in a folder and a short list of what was found on the screen."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from dpseg.commands.found import print_found
from dpseg.commands.places import check_writable, output_places, without_results
from dpseg.commands.predict_tiles import check_tiles, predict_tiles
from dpseg.commands.predict_video import check_video, find_videos, predict_videos
from dpseg.commands.progress import progress
from dpseg.commands.prompts_input import check_classes, load_classes
from dpseg.commands.reference_sets import RefsOptions
from dpseg.commands.refinement import Refinement
from dpseg.config import FeaturePrompts
from dpseg.errors import ConfigError, DPSegError, did_you_mean
from dpseg.images import find_images
from dpseg.large.grid import Tiling
from dpseg.large.label_tiff import write_photo_labels
from dpseg.large.tiff import georeference, tiff_library
from dpseg.matching import Matching
from dpseg.precision import Precision
from dpseg.rejection import Rejection
from dpseg.result import FORMATS

if TYPE_CHECKING:
    from dpseg.prompts.prompt_set import PromptSet
    from dpseg.segmenter import Segmenter


PHOTO_FORMATS = {**FORMATS, "tiff": "_labels.tif"}
"""The formats that photos are written in, and their endings."""


@dataclass(frozen=True)
class PredictOptions:
    """The options of `dpseg predict`.

    Attributes:
        photos: files, folders and globs of photos, or files and globs of videos.
        text: classes, synonyms after commas.
        references: NAME=PICTURE, NAME=PICTURE:MASK or NAME=PICTURE:x0,y0,x1,y1.
        refs: folders of pictures and labelled sets, and how references are cut.
        vocabularies: names of vocabularies, or files with one class a line.
        prompts: file of a saved prompt set, in place of the four above.
        save_prompts: file to which the prompt set is written.
        out: folder of the results.
        formats: keys of `PHOTO_FORMATS`, or of `dpseg.video.segment.VIDEO_FORMATS`.
        model: name, folder or hub id.
        refine: whether Inference II runs, and how.
        bank: use the model's bank.
        store: folder or file of a bank of the user's own.
        feature_prompts: what words without pictures get from the banks.
        matching: how prompts are compared with a photo; None: as the model's config says.
        rejection: which classes of a long list are given up early; None: as the model's config says.
        precision: of the numbers that the model computes in.
        background: threshold in [0, 1]; None: no pixel is "none".
        device: None: CUDA where there is a GPU.
        batch_size: photos at a time; None: as suits the device.
        size: encoder's input size in pixels; None: the model's own.
        tiling: cut photos in tiles; None: each is looked at as a whole.
        smooth: of videos, weight of the frames before in [0, 1); None: 0.
    """

    photos: tuple[str, ...]
    text: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    refs: RefsOptions = field(default_factory=RefsOptions)
    vocabularies: tuple[str, ...] = ()
    prompts: Path | None = None
    save_prompts: Path | None = None
    out: Path = Path("out")
    formats: tuple[str, ...] = ("png", "json", "overlay")
    model: str = "dpseg-lite"
    refine: Refinement = field(default_factory=Refinement)
    bank: bool = True
    store: Path | None = None
    feature_prompts: FeaturePrompts = "blend"
    matching: Matching | None = None
    rejection: Rejection | None = None
    precision: Precision = "32"
    background: float | None = None
    device: str | None = None
    batch_size: int | None = None
    size: int | None = None
    tiling: Tiling | None = None
    smooth: float | None = None


def predict(options: PredictOptions, console: Console, errors: Console) -> int:
    """Segments the photos or videos, writes the results and prints what was found.

    Args:
        options: what the user asked for.
        console: where what was found is printed.
        errors: where photos, videos and references that cannot be read are reported.

    Returns:
        The exit status: 0, or 1 where a photo or video could not be read.

    Raises:
        DPSegError: the user's mistake, noticed before the first photo where that is possible.
    """
    videos = find_videos(options.photos, options.out)
    smooth = options.smooth or 0.0
    formats = check_video(options.formats, options.tiling, smooth) if videos else _photo_formats(options)
    check_classes(options)
    photos = [] if videos else without_results(find_images(options.photos), options.photos, options.out)
    check_writable(options.out)
    if options.save_prompts is not None:
        check_writable(options.save_prompts.parent)
    if options.feature_prompts == "off" and options.store is not None:
        raise ConfigError(
            f"--bank {options.store} gives words pictures, and --feature-prompts off takes none; leave out one of them"
        )
    asked = options.store, options.feature_prompts, options.matching, options.rejection, options.precision
    loaded = load_classes(options, errors, *asked)
    segmenter, prompts = loaded.segmenter, loaded.prompts
    segmenter.refinement = options.refine.config
    if options.save_prompts is not None:
        prompts.save(options.save_prompts)
    if videos:
        from dpseg.video.segment import VideoOptions

        how = VideoOptions(options.refine.refine, smooth, options.background, options.size, options.batch_size)
        return predict_videos(segmenter, prompts, videos, how, formats, options.out, console, errors)
    start = time.perf_counter()
    failed = _run(segmenter, prompts, photos, options, console, errors)
    _summary(photos, failed, time.perf_counter() - start, options, console, errors)
    return 1 if failed else 0


def _photo_formats(options: PredictOptions) -> tuple[str, ...]:
    """Checks what is to be written of photos, and what does not go with them."""
    for name in options.formats:
        if name not in PHOTO_FORMATS:
            raise ConfigError(f"format {name!r} is unknown; {did_you_mean(name, PHOTO_FORMATS)}")
    if options.smooth is not None:
        raise ConfigError(f"--smooth {options.smooth} is for videos, and these are photos; leave it out")
    if options.tiling is not None:
        check_tiles(options.formats, options.refine.refine)
    elif "tiff" in options.formats:
        tiff_library()
    return options.formats


def _run(
    segmenter: Segmenter,
    prompts: PromptSet,
    photos: Sequence[Path],
    options: PredictOptions,
    console: Console,
    errors: Console,
) -> list[DPSegError]:
    """Segments and saves photo after photo; returns the errors of those that cannot be read."""
    from dpseg.large.segment import TileOptions

    places = output_places(photos)
    if options.tiling is not None:
        tiles = TileOptions(options.tiling, options.background, options.size, options.batch_size)
        targets = {photo: (options.out / folder, stem) for photo, (folder, stem) in places.items()}
        return predict_tiles(segmenter, prompts, targets, tiles, options.formats, console, errors)
    failed: list[DPSegError] = []
    results = segmenter.stream(
        photos,
        prompts,
        batch_size=options.batch_size,
        refine=options.refine.refine,
        background=options.background,
        size=options.size,
    )
    skips = console if console.is_terminal and errors.is_terminal else errors  # above the bar, not across it
    with progress(console, len(photos), "photos") as advance:
        for number, (photo, (_, result)) in enumerate(zip(photos, results, strict=True), start=1):
            count = f"[{number}/{len(photos)}] " if len(photos) > 1 else ""
            if isinstance(result, DPSegError):
                failed.append(result)
                skips.print(f"{count}skipped: {result}", markup=False, soft_wrap=True)
            else:
                folder, stem = places[photo]
                result.save(options.out / folder, stem, [name for name in options.formats if name in FORMATS])
                if "tiff" in options.formats:
                    place = options.out / folder / (stem + PHOTO_FORMATS["tiff"])
                    write_photo_labels(place, result.labels, len(result.names), georeference(photo))
                height, width = result.labels.shape
                print_found(f"{count}{photo}", (width, height), result.areas, result.confidences, console)
            advance()
    return failed


def _summary(
    photos: Sequence[Path],
    failed: Sequence[DPSegError],
    seconds: float,
    options: PredictOptions,
    console: Console,
    errors: Console,
) -> None:
    done = len(photos) - len(failed)
    if done:
        what = f"{done} photo{'s' if done > 1 else ''}"
        files = ", ".join(options.formats)
        console.print(f"{what} in {seconds:.1f} s; {files} in {options.out}", markup=False, soft_wrap=True)
    if failed and len(photos) > 1:  # of a single one it has just been said
        errors.print(f"{len(failed)} of {len(photos)} photos could not be read:", markup=False)
        for error in failed:
            errors.print(f"  {error}", markup=False, soft_wrap=True)
