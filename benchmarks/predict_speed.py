"""Times `dpseg predict` as a user meets it: a 640 x 480 photo, 20 names, dpseg-lite, fresh process, empty cache.

    python benchmarks/predict_speed.py     # make bench runs it too

prints a Markdown table of medians over 5 runs, and fails where a bound of the project is broken: 6 s from start to
finish, 1 s in the model (encoding, Inference I, crops, Inference II), 1.5 GB at the peak, 0.2 s for `import dpseg`.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent
RUNS = 5
NAMES = (
    "person", "bicycle", "car", "cat", "dog", "chair", "couch, sofa", "dining table", "cup, mug", "spoon",
    "plate", "book", "clock", "wall", "floor", "window", "tree", "grass", "sky", "road",
)  # fmt: skip
BOUNDS = {"start to finish, s": 6.0, "in the model, s": 1.0, "peak memory, GB": 1.5, "import dpseg, s": 0.2}

MODEL_TIME = """
import sys, time
from dpseg import Segmenter
segmenter = Segmenter.from_pretrained("dpseg-lite")
prompts = segmenter.prompts(sys.argv[2:])
segmenter(sys.argv[1], prompts=prompts)
start = time.perf_counter()
encoded = segmenter.encode([sys.argv[1]])
segmenter.decode(encoded, prompts)
print(time.perf_counter() - start)
"""


def timed(command: list[str], cache: Path | None = None) -> tuple[float, float, str]:
    """Runs a command and returns its seconds, its peak memory in GB, and what it printed; None: the user's cache."""
    environment = os.environ if cache is None else {**os.environ, "DPSEG_CACHE": str(cache)}
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:3])} ... failed with status {process.returncode}")
    scale = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return seconds, usage.ru_maxrss * scale / 1e9, output


def main() -> int:
    """Measures, prints the table, and returns the exit status."""
    figures: dict[str, list[float]] = {name: [] for name in BOUNDS}
    words = [word for name in NAMES for word in ("--text", name)]
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "photo.jpg"
        Image.open(ROOT / "examples" / "coffee.jpg").resize((640, 480)).save(photo)
        for run in range(RUNS + 1):  # the first warms the disk's cache and does not count
            cache = Path(folder) / f"cache{run}"
            command = [str(Path(sys.executable).parent / "dpseg"), "predict", str(photo), *words]
            total, memory, _ = timed([*command, "--out", str(Path(folder) / "out")], cache)
            _, _, model = timed([sys.executable, "-c", MODEL_TIME, str(photo), *NAMES], cache)
            imported, _, _ = timed([sys.executable, "-c", "import dpseg"], cache)
            bare, _, _ = timed([sys.executable, "-c", "pass"], cache)
            values = (total, float(model), memory, imported - bare)
            for name, value in zip(BOUNDS, values, strict=True):
                figures[name] += [value] if run else []
    print("| | median | min to max | bound |\n|---|---|---|---|")
    for name, bound in BOUNDS.items():
        row = figures[name]
        print(f"| {name} | {statistics.median(row):.2f} | {min(row):.2f} to {max(row):.2f} | {bound} |")
    print(f"\n{os.cpu_count()} cores, {RUNS} runs")
    return int(any(statistics.median(figures[name]) > bound for name, bound in BOUNDS.items()))


if __name__ == "__main__":
    sys.exit(main())
