"""`dpseg predict --tile`: large pictures, tile by tile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from dpseg.commands.found import print_found
from dpseg.commands.progress import progress
from dpseg.config import Refine
from dpseg.errors import ConfigError, ImageError
from dpseg.large.grid import Tiling

if TYPE_CHECKING:
    from dpseg.errors import DPSegError
    from dpseg.large.segment import TileOptions
    from dpseg.prompts.prompt_set import PromptSet
    from dpseg.segmenter import Segmenter


def tiling_of(pixels: int | None, overlap: float | None) -> Tiling | None:
    """Reads --tile and --tile-overlap; None: neither was given.

    Raises:
        ConfigError: one is out of range, or the second stands alone.
    """
    if pixels is None:
        if overlap is not None:
            raise ConfigError(f"--tile-overlap {overlap} needs --tile; add the side of a tile in pixels, such as 1024")
        return None
    return Tiling(pixels) if overlap is None else Tiling(pixels, overlap)


def check_tiles(formats: Sequence[str], refine: Refine) -> None:
    """Checks what does not go with tiles, before anything is loaded.

    Raises:
        ConfigError: a format or --refine does not.
        MissingExtraError: the extra "tiff" is missing.
    """
    from dpseg.large.result import check_formats
    from dpseg.large.tiff import tiff_library

    check_formats(formats)
    if refine:
        raise ConfigError("--refine does not go with --tile, which looks at each tile once; leave out one of the two")
    tiff_library()


def predict_tiles(
    segmenter: Segmenter,
    prompts: PromptSet,
    targets: Mapping[Path, tuple[Path, str]],
    options: TileOptions,
    formats: Sequence[str],
    console: Console,
    errors: Console,
) -> list[DPSegError]:
    """Segments and saves picture after picture.

    Args:
        segmenter: the model.
        prompts: of that model.
        targets: for each picture the folder of its results, and the beginning of their names.
        options: how they are cut and segmented.
        formats: what is written.
        console: where what was found is printed.
        errors: where pictures that cannot be read are reported.

    Returns:
        The errors of those that cannot be read.
    """
    from dpseg.large.segment import LargeRun
    from dpseg.large.windows import open_windows

    failed: list[DPSegError] = []
    for number, (photo, place) in enumerate(targets.items(), start=1):
        count = f"[{number}/{len(targets)}] " if len(targets) > 1 else ""
        try:
            with open_windows(photo) as picture:
                run = LargeRun(segmenter, picture, photo, prompts, place, options, formats)
                if run.finished:
                    found_before = f"{count}{photo}: {run.finished} rows of tiles were finished before"
                    console.print(found_before, markup=False, soft_wrap=True)
                with progress(console, run.tiles_left, "tiles", lines=True) as advance:
                    result = run.segment(advance)
        except ImageError as error:
            failed.append(error)
            errors.print(f"{count}skipped: {error}", markup=False, soft_wrap=True)
        else:
            print_found(f"{count}{photo}", (result.width, result.height), result.areas, result.confidences, console)
    return failed
