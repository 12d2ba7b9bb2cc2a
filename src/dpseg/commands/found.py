"""What was found in a photo, as lines on the screen."""

from __future__ import annotations

from collections.abc import Mapping

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape

ROWS = 12
"""So many classes of a photo are listed, the largest first."""


def print_found(
    title: str, size: tuple[int, int], areas: Mapping[str, float], confidences: Mapping[str, float], console: Console
) -> None:
    """Prints a photo's name and size, and what was found: name, share of the photo, confidence.

    Args:
        title: the photo's name.
        size: width and height in pixels.
        areas: share of the photo, in (0, 1], of each class that was found, largest first.
        confidences: of those, in [0, 1].
        console: where.
    """
    console.print(f"[bold]{escape(title)}[/]  [dim]{size[0]} x {size[1]}[/]", soft_wrap=True)
    rows = [(name, area, confidences[name]) for name, area in areas.items()]
    shown = rows[:ROWS]
    column = max([cell_len(name) for name, _, _ in shown] + [len("none")])
    for name, area, confidence in shown:
        padding = " " * (column - cell_len(name))
        console.print(f"  {escape(name)}{padding}  {area:6.1%}  [dim]confidence[/] {confidence:.2f}", soft_wrap=True)
    if len(rows) > ROWS:
        console.print(f"  and {len(rows) - ROWS} more, together {sum(area for _, area, _ in rows[ROWS:]):.1%}")
    none = 1 - sum(areas.values())
    if none > 1e-4:
        console.print(f"  [dim]{'none':<{column}}  {none:6.1%}[/]")
