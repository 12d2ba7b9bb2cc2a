"""The figure of `dpseg prompts explain`: the photo with marked pixels, and the cosines of the best classes there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dpseg.explain.cost import DUAL, TEXT, VISUAL
from dpseg.explain.figures import FAINT, INK, MARKERS, empty_figure, short_name
from dpseg.explain.pixel import PixelReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PHOTO = 900  # longer side, in pixels
_KINDS = ((TEXT, "words, cosine(E, T)"), (VISUAL, "pictures, cosine(E, V)"), (DUAL, "both, cosine(E, R)"))


def pixel_figure(photo: Image.Image, reports: Sequence[PixelReport]) -> Figure:
    """Draws the photo with numbered pixels, and for each the cosines of its best classes.

    Args:
        photo: RGB.
        reports: one a pixel, one at least.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    shown = photo.copy()
    shown.thumbnail((_PHOTO, _PHOTO), Image.Resampling.LANCZOS)
    rows = sum(len(report.candidates) for report in reports)
    figure = empty_figure(10.0, max(3.2, 1.0 + 0.55 * rows + 0.6 * len(reports)))
    grid = figure.add_gridspec(len(reports), 2, width_ratios=[1.1, 1.0])
    left = figure.add_subplot(grid[:, 0])
    left.imshow(shown)
    bars: Axes | None = None
    left.set_axis_off()
    for number, report in enumerate(reports, start=1):
        x = (report.point[0] + 0.5) * shown.width / photo.width - 0.5
        y = (report.point[1] + 0.5) * shown.height / photo.height - 0.5
        left.plot(x, y, marker="o", markersize=13, markerfacecolor="none", markeredgecolor="white", markeredgewidth=4)
        left.plot(x, y, marker="o", markersize=13, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.6)
        if len(reports) > 1:
            box = {"facecolor": "white", "edgecolor": INK, "boxstyle": "round,pad=0.2", "linewidth": 0.7}
            left.annotate(str(number), (x, y), (10, 10), textcoords="offset points", fontsize=9, bbox=box)
        bars = figure.add_subplot(grid[number - 1, 1], sharex=bars)
        _draw_bars(bars, report, number if len(reports) > 1 else None)
    handles, labels = figure.axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower right", ncols=3, frameon=False, fontsize=8)
    return figure


def _draw_bars(axes: Axes, report: PixelReport, number: int | None) -> None:
    """Draws a bar for each class and kind of prompt; a missing prompt has none."""
    places = np.arange(len(report.candidates))
    for offset, (kind, label) in zip((-0.27, 0.0, 0.27), _KINDS, strict=True):
        values = [one.cosines.get(kind) for one in report.candidates]
        widths = [0.0 if value is None else value for value in values]
        axes.barh(places + offset, widths, height=0.24, color=MARKERS[kind][1], label=label)
    axes.set_yticks(places, [f"{short_name(one.name)}\nlogit {one.logit:.1f}" for one in report.candidates], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color=FAINT, linewidth=0.8)
    axes.tick_params(length=0, labelsize=8, labelcolor=INK)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    x, y = report.point
    axes.set_title(f"{'' if number is None else f'{number}: '}pixel {x}, {y}", fontsize=9, color=INK, loc="left")
