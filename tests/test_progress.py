"""Progress on a terminal and elsewhere."""

from __future__ import annotations

import io

from rich.console import Console

from dpseg.commands.progress import progress


def shown(terminal: bool, total: int, lines: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    with progress(console, total, "photos", lines) as step:
        for _ in range(total):
            step()
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_terminal_shows_a_bar_with_a_rate() -> None:
    text = shown(terminal=True, total=5, lines=True)
    assert "5/5" in text
    assert "/s" in text
    assert " left" not in text


def test_elsewhere_there_is_a_line_every_tenth() -> None:
    lines = shown(terminal=False, total=40, lines=True).splitlines()
    assert [line.split()[0] for line in lines] == [f"{done}/40" for done in range(4, 41, 4)]
    assert lines[-1].endswith("/s, 0 s left")
    assert len(shown(terminal=False, total=3, lines=True).splitlines()) == 3


def test_elsewhere_without_lines_there_is_nothing() -> None:
    assert shown(terminal=False, total=40, lines=False) == ""
    assert "photos" not in shown(terminal=True, total=1, lines=True)
