"""Commands as a user meets them: what a mistake looks like, and what other processes need to run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import dpseg
from dpseg.cli import run

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
LITE = Path(dpseg.__file__).parent / "weights" / "dpseg-lite"

needs_photo_data = pytest.mark.skipif(not DATA.is_dir(), reason="the data of real photos, ../shared/data, is not here")
needs_lite = pytest.mark.skipif(
    not (LITE / "model.safetensors").is_file(),
    reason="the weights of dpseg-lite are not in src/dpseg/weights; dpseg train makes them",
)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 2) -> str:
    """Runs a command that fails, and returns the one line that it prints, and nothing else, on stderr."""
    capsys.readouterr()
    assert run(arguments) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("dpseg: ")
    return captured.err


def python(code: str, *arguments: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a Python of its own that finds the package, and returns what it printed."""
    paths = os.pathsep.join(path for path in sys.path if path)
    variables = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=check)
