"""The figures of `dpseg explain`, drawn with matplotlib without a screen; its global state is left alone."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dpseg.errors import MissingExtraError
from dpseg.explain.cost import DUAL, PROBABILITY, TEXT, VISUAL, Explanation
from dpseg.explain.gap import KINDS, Gap, Vectors
from dpseg.palette import palette
from dpseg.result import Segmentation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import SubplotSpec

MOST_COLOURS = 12
"""With more classes, the t-SNE picture colours kinds of embeddings in place of classes."""

INK, FAINT, _EMPTY = "#1c1c20", "#6e6e74", "#f0f0ec"
MARKERS = {"text": ("^", "#3b6fb5"), "visual": ("s", "#d97a2b"), "dual": ("*", "#a3246b"), "image": ("o", "#9a9aa0")}
_SIZES = {"text": 70, "visual": 55, "dual": 150, "image": 26}  # of markers, in square points
_HEADINGS = {
    TEXT: "text\ncosine(E, T)",
    VISUAL: "visual\ncosine(E, V)",
    DUAL: "dual, $F_c$\ncosine(E, R)",
    "stage4": "visual, $F_v^4$\ncosine($E_4$, $V_4$)",
    "stage3": "visual, $F_v^3$\ncosine($E_3$, $V_3$)",
    "stage2": "visual, $F_v^2$\ncosine($E_2$, $V_2$)",
    PROBABILITY: "decoder\nprobability",
}
_DPI = 120
_CELL = 1.8  # longer side of a map, in inches
_OVERLAY = 1100  # longer side of an overlay, in pixels
_LONGEST = 24  # letters of a name
_LETTERS = 13  # of a name along an inch


def check_drawing() -> None:
    """Imports what the figures need.

    Raises:
        MissingExtraError: matplotlib or scikit-learn is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
        import sklearn.manifold  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("the figures need matplotlib and scikit-learn: pip install 'dpseg[train]'") from error


def png_of(figure: Figure) -> bytes:
    """Returns a figure as a PNG file's content."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def gap_figure(gap: Gap, points: Vectors, title: str) -> Figure:
    """Draws text, visual, dual and image embeddings in a plane.

    Up to `MOST_COLOURS` classes have a colour each; with more, the colours tell kinds apart and images are grey.

    Args:
        gap: prompts and regions.
        points: what `plane_points` returned.
        title: above all.
    """
    from matplotlib.lines import Line2D

    count, by_class = len(gap.names), len(gap.names) <= MOST_COLOURS
    colours = palette(count) / 255
    figure = empty_figure(9.0, 6.6)
    axes = figure.add_subplot(1, 1, 1)
    handles = []
    for kind in ("image", *KINDS):
        start = KINDS.index(kind) * count if kind in KINDS else len(KINDS) * count
        part = points[start : start + count] if kind in KINDS else points[start:]
        owners = np.arange(count) if kind in KINDS else gap.owners
        marker, colour = MARKERS[kind]
        edge: dict[str, Any] = {"edgecolors": INK if kind in KINDS else "none", "linewidths": 0.7}
        fill = colours[owners] if by_class else [colour] * len(owners)
        axes.scatter(part[:, 0], part[:, 1], s=_SIZES[kind], c=fill, marker=marker, label=kind, **edge)
        shown: dict[str, Any] = {
            "markerfacecolor": "white" if by_class else colour,
            "markeredgecolor": INK,
            "markersize": 9,
        }
        handles.append(Line2D([], [], linestyle="none", marker=marker, label=_kind_label(gap, kind), **shown))
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_color("#d0d0cc")
    style: dict[str, Any] = {"alignment": "left", "frameon": False, "fontsize": 9}
    figure.legend(handles=[*handles[1:], handles[0]], title="embeddings", loc="outside right upper", **style)
    if by_class:
        dots = [
            Line2D([], [], linestyle="none", marker="o", color=tuple(colours[k]), markersize=7, label=short_name(name))
            for k, name in enumerate(gap.names)
        ]
        figure.legend(handles=dots, title="classes", loc="outside right lower", **style)
    axes.set_title(title, fontsize=10, color=INK)
    return figure


def cost_figure(explanation: Explanation) -> Figure:
    """Draws a row for each class: the photo with the class's outline, its cost volumes, and its probability.

    All maps of a column have one scale, which is written below it; that of the probability is 0 to 1.

    Args:
        explanation: the maps.
    """
    thumb = explanation.photo.copy()
    thumb.thumbnail((round(_CELL * _DPI), round(_CELL * _DPI)), Image.Resampling.LANCZOS)
    wide, high = (_CELL * side / max(thumb.size) for side in thumb.size)
    rows, columns = len(explanation.names), len(explanation.maps) + 1
    figure = empty_figure(0.5 + columns * (max(wide, 1.3) + 0.08), 1.0 + rows * (high + 0.08))
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=[*[high] * rows, 0.09])
    letters = max(6, int(high * _LETTERS))
    for row, name in enumerate(explanation.names):
        axes = _cell(figure.add_subplot(grid[row, 0]), "photo" if row == 0 else None)
        axes.imshow(thumb)
        _outline(axes, explanation.first.mask(name), thumb.size)
        area = explanation.first.areas.get(name, 0.0)
        axes.set_ylabel(f"{short_name(name, letters)}\n{area:.1%} of photo", fontsize=8, color=INK)
    for column, (kind, maps) in enumerate(explanation.maps.items(), start=1):
        _draw_column(figure, [grid[row, column] for row in range(rows + 1)], kind, maps, thumb.size)
    return figure


def column_scale(kind: str, maps: NDArray[np.float32]) -> tuple[float, float]:
    """Returns the smallest and the largest value of a column's scale: 0 to 1 for probabilities and empty columns."""
    if kind == PROBABILITY or np.isnan(maps).all():
        return 0.0, 1.0
    return float(np.nanmin(maps)), float(np.nanmax(maps))


def inference_figure(first: Segmentation, second: Segmentation) -> Figure:
    """Draws the overlays of Inference I and Inference II beside each other, and says which classes were cropped.

    Args:
        first: Inference I.
        second: Inference II of the same photo and classes.
    """
    changed = float((first.labels != second.labels).mean())
    cropped = [name for name, kinds in zip(second.names, second.prompts, strict=True) if "crop" in kinds]
    named = ", ".join(short_name(name) for name in cropped[:4]) + (
        f" and {len(cropped) - 4} more" if cropped[4:] else ""
    )
    crops = f"crops of {named}" if cropped else "no crops"
    titles = ("Inference I", f"Inference II, {crops}; {changed:.1%} of the pixels changed")
    pictures = [result.plot() for result in (first, second)]
    for picture in pictures:
        picture.thumbnail((_OVERLAY, _OVERLAY), Image.Resampling.LANCZOS)
    wide = 6.0 * min(1.0, pictures[0].width / pictures[0].height)
    high = max(wide * picture.height / picture.width for picture in pictures)
    figure = empty_figure(2 * max(wide, 3.5) + 0.2, high + 0.5)
    for number, (title, picture) in enumerate(zip(titles, pictures, strict=True), start=1):
        axes = _cell(figure.add_subplot(1, 2, number), title)
        axes.imshow(picture)
        axes.set_anchor("N")
    return figure


def _kind_label(gap: Gap, kind: str) -> str:
    if kind not in KINDS:
        return f"image ({len(gap.regions)} regions)"
    return f"{kind}, distance {gap.distances(kind).own.mean():.2f}"


def _draw_column(
    figure: Figure, places: Sequence[SubplotSpec], kind: str, maps: NDArray[np.float32], size: tuple[int, int]
) -> None:
    """Draws one map of each class at `size` (width, height), and the scale in the last of the places."""
    low, top = column_scale(kind, maps)
    drawn = None
    for number, (place, values) in enumerate(zip(places, maps, strict=False)):
        axes = _cell(figure.add_subplot(place), _HEADINGS[kind] if number == 0 else None)
        if np.isnan(values).all():
            axes.set_facecolor(_EMPTY)
            axes.set_box_aspect(size[1] / size[0])
            missing = "no words" if kind == TEXT else "no pictures"
            axes.text(0.5, 0.5, missing, ha="center", va="center", fontsize=8, transform=axes.transAxes)
            continue
        resized = np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))
        drawn = axes.imshow(resized, cmap="viridis", vmin=low, vmax=top)
    if drawn is not None:
        bar = figure.colorbar(drawn, cax=figure.add_subplot(places[-1]), orientation="horizontal")
        bar.set_ticks([low, top], labels=[f"{low:.2f}", f"{top:.2f}"])
        bar.ax.tick_params(length=0, labelsize=8, labelcolor=INK)
        lowest, highest = bar.ax.get_xticklabels()
        lowest.set_horizontalalignment("left")
        highest.set_horizontalalignment("right")
        bar.outline.set_visible(False)


def _cell(axes: Axes, heading: str | None) -> Axes:
    """Takes away what a picture does not need, and writes the heading of its column."""
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)
    if heading is not None:
        axes.set_title(heading, fontsize=8, color=INK)
    return axes


def _outline(axes: Axes, mask: NDArray[np.bool_], size: Sequence[int]) -> None:
    """Draws the outline of a class over a photo of `size` (width, height); nothing where it was not found."""
    small = np.asarray(Image.fromarray(mask).resize((size[0], size[1]), Image.Resampling.NEAREST))
    if small.any() and not small.all():
        axes.contour(small, levels=[0.5], colors=["white"], linewidths=2.2)
        axes.contour(small, levels=[0.5], colors=[INK], linewidths=0.9)


def empty_figure(width: float, height: float) -> Figure:
    """Returns an empty figure of so many inches."""
    check_drawing()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")


def short_name(name: str, letters: int = _LONGEST) -> str:
    """Returns a name cut to so many letters, so that matplotlib does not read formulas in it."""
    short = name if len(name) <= letters else name[: letters - 3].rstrip() + "..."
    return short.replace("$", r"\$")
