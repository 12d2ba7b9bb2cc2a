"""Charts for reports, drawn with matplotlib without a screen; its global state is left alone."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dpseg.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INK, _FAINT, _GRID = "#1c1c20", "#6e6e74", "#e2e2de"
_BLUE, _ORANGE = "#3b6fb5", "#d97a2b"
_COLUMN, _COLUMNS = 50, 6  # so many bars stand below each other, unless that would make too many columns
_LONGEST = 30  # letters of a name
_DPI = 110
_LABEL: dict[str, Any] = {  # the figure at the end of a bar, over the lines behind it
    "va": "center",
    "color": _INK,
    "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.6},
}


def check_matplotlib() -> None:
    """Imports matplotlib.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "charts need matplotlib: pip install 'dpseg[train]', or ask for figures alone with --out FILE.json"
        ) from error


def iou_bars(
    names: Sequence[str], values: Sequence[float], title: str, mean: float, seen: Sequence[bool] | None = None
) -> bytes:
    """Draws a bar for each class, best first, in as many columns as they need.

    Args:
        names: K classes.
        values: K, IoU in [0, 1].
        title: above all.
        mean: mIoU in [0, 1], drawn as a line.
        seen: whether training had the class; None: all bars have one colour.

    Returns:
        A PNG file's content.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    order = sorted(range(len(names)), key=lambda index: -values[index])
    columns = min(_COLUMNS, max(1, -(-len(order) // _COLUMN)))
    rows = -(-len(order) // columns)
    figure = _figure(6.0 if columns == 1 else 4.2 * columns, 1.2 + 0.2 * rows)
    for number in range(columns):
        part = order[number * rows : (number + 1) * rows]
        axes = figure.add_subplot(1, columns, number + 1)
        colours = [_BLUE if seen is None or seen[index] else _ORANGE for index in part]
        axes.barh(range(len(part)), [100 * values[index] for index in part], color=colours, height=0.72)
        for place, index in enumerate(part):
            axes.text(100 * values[index] + 1, place, f"{100 * values[index]:.0f}", fontsize=7, **_LABEL)
        _name_rows(axes, [_short(names[index]) for index in part], rows)
        axes.axvline(100 * mean, color=_FAINT, linewidth=0.9, linestyle="--", zorder=0)
        axes.set_xlim(0, 108)
        axes.set_xlabel("IoU, %", fontsize=8, color=_FAINT)
    explained = "" if seen is None else "; blue: names seen in training, orange: others"
    figure.suptitle(f"{title}\ndashed: mIoU {100 * mean:.1f} %{explained}", fontsize=9, color=_INK)
    return _png(figure)


def confusion_bars(flows: Sequence[tuple[str, str, float, float]], title: str) -> bytes:
    """Draws the largest mistakes as bars "truth -> prediction".

    Args:
        flows: truth, prediction, share of all counted pixels in [0, 1], share of the truth's own pixels in [0, 1];
            largest first.
        title: above all.

    Returns:
        A PNG file's content.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = _figure(7.4, 1.2 + 0.26 * max(1, len(flows)))
    axes = figure.add_subplot(1, 1, 1)
    axes.barh(range(len(flows)), [100 * flow[2] for flow in flows], color=_ORANGE, height=0.7)
    longest = 100 * max((flow[2] for flow in flows), default=0.01)
    for place, (_, _, share, own) in enumerate(flows):
        text = f"{100 * share:.2f} %  ({100 * own:.0f} % of the class)"
        axes.text(100 * share + 0.01 * longest, place, text, fontsize=7.5, **_LABEL)
    _name_rows(axes, [f"{_short(truth)} → {_short(guess)}" for truth, guess, _, _ in flows], len(flows))
    axes.set_xlim(0, 1.45 * longest)
    axes.set_xlabel("of all counted pixels, %", fontsize=8, color=_FAINT)
    figure.suptitle(title, fontsize=9, color=_INK)
    return _png(figure)


def _name_rows(axes: Any, names: Sequence[str], rows: int) -> None:
    """Writes names at the bars, the first at the top, and leaves out what a chart of bars does not need."""
    axes.set_yticks(range(len(names)), [_escape(name) for name in names], fontsize=8)
    axes.set_ylim(max(1, rows) - 0.4, -0.6)
    axes.tick_params(length=0, colors=_INK, labelsize=8)
    axes.grid(axis="x", color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(False)


def _figure(width: float, height: float) -> Figure:
    """Returns an empty figure of so many inches."""
    check_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else name[: _LONGEST - 3].rstrip() + "..."


def _escape(name: str) -> str:
    """Returns the name so that matplotlib does not read formulas in it."""
    return name.replace("$", r"\$")


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
