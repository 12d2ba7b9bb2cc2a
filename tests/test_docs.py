"""What README.md, docs/ and benchmarks/ say is so: files, symbols, commands and options exist; layers are as drawn."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import pytest
import typer

import dpseg
from dpseg.cli import app, run
from dpseg.config import ModelConfig
from dpseg.recipe import TrainConfig
from support.commands import ROOT
from support.pages import blocks, shell_lines

PACKAGE, BENCHMARKS = ROOT / "src" / "dpseg", ROOT / "benchmarks"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py"))
_REFERENCE = re.compile(r"`([\w./-]+\.(?:py|yaml|toml))(?::([\w.]+))?`")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def modules() -> list[str]:
    """Returns the package's files, `__init__.py` apart, relative to it."""
    paths = (path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
    return sorted(path.as_posix() for path in paths if path.name != "__init__.py")


def symbols(path: Path) -> set[str]:
    """Returns the names that a file defines: at its top, and as CLASS.MEMBER within its classes."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        found |= _names(node)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{name}" for member in node.body for name in _names(member)}
    return found


def _names(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}


def imports(path: Path, package: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yields what a file imports from a package's modules: the module and the names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(package):
            yield str(node.module), [alias.name for alias in node.names]


@every_page
def test_every_file_symbol_and_link_that_is_named_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name, symbol in _REFERENCE.findall(text):
        places = [place for place in (PACKAGE / name, ROOT / name) if place.is_file()]
        if symbol or "/" in name:
            assert places, f"{page.name} names {name}, which does not exist"
        if symbol:
            assert symbol in symbols(places[0]), f"{page.name} names {name}:{symbol}, which does not exist"
    for test in re.findall(r"\btests/[\w/]+\.py", text):
        assert (ROOT / test).is_file(), f"{page.name} names {test}, which does not exist"
    for link in re.findall(r"\]\(([^)#:\s]+)\)", text):
        assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_every_module_has_its_line() -> None:
    table = re.findall(r"^\| `([\w/]+\.py)` \|", ARCHITECTURE, flags=re.MULTILINE)
    assert sorted(table) == modules()


def test_the_layers_are_as_drawn_and_as_the_contract_has_them() -> None:
    (drawn,) = blocks(ARCHITECTURE, "layers")
    level = {name: depth for depth, line in enumerate(drawn.splitlines()) for name in line.split()}
    assert set(level) == {name.split("/")[0].removesuffix(".py") for name in modules()}
    for name in modules():
        upper = name.split("/")[0].removesuffix(".py")
        for module, _ in imports(PACKAGE / name, "dpseg."):
            assert level[module.split(".")[1]] >= level[upper], f"{name} imports {module} upwards"
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    layers = [[name for name in re.findall(r"\w+", layer) if name in level] for layer in contract[0]["layers"]]
    for above, below in combinations(layers, 2):
        for upper, lower in ((upper, lower) for upper in above for lower in below):
            assert level[upper] <= level[lower], f"{upper} is drawn below {lower}"


def test_every_field_of_a_recipe_is_explained() -> None:
    text = (ROOT / "docs" / "train.md").read_text(encoding="utf-8")
    first_cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", "\n".join(first_cells))) == {field.name for field in fields(TrainConfig)}


def all_commands() -> dict[str, typer.core.TyperCommand]:
    """Returns the commands by name, such as "data check"."""
    found, groups = {}, [("", typer.main.get_command(app))]
    while groups:
        above, group = groups.pop()
        for name, command in group.commands.items():  # type: ignore[attr-defined]
            full = f"{above} {name}".strip()
            if hasattr(command, "commands"):
                groups.append((full, command))
            else:
                found[full] = command
    return found


COMMANDS = all_commands()


def command_of(words: list[str]) -> str:
    """Returns the command of a line that begins with "dpseg", or "" where it names none."""
    plain = [word for word in words[1:] if not word.startswith("-")]
    return next((command for command in COMMANDS if plain[: len(command.split())] == command.split()), "")


def help_options(capsys: pytest.CaptureFixture[str], command: str = "") -> set[str]:
    """Returns the long options that `dpseg COMMAND --help` prints."""
    assert run([*command.split(), "--help"]) == 0
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", capsys.readouterr().out))


def test_the_first_screen_has_two_make_commands_that_exist() -> None:
    screen = README.split("\n## ")[0]
    assert shell_lines(screen) == [["make", "demo"], ["make", "test"]]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        named = {words[1] for words in shell_lines(text) if words[0] == "make"}
        assert named | set(re.findall(r"`make ([a-z-]+)", text)) <= targets, page.name


def test_every_option_that_is_named_is_in_the_help(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
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
                    assert option in known.get(command, set()) | general, f"{page.name}: {shlex.join(words)}"
        for option in re.findall(r"`(--[a-z][a-z0-9-]*)", text):
            assert any(option in options for options in known.values()), f"{page.name}: {option}"


def test_every_dpseg_command_line_can_be_read_and_every_command_is_shown() -> None:
    listed = (ROOT / "docs" / "prompts.md").read_text(encoding="utf-8")
    seen = {f"prompts bank {word}" for word in ("merge", "compact", "verify", "export") if f"\n- **`{word}" in listed}
    for page in PAGES:
        for words in shell_lines(page.read_text(encoding="utf-8")):
            name = command_of(words) if words[0] == "dpseg" else ""
            if name:
                path = name.split()
                COMMANDS[name].make_context(path[-1], words[1 + len(path) :])
                seen.add(name)
    assert seen == set(COMMANDS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_says_how_to_start_it_and_what_it_imports_is_there(name: str) -> None:
    script = BENCHMARKS / f"{name}.py"
    documentation = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8")))
    assert documentation
    if "__main__" in script.read_text(encoding="utf-8"):
        assert f"python benchmarks/{name}.py" in documentation
    for module, names in imports(script):
        home, package = module.split(".")[0], PACKAGE.parent / module.replace(".", "/")
        if module == "dpseg":
            assert set(names) <= set(dpseg.__all__)
        elif home == "dpseg" and package.is_dir():
            assert all((package / f"{one}.py").is_file() for one in names), module
        elif home == "dpseg" or module in SCRIPTS:
            place = package if home == "dpseg" else BENCHMARKS / module
            assert set(names) <= symbols(place.with_suffix(".py")), module
        else:
            assert find_spec(home), f"{name} imports {module}, which is not there"


@pytest.mark.slow
def test_every_benchmark_can_be_imported() -> None:
    code = "; ".join(f"import {name}" for name in SCRIPTS)
    done = subprocess.run([sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
