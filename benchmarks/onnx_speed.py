"""Compares torch with onnxruntime: dpseg-lite, a 640 x 480 photo, 20 names, Inference I, all classes decoded.

    python benchmarks/onnx_speed.py               # 9 runs; on an idle machine
    python benchmarks/onnx_speed.py --runs 3

prints a Markdown table of medians: seconds for a photo in a process that runs already, from reading it to its labels;
and seconds and peak memory of a fresh process that segments it, with prompts from a file. int8 is an export whose
encoder computes in 8-bit integers (`dpseg export --int8`). It fails where fewer than 99.5 % of the labels of single
precision agree.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image
from processes import NAMES, run_process

from dpseg.onnx_runner import OnnxRunner, Prompts
from dpseg.result import Segmentation

ROOT = Path(__file__).parent.parent
AGREE = 0.995
DPSEG = (sys.executable, "-m", "dpseg")


def segmenters(photo: Path, prompts: Path, models: dict[str, Path]) -> dict[str, Callable[[], Segmentation]]:
    """Returns what segments the photo, by the name of its row."""
    import torch

    from dpseg import PromptSet, Segmenter

    threads = torch.get_num_threads()
    segmenter, embeddings = Segmenter.from_pretrained("dpseg-lite", "cpu"), PromptSet.load(prompts)
    arrays = Prompts.load(prompts)
    rows: dict[str, Callable[[], Segmentation]] = {"torch": lambda: segmenter(photo, prompts=embeddings, refine=False)}
    for name, model in models.items():
        runner = OnnxRunner(model, threads)
        rows[name] = lambda runner=runner: runner(photo, arrays)  # type: ignore[misc]
    return rows


def main() -> int:
    """Measures, prints the table, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    asked = parser.parse_args()
    words = [word for name in NAMES for word in ("--text", name)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        photo, prompts = folder / "photo.jpg", folder / "set.safetensors"
        models = {"onnxruntime": folder / "lite.onnx", "onnxruntime, int8": folder / "lite8.onnx"}
        Image.open(ROOT / "examples" / "coffee.jpg").resize((640, 480)).save(photo)
        keep = ["--save-prompts", str(prompts), "--out", str(folder / "first")]
        whole, small = (["export", "--out", str(model)] for model in models.values())
        small += ["--int8", str(ROOT / "examples")]
        for command in (["predict", str(photo), *words, *keep], whole, small):
            subprocess.run([*DPSEG, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        out = ["--out", str(folder / "out"), "--format", "png,json"]
        with_prompts = ["--prompts", str(prompts), *out]
        commands = {
            "torch": [*DPSEG, "predict", str(photo), *with_prompts, "--no-refine"],
        }
        for name, model in models.items():
            commands[name] = [sys.executable, "-m", "dpseg.onnx_runner", str(model), str(photo), *with_prompts]
        fresh: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(asked.runs):  # in turn, so that a change of the machine's load meets both
            for name, command in commands.items():
                fresh[name].append(run_process(command, folder / "cache"))
        rows = segmenters(photo, prompts, models)  # torch comes into this process: a child's peak would count it
        labels = {name: segment().labels for name, segment in rows.items()}  # the first runs do not count
        warm: dict[str, list[float]] = {name: [] for name in rows}
        for _ in range(asked.runs):
            for name, segment in rows.items():
                start = time.perf_counter()
                segment()
                warm[name].append(time.perf_counter() - start)
    print("| | s a photo | min to max | fresh process, s | min to max | its peak memory, GB |")
    print("|---|---|---|---|---|---|")
    for name, values in fresh.items():
        whole, memory = zip(*values, strict=True)
        cells = [cell for row in (warm[name], whole) for cell in (f"{statistics.median(row):.3f}", spread(row))]
        print(f"| {name} | {' | '.join(cells)} | {statistics.median(memory):.2f} |")
    agree, small_agree = (float((labels["torch"] == labels[name]).mean()) for name in models)
    print(f"\n{os.cpu_count()} cores, {asked.runs} runs; {agree:.2%} of the labels agree, of int8 {small_agree:.2%}")
    return int(agree < AGREE)


def spread(row: Sequence[float]) -> str:
    """Returns the smallest and the largest."""
    return f"{min(row):.3f} to {max(row):.3f}"


if __name__ == "__main__":
    sys.exit(main())
