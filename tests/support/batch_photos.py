"""What the tests of batches share; pytest_plugins = "support.batch_photos" brings `options`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpseg.prompts.prompt_set import PromptSet
from support.pictures import halves


@pytest.fixture(scope="module")
def options(model: str, colours: PromptSet, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The tiny model and its prompts, as `dpseg batch` takes them."""
    prompts = colours.save(tmp_path_factory.mktemp("prompts") / "colours.safetensors")
    return ["--model", model, "--prompts", str(prompts)]


def write_photos(folder: Path, count: int, size: tuple[int, int] = (96, 64)) -> list[Path]:
    """Writes photos that are red on the left and blue on the right, each parted at another place."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03d}.png" for number in range(count)]
    both = halves(2 * size[0], size[1])
    for number, path in enumerate(paths, start=1):
        left = size[0] - number * size[0] // (count + 1)
        both.crop((left, 0, left + size[0], size[1])).save(path)
    return paths


def rows_of(out: Path) -> list[dict[str, Any]]:
    """Returns the rows of all parts, in the order of the parts."""
    from pyarrow import parquet

    parts = sorted((out / "parts").glob("*.parquet"))
    return [row for part in parts for row in parquet.read_table(part).to_pylist()]


def broken_of(out: Path) -> dict[str, str]:
    """Returns the broken pictures and the reasons."""
    lines = (json.loads(line) for line in (out / "broken.jsonl").read_text("utf-8").splitlines())
    return {line["key"]: line["error"] for line in lines}


def run_until_killed(arguments: list[str], parts: int) -> None:
    """Runs `dpseg batch` in this process, which SIGKILL ends in the middle of writing the part after so many."""
    from dpseg.batch.store import Store
    from dpseg.cli import run
    from support.forked import kill_me

    write, written = Store.write, 0

    def write_or_die(self: Store, name: str, data: bytes) -> None:
        nonlocal written
        if name.startswith("parts/"):
            if written == parts:
                kill_me()
            written += 1
        write(self, name, data)

    Store.write = write_or_die  # type: ignore[method-assign]
    run(arguments)
