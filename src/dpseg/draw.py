"""A segmentation as a picture: tinted and outlined regions with their names on them, and a legend below the photo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from dpseg.palette import palette, text_colour

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont
Box: TypeAlias = tuple[int, int, int, int]

_TINT = 0.5  # share of the class colour inside a region; its outline has all of it
_GRID = 160  # names are placed on a grid of at most so many cells a side
_ROOM = (6.0, 4.0, 3.0, 2.0, 1.5, 1.15)  # free room to look for around a name, in units of its size, roomiest first
_SMALLEST = 0.002  # a region of a smaller share of the photo gets no name on it, only a line in the legend
_SMOOTH = 3  # names are drawn so many times larger and reduced, for smooth corners
_PAPER, _INK, _FAINT = (250, 250, 248), (28, 28, 32), (120, 120, 126)
_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "wqy-microhei.ttc",
    "Arial Unicode.ttf",
    "PingFang.ttc",
    "msyh.ttc",
    "malgun.ttf",
)  # tried in turn for names that Pillow's own font cannot write


@dataclass(frozen=True)
class Entry:
    """What is drawn of one class.

    Attributes:
        index: its label value; -1 for pixels without a class.
        name: what is written.
        area: share of the photo, in [0, 1].
        colour: RGB.
    """

    index: int
    name: str
    area: float
    colour: tuple[int, int, int]


def overlay(image: Image.Image | None, labels: npt.NDArray[Any], names: Sequence[str]) -> Image.Image:
    """Draws regions over a photo, and a legend below it.

    Args:
        image: RGB of the labels' size; None draws on grey.
        labels: (H, W) integers, -1 where there is no class.
        names: K, by label value.

    Returns:
        RGB, the photo's size plus a strip for the legend below, and at least 200 pixels wide.
    """
    height, width = labels.shape
    photo = image if image is not None else Image.new("RGB", (width, height), (128, 128, 128))
    size = max(12, round(min(width, height) / 28))
    entries = found_entries(labels, names)
    painted = paint(photo, labels, len(names))
    for entry, label, box in _placed_names(labels, entries, size):
        paste_name(painted, label, entry.colour, size, box[:2])
    legend = _legend(entries, max(width, 200), size)
    canvas = Image.new("RGB", (legend.width, height + legend.height), _PAPER)
    canvas.paste(painted, (0, 0))
    canvas.paste(legend, (0, height))
    return canvas


def found_entries(labels: npt.NDArray[Any], names: Sequence[str]) -> list[Entry]:
    """Returns the classes that occur in `labels`, largest first, and at the end the pixels without a class, if any."""
    counts = np.bincount(labels.ravel() + 1, minlength=len(names) + 1)
    colours = palette(max(1, len(names)))
    order = [int(index) for index in np.argsort(-counts[1:], kind="stable") if counts[index + 1]]
    entries = [
        Entry(index, names[index], float(counts[index + 1] / labels.size), _triple(colours[index])) for index in order
    ]
    if counts[0]:
        entries.append(Entry(-1, "none", float(counts[0] / labels.size), (200, 200, 200)))
    return entries


def _triple(colour: npt.NDArray[Any]) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in colour)
    return red, green, blue


def paint(photo: Image.Image, labels: npt.NDArray[Any], count: int) -> Image.Image:
    """Returns an RGB photo with every region tinted and outlined; labels are (H, W), -1 or below `count`."""
    edges = np.zeros(labels.shape, dtype=bool)
    across, down = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    edges[:, 1:] |= across
    edges[:, :-1] |= across
    edges[1:] |= down
    edges[:-1] |= down
    outline = Image.fromarray(edges.view(np.uint8) * np.uint8(255))
    for _ in range(round(min(labels.shape) / 900)):
        outline = outline.filter(ImageFilter.MaxFilter(3))
    strength = np.where(np.asarray(outline), np.uint8(255), np.uint8(255 * _TINT)) * (labels >= 0)
    colours = np.concatenate([palette(max(1, count)), np.zeros((1, 3), np.uint8)])  # label -1 takes the last row
    return Image.composite(Image.fromarray(colours[labels]), photo, Image.fromarray(strength))


def _placed_names(labels: npt.NDArray[Any], entries: Sequence[Entry], size: int) -> list[tuple[Entry, str, Box]]:
    """Finds where the names go, largest class first: in the roomiest part of the class, clear of the names before.

    A class whose parts are all smaller than its name has it beside them; where that is taken too it has none.
    """
    height, width = labels.shape
    if min(height, width) < 6 * size:  # a thumbnail, which names would cover
        return []
    step = max(1, -(-max(height, width) // _GRID))
    grid = labels[step // 2 :: step, step // 2 :: step]
    free = np.ones(grid.shape, dtype=bool)
    placed: list[tuple[Entry, str, Box]] = []
    for entry in entries:
        if entry.index < 0 or entry.area < _SMALLEST:
            continue
        label = shorten(entry.name, size, width * 0.6)
        pill_width, pill_height = name_size(label, size)
        if pill_width > width or pill_height > height:
            continue
        cells = -(-pill_width // step), -(-pill_height // step)
        spot = _roomiest(grid == entry.index, free, cells)
        if spot is None:
            continue
        x = min(max(0, round((spot[0] + 0.5) * step - pill_width / 2)), width - pill_width)
        y = min(max(0, round((spot[1] + 0.5) * step - pill_height / 2)), height - pill_height)
        box = (x, y, x + pill_width, y + pill_height)
        placed.append((entry, label, box))
        free[max(0, y // step - 1) : box[3] // step + 2, max(0, x // step - 1) : box[2] // step + 2] = False
    return placed


def _roomiest(
    mask: npt.NDArray[np.bool_], free: npt.NDArray[np.bool_], cells: tuple[int, int]
) -> tuple[float, float] | None:
    """Returns the centre (x, y), in cells, of the best place for a box of `cells` (width, height) on a mask, or None.

    Best is where a box as many times larger as possible lies wholly on the mask; of several such places, the one
    nearest to their mean. Where not even the box itself fits it goes where it covers most of the mask, or just above or
    below.
    """
    rows, columns = mask.shape
    clear = mask & free
    for room in _ROOM:
        wide, high = round(cells[0] * room), round(cells[1] * room)
        if wide > columns or high > rows:
            continue
        ys, xs = np.nonzero(_box_sums(clear, wide, high) == wide * high)
        if len(ys):
            best = int((np.square(ys - ys.mean()) + np.square(xs - xs.mean())).argmin())
            return xs[best] + (wide - 1) / 2, ys[best] + (high - 1) / 2
    wide, high = min(cells[0], columns), min(cells[1], rows)
    covered = _box_sums(mask, wide, high)
    open_places = _box_sums(free, wide, high) == wide * high
    small = covered.max() < 0.6 * wide * high  # the name would hide the object: look beside it first
    wanted = np.where(open_places, _beside(covered, high) if small else covered, -1)
    if wanted.max() <= 0:
        wanted = np.where(open_places, covered, -1)
    if wanted.max() <= 0:
        return None
    y, x = np.unravel_index(int(wanted.argmax()), wanted.shape)
    return int(x) + (wide - 1) / 2, int(y) + (high - 1) / 2


def _beside(covered: npt.NDArray[Any], high: int) -> npt.NDArray[Any]:
    """Scores places by how much of the mask lies just below them, or just above, less what they hide themselves."""
    below, above = np.zeros_like(covered), np.zeros_like(covered)
    below[:-high] = covered[high:]
    above[high:] = covered[:-high]
    score: npt.NDArray[Any] = np.maximum(below, above) - 4 * covered
    return score


def _box_sums(mask: npt.NDArray[np.bool_], wide: int, high: int) -> npt.NDArray[np.int64]:
    """Returns how many cells of the mask each box covers, by the box's top left cell."""
    total = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), dtype=np.int64)
    total[1:, 1:] = mask.cumsum(0).cumsum(1)
    sums: npt.NDArray[np.int64] = (
        total[high:, wide:] - total[:-high, wide:] - total[high:, :-wide] + total[:-high, :-wide]
    )
    return sums


def name_size(label: str, size: int) -> tuple[int, int]:
    """Returns width and height, in pixels, of a framed name in letters of a size."""
    return round(text_font(label, size).getlength(label) + size), round(size * 1.55)


def paste_name(
    picture: Image.Image, label: str, colour: tuple[int, int, int], size: int, corner: tuple[int, int]
) -> None:
    """Draws a framed name on its class's colour, in letters of a size, from a left and top corner on."""
    wide, high = name_size(label, size)
    shape = _pill_shape((*corner, corner[0] + wide, corner[1] + high))
    picture.paste(_pill(label, colour, size), corner, shape)


def _pill_shape(box: Box) -> Image.Image:
    """Returns the mask of a rectangle with round ends."""
    width, height = box[2] - box[0], box[3] - box[1]
    shape = Image.new("L", (width * _SMOOTH, height * _SMOOTH))
    ImageDraw.Draw(shape).rounded_rectangle(
        (0, 0, shape.width - 1, shape.height - 1), radius=shape.height * 0.32, fill=255
    )
    return shape.reduce(_SMOOTH)


def _pill(label: str, colour: tuple[int, int, int], size: int) -> Image.Image:
    """Returns a name on its class's colour, framed."""
    width, height = name_size(label, size)
    pill = Image.new("RGB", (width * _SMOOTH, height * _SMOOTH), colour)
    draw = ImageDraw.Draw(pill)
    ink = text_colour(np.array(colour))
    draw.rounded_rectangle(
        (0, 0, pill.width - 1, pill.height - 1), radius=pill.height * 0.32, outline=ink, width=max(2, size // 6)
    )
    font = text_font(label, size * _SMOOTH)
    draw.text((pill.width / 2, pill.height / 2), label, fill=ink, font=font, anchor="mm")
    return pill.reduce(_SMOOTH)


def _legend(entries: Sequence[Entry], width: int, size: int) -> Image.Image:
    """Returns a strip of colour patches with names and shares, as many rows as it takes."""
    size = max(12, round(size * 0.9))
    margin, row = round(size * 0.8), round(size * 1.9)
    items: list[tuple[float, int, Entry, str, str]] = []
    x, line = float(margin), 0
    for entry in entries:
        share = _percent(entry.area)
        label = shorten(entry.name, size, width - 2 * margin - 5 * size)
        letters = text_font(label, size).getlength(label) + text_font(share, size).getlength(share)
        need = size * 2.0 + letters
        if x > margin and x + need > width - margin:
            x, line = float(margin), line + 1
        items.append((x, line, entry, label, share))
        x += need + size * 1.4
    strip = Image.new("RGB", (width, margin + (line + 1) * row + margin // 2), _PAPER)
    draw = ImageDraw.Draw(strip)
    for x, line, entry, label, share in items:
        middle = margin * 0.7 + line * row + row / 2
        patch = (x, middle - size * 0.55, x + size * 1.1, middle + size * 0.55)
        draw.rounded_rectangle(patch, radius=size * 0.3, fill=entry.colour)
        draw.text((x + size * 1.5, middle), label, fill=_INK, font=text_font(label, size), anchor="lm")
        after = x + size * 2.0 + text_font(label, size).getlength(label)
        draw.text((after, middle), share, fill=_FAINT, font=text_font(share, size), anchor="lm")
    return strip


def _percent(share: float) -> str:
    return "<1 %" if share < 0.005 else f"{share:.0%}".replace("%", " %")


def shorten(text: str, size: int, room: float) -> str:
    """Cuts a text to `room` pixels and marks the cut."""
    if text_font(text, size).getlength(text) <= room:
        return text
    while len(text) > 1 and text_font(text, size).getlength(text + "...") > room:
        text = text[:-1]
    return text.rstrip() + "..."


def text_font(text: str, size: int) -> Font:
    """Returns Pillow's own font, or for other scripts the installed one that has most of the text's letters."""
    return _loaded_font("", size) if text.isascii() else _loaded_font(_font_for(frozenset(text)), size)


@lru_cache(maxsize=32)
def _loaded_font(name: str, size: int) -> Font:
    return ImageFont.truetype(name, size) if name else ImageFont.load_default(size)


@lru_cache(maxsize=512)
def _font_for(letters: frozenset[str]) -> str:
    """Returns the name of the font that lacks the fewest of the letters; "" is Pillow's own."""
    best, fewest = "", len(letters) + 1
    for name in ("", *_FONTS):
        try:
            font = _loaded_font(name, 16)
        except OSError:
            continue
        missing = bytes(font.getmask("\U0010ffff"))
        lacking = sum(not letter.isspace() and bytes(font.getmask(letter)) == missing for letter in letters)
        if lacking < fewest:
            best, fewest = name, lacking
        if lacking == 0:
            break
    return best
