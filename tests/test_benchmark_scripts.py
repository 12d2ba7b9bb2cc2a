"""Every benchmark can be started: what it takes from the package is there, and it says how to use it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py"))


def test_they_can_be_imported() -> None:
    imports = "; ".join(f"import {name}" for name in SCRIPTS)
    done = subprocess.run([sys.executable, "-c", imports], cwd=BENCHMARKS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_their_docstring_says_how_to_start_them(name: str) -> None:
    documentation = ast.get_docstring(ast.parse((BENCHMARKS / f"{name}.py").read_text(encoding="utf-8")))
    assert documentation
    if "__main__" in (BENCHMARKS / f"{name}.py").read_text(encoding="utf-8"):
        assert f"python benchmarks/{name}.py" in documentation
