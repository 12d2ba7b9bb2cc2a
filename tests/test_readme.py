"""The README does what it says: its snippet runs, its commands and their options exist. So do those of docs/."""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import typer

from dpseg.cli import app, run
from dpseg.config import ModelConfig
from dpseg.pretrained import model_folder
from dpseg.recipe import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = (
    "predict",
    "batch",
    "export",
    "average",
    "evaluate",
    "train",
    "info",
    "data check",
    "data prepare",
    "convert sed",
    "explain gap",
    "explain cost",
    "prompts generate",
    "prompts show",
    "prompts explain",
    "prompts bank add",
    "prompts bank list",
    "prompts bank search",
    "prompts bank remove",
    "ablate",
    "serve",
)


def blocks(text: str, language: str) -> list[str]:
    """Returns the contents of the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def shell_lines(text: str) -> list[list[str]]:
    """Returns the words of every line of the shell blocks, comments left out."""
    lines = [line for block in blocks(text, "sh") for line in block.replace("\\\n", " ").splitlines()]
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def command_of(words: list[str]) -> str:
    """Returns the command of a line that begins with "dpseg": one word, or two such as "data check"."""
    plain = [word for word in words[1:] if not word.startswith("-")]
    return next((command for command in COMMANDS if plain[: len(command.split())] == command.split()), "")


def help_options(capsys: pytest.CaptureFixture[str], *command: str) -> set[str]:
    """Returns the long options that `dpseg COMMAND --help` prints."""
    assert run([*" ".join(command).split(), "--help"]) == 0
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", capsys.readouterr().out))


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_the_first_screen_has_two_make_commands_that_exist() -> None:
    screen = README.split("\n## ")[0]
    assert [line.split() for block in blocks(screen, "sh") for line in block.splitlines()] == [
        ["make", "demo"],
        ["make", "test"],
    ]


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        named = {words[1] for words in shell_lines(text) if words[0] == "make"} | set(
            re.findall(r"`make ([a-z-]+)", text)
        )
        assert named <= targets, page.name


def test_the_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if not (model_folder("dpseg-lite") / "model.safetensors").is_file():
        pytest.skip("the weights of dpseg-lite are not in src/dpseg/weights; dpseg train makes them")
    (snippet,) = blocks(README, "python")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)  # the snippet's paths are those of the repo, and what it writes stays here
    monkeypatch.setenv("DPSEG_CACHE", str(tmp_path / "cache"))
    exec(compile(snippet, "README.md", "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out
    assert "(400, 600) (3, 400, 600)" in printed
    assert "pixels of cup" in printed
    for photo, size in (("examples/chelsea.jpg", "451 x 300"), ("examples/coffee.jpg", "600 x 400")):
        assert f"{photo} Segmentation({size}" in printed
    written = {path.name for path in (tmp_path / "out" / "readme").iterdir()}
    assert written == {
        "classes.safetensors",
        "coffee_labels.png",
        "coffee_result.json",
        "coffee_overlay.png",
        "coffee_coco.json",
    }


def test_every_option_that_is_named_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    known = {command: help_options(capsys, command) for command in COMMANDS}
    general = help_options(capsys)
    recipe = {field.name for field in fields(TrainConfig)} | {f"model.{field.name}" for field in fields(ModelConfig)}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        inline = [line.split() for line in re.findall(r"`(dpseg [^`\n]+)`", text)]
        for words in [words for words in [*shell_lines(text), *inline] if words[0] == "dpseg"]:
            command = command_of(words)
            for option in [word for word in words[1:] if word.startswith("--")]:
                if command in ("train", "ablate") and option not in known[command]:
                    assert option[2:].replace("-", "_") in recipe, f"{page.name}: {shlex.join(words)}"
                else:
                    allowed = general if command not in COMMANDS else known[command] | general
                    assert option in allowed, f"{page.name}: {shlex.join(words)}"
        for option in re.findall(r"`(--[a-z][a-z0-9-]*)", text):
            assert any(option in options for options in known.values()), f"{page.name}: {option}"


def test_every_dpseg_command_line_can_be_read() -> None:
    program = typer.main.get_command(app)
    seen = set()
    for page in PAGES:
        for words in shell_lines(page.read_text(encoding="utf-8")):
            path = command_of(words).split() if words[0] == "dpseg" else []
            if path:
                command = program
                for word in path:
                    command = command.commands[word]  # type: ignore[attr-defined]
                command.make_context(path[-1], words[1 + len(path) :])
                seen.add(" ".join(path))
    assert seen == set(COMMANDS)
