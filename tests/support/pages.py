"""What stands in the fenced blocks of a page of Markdown."""

from __future__ import annotations

import re
import shlex


def blocks(text: str, language: str) -> list[str]:
    """Returns the contents of the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def shell_blocks(text: str) -> list[list[list[str]]]:
    """Returns the shell blocks as commands, split into words; continued lines are joined, comments left out."""
    lines = [block.replace("\\\n", " ").splitlines() for block in blocks(text, "sh")]
    commands = [[shlex.split(line, comments=True) for line in block] for block in lines]
    return [[words for words in block if words] for block in commands]


def shell_lines(text: str) -> list[list[str]]:
    """Returns the commands of all shell blocks."""
    return [words for block in shell_blocks(text) for words in block]
