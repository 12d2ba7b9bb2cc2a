"""A report on prompts as one picture, drawn with Pillow: a row for each class, and the warnings below."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw

from dpseg.draw import shorten, text_font
from dpseg.explain.gap import KINDS
from dpseg.explain.page import KIND_LABELS
from dpseg.explain.prompt_report import ClassReport, PromptReport
from dpseg.explain.thumbnails import SHOWN, thumbnail

_PAPER, _INK, _FAINT, _WARN, _LINE = "#fafaf8", "#1c1c20", "#62626a", "#8a4b08", "#deded8"
_SIZE, _LINE_HEIGHT, _MARGIN = 15, 21, 16
_THUMB, _TEXT = 84, 420  # side of a picture, and width of the text beside the pictures
_WRAP = 130  # letters of a line of a warning

Line = tuple[str, str]
"""A line of text and its colour."""


def png_sheet(report: PromptReport, title: str) -> bytes:
    """Returns a PNG file's content.

    Args:
        report: of K classes.
        title: what was looked at.
    """
    rows = [_row(one) for one in report.classes]
    notes = [*((warning.text, _WARN) for warning in report.warnings), *((note, _FAINT) for note in report.notes)]
    below = [(part, colour) for text, colour in notes for part in textwrap.wrap(text, _WRAP)]
    width = max(row.width for row in rows) if rows else _TEXT
    width = max(width, _MARGIN * 2 + max((_width(text) for text, _ in below), default=0))
    height = _MARGIN * 2 + _LINE_HEIGHT * (len(below) + 2) + sum(row.height for row in rows)
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), shorten(title, 19, width - 2 * _MARGIN), fill=_INK, font=text_font(title, 19))
    y = _MARGIN + 2 * _LINE_HEIGHT
    for row in rows:
        sheet.paste(row, (0, y))
        draw.line((_MARGIN, y, width - _MARGIN, y), fill=_LINE)
        y += row.height
    _write(draw, (_MARGIN, y + _LINE_HEIGHT // 2), below)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _row(report: ClassReport) -> Image.Image:
    """Draws a class: text at the left, its pictures at the right."""
    lines = _lines(report)
    pictures = sorted(report.pictures, key=lambda one: not one.unlike)[:SHOWN]
    images = [(one.unlike, image) for one in pictures if (image := thumbnail(one)) is not None]
    height = max(_LINE_HEIGHT * len(lines), _THUMB if images else 0) + _MARGIN
    row = Image.new("RGB", (_MARGIN + _TEXT + (_THUMB + 8) * len(images) + _MARGIN, height), _PAPER)
    draw = ImageDraw.Draw(row)
    _write(draw, (_MARGIN, _MARGIN // 2), [(shorten(text, _SIZE, _TEXT - _MARGIN), colour) for text, colour in lines])
    for number, (unlike, image) in enumerate(images):
        x, y = _MARGIN + _TEXT + number * (_THUMB + 8), 8
        row.paste(image.resize((_THUMB, _THUMB), Image.Resampling.LANCZOS), (x, y))
        if unlike:
            draw.rectangle((x, y, x + _THUMB - 1, y + _THUMB - 1), outline=_WARN, width=3)
    return row


def _lines(report: ClassReport) -> list[Line]:
    """Returns what is said of a class."""
    words = ", ".join(report.words) or "no words"
    lines = [(report.name, _INK), (f"{words}; prompts: {', '.join(report.sources) or 'unknown'}", _FAINT)]
    if report.agreement is not None:
        lines.append((f"its pictures and its words: {report.agreement:.2f}", _INK))
    for kind in KINDS:
        if kind in report.nearest:
            near = report.nearest[kind]
            lines.append((f"nearest {KIND_LABELS[kind]}: {near.name}, {near.cosine:.2f}", _INK))
    if report.bank:
        named = ", ".join(f"{share.name} {share.share:.0%}" for share in report.bank)
        lines.append((f"in the bank: {named}", _INK))
    return lines


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], lines: Sequence[Line]) -> None:
    x, y = place
    for number, (text, colour) in enumerate(lines):
        draw.text((x, y + number * _LINE_HEIGHT), text, fill=colour, font=text_font(text, _SIZE))


def _width(text: str) -> int:
    return round(text_font(text, _SIZE).getlength(text))
