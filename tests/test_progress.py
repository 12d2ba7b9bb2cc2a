"""Progress on a terminal and elsewhere."""

from __future__ import annotations

import io

from rich.console import Console

from dpseg.commands.progress import progress


def shown(terminal: bool, total: int, lines: bool = True) -> str:
    file = io.StringIO()
    with progress(Console(file=file, force_terminal=terminal, width=100), total, "photos", lines) as step:
        for _ in range(total):
            step()
    return file.getvalue()


def test_a_terminal_shows_a_bar_with_a_rate_and_only_while_it_runs() -> None:
    text = shown(terminal=True, total=5)
    assert "5/5" in text
    assert "/s" in text
    assert " left" not in text
    assert "photos" not in shown(terminal=True, total=1)


def test_elsewhere_there_is_a_line_every_tenth_or_nothing() -> None:
    lines = shown(terminal=False, total=40).splitlines()
    assert [line.split()[0] for line in lines] == [f"{done}/40" for done in range(4, 41, 4)]
    assert lines[-1].endswith("/s, 0 s left")
    assert len(shown(terminal=False, total=3).splitlines()) == 3
    assert shown(terminal=False, total=40, lines=False) == ""
