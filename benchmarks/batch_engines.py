"""Compares the engines of `dpseg batch` on one machine: dpseg-lite, 20 names, fresh processes, photos of 640 x 480.

    python benchmarks/batch_engines.py                     # 96 photos; on an idle machine
    python benchmarks/batch_engines.py --count 20 --workers 2 --runs 1

prints a Markdown table of medians. "All" is from the start of the program to its end, "running" from the first
finished block to the last one. It fails where an engine's rows differ from those of the first.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image
from processes import NAMES

ROOT = Path(__file__).parent.parent
BLOCK = 4  # small, so that workers end together
DPSEG = (sys.executable, "-m", "dpseg")


def write_photos(folder: Path, count: int) -> None:
    """Writes photos that differ: parts of those in examples/, at 640 x 480."""
    folder.mkdir()
    sources = [Image.open(path).convert("RGB") for path in sorted((ROOT / "examples").glob("*.jpg"))]
    for number in range(count):
        source = sources[number % len(sources)]
        shift = number * 0.2 / count
        box = (shift * source.width, shift * source.height, (0.8 + shift) * source.width, (0.8 + shift) * source.height)
        source.resize((640, 480), Image.Resampling.BICUBIC, box).save(folder / f"{number:05d}.jpg", quality=92)


def timed(folder: Path, out: Path, options: list[str], count: int) -> tuple[float, float, list[Any]]:
    """Runs one engine; returns photos a second in all and while it was running, and the rows."""
    prompts = str(folder / "names.safetensors")
    command = [*DPSEG, "batch", str(folder / "photos"), "--prompts", prompts, "--out", str(out), *options]
    start = time.perf_counter()
    done = subprocess.run([*command, "--block", str(BLOCK)], cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(done.stderr)
    parts = sorted((out / "parts").glob("*.parquet"))
    ends = [part.stat().st_mtime for part in parts]
    rows = [row for part in parts for row in pq.read_table(part).to_pylist()]
    return count / seconds, (count - BLOCK) / (max(ends) - min(ends)), rows


def main() -> int:
    """Measures, prints the table, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=96, help="photos, 3 blocks of 4 or more")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="of Ray, in its last row")
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    if asked.count < 3 * BLOCK:
        parser.error(f"--count {asked.count} is too few; give {3 * BLOCK} or more")
    ray = ["--engine", "ray", "--workers"]
    cases = {
        "one process": [],
        "Ray, 1 worker": [*ray, "1"],
        f"Ray, {asked.workers} workers": [*ray, str(asked.workers)],
    }
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_photos(folder / "photos", asked.count)
        words = [word for name in NAMES for word in ("--text", name)]
        keep = ["--save-prompts", str(folder / "names.safetensors"), "--out", str(folder / "first")]
        first = [*DPSEG, "predict", str(folder / "photos" / "00000.jpg"), *words, *keep]
        subprocess.run(first, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        expected: list[Any] = []
        for run in range(asked.runs):  # the engines take turns, so that a change of the machine's load meets all
            for name, options in cases.items():
                whole, running, rows = timed(folder, folder / f"{name}{run}", options, asked.count)
                rates[name].append((whole, running))
                expected = expected or rows
                if found(rows) != found(expected):
                    print(f"{name} found other classes than one process")
                    return 1
    print("| engine | photos/s, all | running | running, min to max |\n|---|---|---|---|")
    for name, figures in rates.items():
        whole, running = ([figure[column] for figure in figures] for column in (0, 1))
        spread = f"{min(running):.2f} to {max(running):.2f}"
        print(f"| {name} | {statistics.median(whole):.2f} | {statistics.median(running):.2f} | {spread} |")
    print(f"\n{os.cpu_count()} cores, {asked.count} photos, {asked.runs} runs")
    return 0


def found(rows: list[Any]) -> list[Any]:
    """Returns the classes of each photo; areas may differ in single pixels where threads add up in another order."""
    return [(row["key"], [one["name"] for one in row["classes"] if one["area"] > 0.01]) for row in rows]


if __name__ == "__main__":
    sys.exit(main())
