"""What docs/ says of the code is so: files and symbols exist, no module is missing, the layers are as drawn."""

from __future__ import annotations

import ast
import re
import tomllib
from dataclasses import fields
from itertools import combinations
from pathlib import Path

import pytest

from dpseg.recipe import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "dpseg"
PAGES = sorted((ROOT / "docs").glob("*.md"))
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
_REFERENCE = re.compile(r"`([\w./-]+\.(?:py|yaml|toml))(?::([\w.]+))?`")


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
    return {target.id for target in targets if isinstance(target, ast.Name)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_and_symbol_that_is_named_exists(page: Path) -> None:
    for name, symbol in _REFERENCE.findall(page.read_text(encoding="utf-8")):
        places = [place for place in (PACKAGE / name, ROOT / name) if place.is_file()]
        if symbol or "/" in name:
            assert places, f"{page.name} names {name}, which does not exist"
        if symbol:
            assert symbol in symbols(places[0]), f"{page.name} names {name}:{symbol}, which does not exist"


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:\s]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_every_module_has_its_line() -> None:
    table = re.findall(r"^\| `([\w/]+\.py)` \|", ARCHITECTURE, flags=re.MULTILINE)
    assert sorted(table) == modules()


def test_the_layers_are_as_drawn() -> None:
    (drawn,) = re.findall(r"^```layers\n(.*?)^```$", ARCHITECTURE, flags=re.DOTALL | re.MULTILINE)
    level = {name: depth for depth, line in enumerate(drawn.splitlines()) for name in line.split()}
    assert set(level) == {name.split("/")[0].removesuffix(".py") for name in modules()}
    for name in modules():
        upper = name.split("/")[0].removesuffix(".py")
        for node in ast.walk(ast.parse((PACKAGE / name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dpseg."):
                lower = str(node.module).split(".")[1]
                assert level[lower] >= level[upper], f"{name} imports {node.module} upwards"


def test_the_drawing_agrees_with_the_contract() -> None:
    (drawn,) = re.findall(r"^```layers\n(.*?)^```$", ARCHITECTURE, flags=re.DOTALL | re.MULTILINE)
    level = {name: depth for depth, line in enumerate(drawn.splitlines()) for name in line.split()}
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    layers = [re.findall(r"\w+", layer) for layer in contract[0]["layers"]]
    for above, below in combinations(layers, 2):
        for upper in above:
            for lower in below:
                if upper in level and lower in level:
                    assert level[upper] <= level[lower], f"{upper} is drawn below {lower}"


def test_every_field_of_a_recipe_is_explained() -> None:
    text = (ROOT / "docs" / "train.md").read_text(encoding="utf-8")
    table = "\n".join(line for line in text.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in table.splitlines()))) == {
        field.name for field in fields(TrainConfig)
    }
