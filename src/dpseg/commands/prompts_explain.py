"""`dpseg prompts explain`: which class won at a pixel of a photo, by how much, and why."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dpseg.commands.places import check_writable
from dpseg.commands.prompts_input import AskedClasses, check_classes, load_classes
from dpseg.commands.prompts_show import column_table, print_table
from dpseg.errors import ConfigError
from dpseg.files import write_atomically

if TYPE_CHECKING:
    from dpseg.explain.pixel import Candidate, PixelReport
    from dpseg.explain.point_logits import Point

_POINT = re.compile(r"\s*(\d+)\s*,\s*(\d+)\s*")


@dataclass(frozen=True, kw_only=True)
class PixelOptions(AskedClasses):
    """The options of `dpseg prompts explain`.

    Attributes:
        photo: a file.
        points: pixels of it.
        classes: so many classes a pixel, the best.
        refine: run Inference II too; None: as the model's config says.
        size: encoder's input size in pixels; None: the model's own.
        out: PNG file of the figure; None: there is none.
        as_json: print JSON.
    """

    photo: Path
    points: tuple[Point, ...]
    classes: int = 3
    refine: bool | None = None
    size: int | None = None
    out: Path | None = None
    as_json: bool = False


def parse_point(text: str) -> Point:
    """Reads --at x,y.

    Raises:
        ConfigError: it is not of this form.
    """
    found = _POINT.fullmatch(text)
    if found is None:
        raise ConfigError(f"--at {text!r} is no pixel; give x,y counted from the top left corner, such as 120,40")
    return int(found[1]), int(found[2])


def explain(options: PixelOptions, console: Console, errors: Console) -> int:
    """Explains pixels of a photo: prints a sentence and a table for each, and draws the figure.

    Args:
        options: what the user asked for.
        console: where the explanation is printed.
        errors: where progress is shown, and what of the references cannot be read.

    Returns:
        The exit status, 0.

    Raises:
        DPSegError: the user's mistake.
    """
    from dpseg.explain.figures import check_drawing, png_of
    from dpseg.explain.origins import find_origins
    from dpseg.explain.pixel import explain_pixels
    from dpseg.explain.pixel_figure import pixel_figure
    from dpseg.images import load_image

    check_classes(options)
    load_image(options.photo)
    if options.out is not None:
        if options.out.suffix.lower() != ".png":
            raise ConfigError(f"--out {options.out}: the figure is a PNG file; name it .png")
        check_drawing()
        check_writable(options.out.parent)
    loaded = load_classes(options, errors, options.store, options.feature_prompts)
    origins = find_origins(loaded.segmenter, loaded.prompts, loaded.text, loaded.references)
    photo, reports = explain_pixels(
        loaded.segmenter,
        options.photo,
        options.points,
        loaded.prompts,
        origins,
        refine=options.refine,
        count=options.classes,
        size=options.size,
    )
    if options.out is not None:
        write_atomically(options.out, png_of(pixel_figure(photo, reports)))
    if options.as_json:
        content = {"photo": str(options.photo), "model": options.model, "pixels": [one.to_json() for one in reports]}
        console.print(json.dumps(content, ensure_ascii=False, indent=1), markup=False, soft_wrap=True)
        return 0
    _print(reports, options, console)
    return 0


def _print(reports: Sequence[PixelReport], options: PixelOptions, console: Console) -> None:
    for report in reports:
        x, y = report.point
        console.print(f"{options.photo}, pixel {x},{y}: {report.summary}", markup=False, soft_wrap=True)
        print_table(console, _table(report.candidates))
        for one in report.candidates:
            if made := _made(one):
                console.print(f"{one.name}: {made}", markup=False, soft_wrap=True)
    if options.out is not None:
        console.print(str(options.out), markup=False, soft_wrap=True)


def _table(candidates: Sequence[Candidate]) -> Table:
    again = candidates[0].first is not None
    scales = list(candidates[0].cosines)[3:]
    headings = ["class", "logit", *(["before"] if again else []), "cosine", "decoder"]
    headings += ["presence"] if any(one.presence for one in candidates) else []
    headings += ["adjustment"] if any(one.adjustment for one in candidates) else []
    table = column_table(*headings, "words", "pictures", "both", *scales)
    for one in candidates:
        numbers = [one.logit, *([one.first] if again else []), one.baseline, one.decoder]
        numbers += [one.presence] if "presence" in headings else []
        numbers += [one.adjustment] if "adjustment" in headings else []
        cosines = [one.cosines[name] for name in one.cosines]
        table.add_row(Text(one.name), *(_number(value, 1) for value in numbers), *map(_number, cosines))
    return table


def _made(candidate: Candidate) -> str:
    """Says of what the class's pictures were made."""
    if candidate.picture is not None:
        return f"nearest of its pictures {candidate.picture.source or 'without a name'}, {candidate.picture.cosine:.2f}"
    if candidate.bank:
        return "pictures of the bank's " + ", ".join(f"{share.name} {share.share:.0%}" for share in candidate.bank)
    return "crops of this photo" if "crop" in candidate.sources else ""


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
