"""What the tests of batches share: a tiny model, its prompts, and coloured photos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from dpseg.config import ModelConfig
from dpseg.model.dpseg import DPSeg
from dpseg.segmenter import Segmenter

CONFIG = ModelConfig(encoder="tiny", image_size=64, keep_aspect=True, templates=1, logit_scale=10.0, tune_encoder=False)
COLOURS = {"red": (220, 30, 20), "blue": (20, 40, 220)}


def write_model(folder: Path) -> tuple[str, str]:
    """Writes a model and prompts for two colours; returns their paths."""
    torch.manual_seed(0)
    DPSeg(CONFIG).save_pretrained(folder / "tiny")
    samples: dict[str, Any] = {name: [Image.new("RGB", (32, 32), colour)] for name, colour in COLOURS.items()}
    prompts = Segmenter.from_pretrained(folder / "tiny").prompts(None, samples)
    return str(folder / "tiny"), str(prompts.save(folder / "colours.safetensors"))


def write_photos(folder: Path, count: int, size: tuple[int, int] = (96, 64)) -> list[Path]:
    """Writes photos that are red on the left and blue on the right, each parted at another place."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        values = np.full((size[1], size[0], 3), COLOURS["red"], dtype=np.uint8)
        values[:, (number + 1) * size[0] // (count + 1) :] = COLOURS["blue"]
        paths.append(folder / f"{number:03d}.png")
        Image.fromarray(values).save(paths[-1])
    return paths


def rows_of(out: Path) -> list[dict[str, Any]]:
    """Returns the rows of all parts, in the order of the parts."""
    parts = sorted((out / "parts").glob("*.parquet"))
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


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
