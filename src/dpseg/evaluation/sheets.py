"""Sheets of photos for a report: photo, prediction, truth and error beside each other."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dpseg.draw import overlay
from dpseg.evaluation.evaluate import encode_prompts, predict
from dpseg.evaluation.plan import Plan
from dpseg.evaluation.table import Row
from dpseg.segmenter import Segmenter

PANEL = 420
"""Longer side of a photo on a sheet, in pixels."""

COLUMNS = ("photo", "prediction", "truth (none: not counted)", "orange: wrong, blue: right")
_GAP, _LINE = 12, 24
_PAPER, _INK = (250, 250, 248), (28, 28, 32)
_RIGHT, _WRONG = (90, 140, 210), (235, 110, 20)


def ranked_photos(row: Row, count: int) -> tuple[list[int], list[int], list[int]]:
    """Returns the photos of which the largest, a middling and the smallest share of the counted pixels is right.

    Args:
        row: of the table.
        count: so many of each at most, 1 or more; with few photos there are fewer, so that none is in two.

    Returns:
        Indices in the data set: best first; those around the median, best first; and worst first.
    """
    counted = row.tally.photos[row.tally.photos[:, 1] > 0]
    share = counted[:, 2] / counted[:, 1]
    order = counted[np.argsort(-share, kind="stable"), 0].tolist()
    best = order[: min(count, (len(order) + 1) // 2)]
    worst = order[::-1][: min(count, len(order) // 2)]
    between = order[len(best) : len(order) - len(worst)]
    first = max(0, (len(between) - count) // 2)
    return best, between[first : first + count], worst


def draw_sheet(segmenter: Segmenter, plan: Plan, row: Row, photos: Sequence[int]) -> bytes:
    """Segments a few photos again, with the prompts of a row, and draws a line of pictures for each.

    Args:
        segmenter: the model.
        plan: of the data set.
        row: which prompts and inference, and the photos' figures.
        photos: indices in the data set, at least one.

    Returns:
        A PNG file's content.

    Raises:
        DPSegError: a photo or its mask cannot be read any more.
    """
    prompts = encode_prompts(segmenter, plan, [row.prompts])[row.prompts]
    figures = {int(index): (int(pixels), int(right)) for index, pixels, right in row.tally.photos}
    lines = []
    for index in photos:
        sample = plan.dataset[index]
        encoded = segmenter.encode([sample.image], plan.config.size)
        prediction = predict(segmenter, plan, prompts, encoded, row.refine)
        counted = (sample.mask != plan.dataset.ignore_index) & ~np.isin(sample.mask, list(plan.ignored))
        panels = draw_panels(sample.image, prediction, sample.mask, counted, plan.shown)
        pixels, right = figures[index]
        lines.append(_line(f"{sample.stem}: {100 * right / pixels:.1f} % of {pixels:,} counted pixels right", panels))
    return _png(_stack(lines))


def draw_panels(
    image: Image.Image,
    prediction: NDArray[np.int32],
    truth: NDArray[np.int32],
    counted: NDArray[np.bool_],
    names: Sequence[str],
) -> list[Image.Image]:
    """Draws the four pictures of `COLUMNS`, reduced; what does not count is left plain.

    Args:
        image: RGB of W x H pixels.
        prediction: (H, W) labels, -1 for none.
        truth: (H, W) labels.
        counted: (H, W).
        names: K, by label value.
    """
    scale = PANEL / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    small = image.resize(size, Image.Resampling.LANCZOS)
    there = _reduced(counted.astype(np.int32), size) > 0
    guess, label = (np.where(there, _reduced(labels, size), -1) for labels in (prediction, truth))
    grey = np.asarray(small.convert("L").convert("RGB"), dtype=np.float64) * 0.5 + 110
    colours = np.where((guess == label)[..., None], _RIGHT, _WRONG)
    strength = np.where(guess == label, 0.35, 0.75) * there
    error = grey + (colours - grey) * strength[..., None]
    return [
        small,
        overlay(small, guess, names),
        overlay(small, label, names),
        Image.fromarray(error.clip(0, 255).astype(np.uint8)),
    ]


def _reduced(labels: NDArray[np.int32], size: tuple[int, int]) -> NDArray[np.int32]:
    return np.asarray(Image.fromarray(labels.astype(np.int32)).resize(size, Image.Resampling.NEAREST))


def _line(caption: str, panels: Sequence[Image.Image]) -> Image.Image:
    """Puts pictures beside each other, with a caption above."""
    height = _LINE + max(panel.height for panel in panels) + _GAP
    line = Image.new("RGB", (len(panels) * (PANEL + _GAP) + _GAP, height), _PAPER)
    ImageDraw.Draw(line).text((_GAP, 2), caption, fill=_INK, font=ImageFont.load_default(15))
    for number, panel in enumerate(panels):
        line.paste(panel, (_GAP + number * (PANEL + _GAP), _LINE))
    return line


def _stack(lines: Sequence[Image.Image]) -> Image.Image:
    """Puts lines below each other, under the names of the columns."""
    sheet = Image.new("RGB", (lines[0].width, _LINE + 8 + sum(line.height for line in lines)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, name in enumerate(COLUMNS):
        draw.text((_GAP + number * (PANEL + _GAP), 8), name, fill=_INK, font=ImageFont.load_default(17))
    top = _LINE + 8
    for line in lines:
        sheet.paste(line, (0, top))
        top += line.height
    return sheet


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()
