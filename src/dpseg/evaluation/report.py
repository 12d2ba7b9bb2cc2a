"""The folder of a finished evaluation: report.md, report.json, and for each data set charts and sheets of photos."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dpseg.evaluation.metrics import ConfusionMatrix
from dpseg.evaluation.paper import BENCHMARKS, common_table
from dpseg.evaluation.plan import Plan
from dpseg.evaluation.sheets import draw_sheet, ranked_photos
from dpseg.evaluation.sizes import SIZES
from dpseg.evaluation.table import Report, Row, markdown_line, percent
from dpseg.files import make_folder, write_atomically
from dpseg.plots import confusion_bars, iou_bars
from dpseg.segmenter import Segmenter

SHEET_PHOTOS = 4
"""Photos on a sheet, at most."""

_FLOWS = 20  # mistakes in the chart
_NONE = "none"

_ABOUT = """\
mIoU is the mean, over the classes that occur in the masks, of intersection over union, from one confusion matrix over
all photos. Boundary F compares outlines within 0.75 % of the photo's diagonal. Small found is the share of the masks'
connected regions below 32 x 32 pixels of which more than half is right. Figures are in %. The paper's models are CLIP
models trained on COCO-Stuff; its figures are quoted, not measured here."""


def write_report(
    folder: Path, model: str, plans: Sequence[Plan], reports: Sequence[Report], segmenter: Segmenter
) -> Path:
    """Writes everything; pictures are of the row with the highest mIoU.

    Args:
        folder: of the evaluation, which exists.
        model: how the model is called.
        plans: one a data set.
        reports: one a data set, of the same names.
        segmenter: the model, which segments the photos of the sheets again.

    Returns:
        The file report.md.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: a file cannot be written.
        DPSegError: a photo cannot be read any more.
    """
    sections = [f"# Evaluation of {model}", common_table(reports, model), _ABOUT]
    for plan, report in zip(plans, reports, strict=True):
        pictures = _write_pictures(folder, plan, report, segmenter)
        sections.append(_section(report, pictures))
    content = {"model": model, "sets": [report.to_json() for report in reports]}
    write_atomically(folder / "report.json", (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())
    return write_atomically(folder / "report.md", ("\n\n".join(sections) + "\n").encode())


def largest_flows(matrix: ConfusionMatrix, count: int) -> list[tuple[str, str, float, float]]:
    """Returns the pairs of classes that are most often confused, largest first.

    Args:
        matrix: K classes.
        count: so many at most.

    Returns:
        Truth, prediction, share of all counted pixels, and share of the truth's pixels, both in (0, 1].
    """
    names = (*matrix.names, _NONE)
    wrong = matrix.counts.copy()
    np.fill_diagonal(wrong, 0)
    flows = []
    for place in np.argsort(-wrong, axis=None, kind="stable")[:count]:
        truth, guess = divmod(int(place), len(names))
        pixels = int(wrong[truth, guess])
        if pixels:
            own = int(matrix.counts[truth].sum())
            flows.append((names[truth], names[guess], pixels / matrix.pixels, pixels / own))
    return flows


def _write_pictures(folder: Path, plan: Plan, report: Report, segmenter: Segmenter) -> dict[str, str]:
    """Writes the pictures of a data set and returns what they show, and their paths below the folder."""
    row, place = report.best, make_folder(folder / report.name)
    matrix = row.matrix
    what = f"{_title(report)}, {row.prompts}, Inference {row.inference}"
    occurring = np.flatnonzero(matrix.occurs)
    bars = iou_bars(
        [matrix.names[index] for index in occurring],
        [float(matrix.iou[index]) for index in occurring],
        f"IoU of each class: {what}",
        matrix.mean_iou,
        None if report.seen is None else [report.seen[index] for index in occurring],
    )
    pictures = {"IoU of each class": bars}
    flows = largest_flows(matrix, _FLOWS)
    if flows:
        title = f"Largest mistakes, truth → prediction: {what}"
        pictures["Largest mistakes"] = confusion_bars(flows, title)
    titles = ("Best photos", "Median photos", "Worst photos")
    for title, photos in zip(titles, ranked_photos(row, SHEET_PHOTOS), strict=True):
        if photos:
            pictures[title] = draw_sheet(segmenter, plan, row, photos)
    files = {}
    for title, content in pictures.items():
        path = write_atomically(place / f"{title.lower().replace(' ', '-')}.png", content)
        files[title] = path.relative_to(folder).as_posix()
    return files


def _section(report: Report, pictures: dict[str, str]) -> str:
    """Returns the Markdown of one data set."""
    row = report.best
    occurring = int(row.matrix.occurs.sum())
    parts = [
        f"## {_title(report)}",
        f"{report.photos} photos, {len(row.matrix.names)} classes, {occurring} of them in the masks,"
        f" {report.seconds / max(1, report.photos):.2f} s a photo on {report.setting['machine']}.{_uncounted(row)}",
        report.to_markdown(),
        "Connected regions of the masks by area: small is below 32 x 32 pixels, medium below 96 x 96. Pixels found, the"
        " mean over classes, and regions of which more than half was found.",
        _size_table(report.rows),
        f"The pictures and the classes are of the row with the highest mIoU: {row.prompts}, Inference {row.inference}.",
        *(f"### {title}\n\n![{title}](<{path}>)" for title, path in pictures.items()),
        "### Classes",
        _class_table(report, row),
    ]
    return "\n\n".join(parts)


def _title(report: Report) -> str:
    return BENCHMARKS.get(report.name, report.name)


def _uncounted(row: Row) -> str:
    names = [row.matrix.names[index] for index in sorted(row.matrix.ignore)]
    return f" Pixels of {', '.join(names)} are not counted." if names else ""


def _size_table(rows: Sequence[Row]) -> str:
    columns = [f"{size} {what}" for size in SIZES for what in ("pixels", "regions", "number")]
    lines = [markdown_line(["prompts", "inference", *columns]), "|---|---|" + "---|" * len(columns)]
    for row in rows:
        sizes = row.tally.sizes
        numbers = sizes.counts.sum(axis=0)[:, 0]
        cells = [
            cell
            for index in range(len(SIZES))
            for cell in (percent(sizes.recall[index]), percent(sizes.found[index]), str(numbers[index]))
        ]
        lines.append(markdown_line([row.prompts, row.inference, *cells]))
    return "\n".join(lines)


def _class_table(report: Report, row: Row) -> str:
    """Returns a line for each class that occurs, best IoU first."""
    matrix, boundary = row.matrix, row.tally.boundary.f_score
    columns = ["class", "IoU", "pixels found", "boundary F", "share of the pixels"]
    columns += [] if report.seen is None else ["in training"]
    lines = [markdown_line(columns), "|---|" + "---|" * (len(columns) - 1)]
    share = matrix.counts.sum(axis=1) / matrix.pixels
    for index in sorted(np.flatnonzero(matrix.occurs).tolist(), key=lambda index: -matrix.iou[index]):
        values = (matrix.iou[index], matrix.recall[index], boundary[index], share[index])
        cells = [matrix.names[index], *(percent(float(value)) for value in values[:3]), f"{100 * values[3]:.2f}"]
        cells += [] if report.seen is None else ["yes" if report.seen[index] else "no"]
        lines.append(markdown_line(cells))
    return "\n".join(lines)
