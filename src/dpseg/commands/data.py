"""`dpseg data`: data sets made ready, and looked through for what is broken."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from dpseg.commands.places import check_writable
from dpseg.commands.progress import progress
from dpseg.errors import MissingExtraError
from dpseg.files import write_atomically

if TYPE_CHECKING:
    from dpseg.data.check import Finding

ROWS = 40
"""So many classes are printed, those with the most pixels first."""

SHOWN_PROBLEMS = 20
BROKEN = 1
"""Exit status where something is broken."""


@dataclass(frozen=True)
class DataOptions:
    """The options of `dpseg data prepare` and `dpseg data check`.

    Attributes:
        data: a benchmark's name; for the check also a folder or a COCO file.
        root: where its download was unpacked, or the photos of a COCO file; None: this folder, or that of the file.
        split: which photos; None: all of a folder.
        out: of the check, the folder for classes.png and classes.csv; None: none is written.
    """

    data: str
    root: Path | None = None
    split: str | None = "val"
    out: Path | None = None


def prepare(options: DataOptions, console: Console, errors: Console) -> int:
    """Writes a benchmark's masks as PNG files, where that makes reading them faster.

    Args:
        options: what the user asked for.
        console: where the result is printed.
        errors: where progress and problems are shown.

    Returns:
        The exit status: 0, or 1 where masks are missing or damaged.

    Raises:
        DPSegError: the user's mistake.
    """
    from dpseg.data.benchmarks import BENCHMARKS, open_benchmark
    from dpseg.data.check import official_count
    from dpseg.data.mask_cache import prepare as write_masks

    dataset, split = open_benchmark(options.data, options.root, options.split)
    if not BENCHMARKS[dataset.name].slow:
        _say(console, f"{dataset.name} is read as it was downloaded; there is nothing to prepare")
        return 0
    with progress(errors, len(dataset), "masks", lines=True) as step:
        done = write_masks(dataset, split, step)
    official = official_count(dataset.name, split)
    _say(console, f"{done.folder}: {done.written} masks written, {done.kept} kept, officially there are {official}")
    _list_problems(errors, done.problems)
    return BROKEN if done.problems else 0


def check(options: DataOptions, console: Console, errors: Console) -> int:
    """Reads a data set, prints its classes and what is wrong, and draws how often each class occurs.

    Args:
        options: what the user asked for.
        console: where the classes are printed.
        errors: where progress, problems and warnings are shown.

    Returns:
        The exit status: 0, or 1 where something is broken.

    Raises:
        DPSegError: the user's mistake.
    """
    from dpseg.data.check import check_dataset, official_count, open_leniently

    if options.out is not None:
        check_writable(options.out)
        _need_matplotlib()
    dataset = open_leniently(options.data, options.root, options.split)
    with progress(errors, len(dataset), "photos", lines=True) as step:
        finding = check_dataset(dataset, official_count(options.data, options.split), step)
    _say(console, class_table(finding))
    if options.out is not None:
        write_atomically(options.out / "classes.csv", class_csv(finding).encode())
        write_atomically(options.out / "classes.png", class_plot(finding))
        _say(console, f"\n{options.out}: classes.csv, classes.png")
    for warning in finding.warnings:
        _say(errors, f"warning: {warning}")
    _list_problems(errors, finding.problems)
    _say(errors, f"{options.data}: {finding.photos} photos, {len(finding.problems)} problems")
    return BROKEN if finding.problems else 0


def class_table(finding: Finding) -> str:
    """Returns the classes as a Markdown table, most pixels first, at most `ROWS` of them."""
    whole = max(1, int(finding.pixels.sum()) + finding.unlabelled)
    order = sorted(range(len(finding.class_names)), key=lambda number: -int(finding.pixels[number]))
    lines = ["| class | pixels | % | photos |", "|---|---|---|---|"]
    for number in order[:ROWS]:
        name, pixels = _short(finding.class_names[number]), int(finding.pixels[number])
        lines.append(f"| {name} | {pixels} | {100 * pixels / whole:.2f} | {int(finding.photos_with[number])} |")
    if len(order) > ROWS:
        lines.append(f"| {len(order) - ROWS} more: see classes.csv of --out | | | |")
    lines.append(f"| not labelled | {finding.unlabelled} | {100 * finding.unlabelled / whole:.2f} | |")
    return "\n".join(lines)


def class_csv(finding: Finding) -> str:
    """Returns all classes with their pixels and photos, in the data set's order."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("class", "pixels", "photos"))
    for name, pixels, photos in zip(finding.class_names, finding.pixels, finding.photos_with, strict=True):
        writer.writerow((name, int(pixels), int(photos)))
    return text.getvalue()


def class_plot(finding: Finding) -> bytes:
    """Draws the pixels of each class, most first, on a logarithmic axis.

    Returns:
        A PNG file.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    _need_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    order = sorted(range(len(finding.class_names)), key=lambda number: -int(finding.pixels[number]))
    names = [_short(finding.class_names[number]) for number in order]
    figure = Figure(figsize=(max(6.0, 0.2 * len(order)), 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.bar(range(len(order)), [int(finding.pixels[number]) for number in order], width=0.8)
    axes.set_yscale("symlog", linthresh=1)
    axes.set_xticks(range(len(order)), names, rotation=90, fontsize=7)
    axes.set_xlim(-0.6, len(order) - 0.4)
    axes.set_ylabel("pixels")
    axes.set_title(f"{finding.photos} photos, {len(order)} classes")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _need_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("the plot needs matplotlib; pip install 'dpseg[train]', or leave --out out") from error


def _short(class_name: str) -> str:
    return class_name.split(",")[0].strip()


def _list_problems(errors: Console, problems: tuple[str, ...]) -> None:
    for problem in problems[:SHOWN_PROBLEMS]:
        _say(errors, f"problem: {problem}")
    if len(problems) > SHOWN_PROBLEMS:
        _say(errors, f"problem: and {len(problems) - SHOWN_PROBLEMS} more")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)
