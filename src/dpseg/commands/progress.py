"""A bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class RateColumn(ProgressColumn):
    """How many are done a second."""

    def render(self, task: Task) -> Text:
        """Returns the rate, or nothing as long as it is unknown."""
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="progress.data.speed")


@contextmanager
def progress(console: Console, total: int, unit: str, lines: bool = False) -> Iterator[Callable[[], None]]:
    """Shows a bar while the block runs; what is printed to the console meanwhile appears above it.

    Args:
        console: where.
        total: so many steps; with a single one there is no bar.
        unit: what a step is, in the plural.
        lines: where there is no terminal, print a line after every tenth of the steps.

    Yields:
        A function to call after each step.
    """
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(unit), RateColumn(), TimeRemainingColumn())
    start = time.perf_counter()
    done = 0
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal or total < 2) as bar:
        task = bar.add_task(unit, total=total)

        def step() -> None:
            nonlocal done
            done += 1
            bar.advance(task)
            if lines and not console.is_terminal and done * 10 // total > (done - 1) * 10 // total:
                rate = done / (time.perf_counter() - start)
                left = (total - done) / rate
                console.print(f"{done}/{total} {unit}, {rate:.1f}/s, {left:.0f} s left", markup=False, soft_wrap=True)

        yield step
