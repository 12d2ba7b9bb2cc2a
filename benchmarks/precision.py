"""What bfloat16 and 8-bit integers change in labels, accuracy and time, on labelled photos; on an idle machine.

    python benchmarks/precision.py DATA_ROOT [--set coco_things] [--limit 60] [--json FILE]

segments DATA_ROOT/SET, val, with words, Inference I, all classes decoded: in torch with single precision and bfloat16,
and with onnxruntime with single precision and with an encoder in 8-bit integers (`dpseg export --int8`, whose ranges
are measured on photos of train). "same" is the share of pixels with the label of the first row of the same engine,
"time" the median over the photos against it, all in one process. It fails where a mIoU falls by more than half a point.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from dpseg.config import EvalConfig
from dpseg.data.benchmarks import open_dataset
from dpseg.evaluation.evaluate import encode_prompts
from dpseg.evaluation.metrics import ConfusionMatrix
from dpseg.evaluation.plan import make_plan
from dpseg.files import write_atomically
from dpseg.onnx_runner import OnnxRunner, Prompts
from dpseg.prompts.prompt_set import PromptSet
from dpseg.rejection import Rejection
from dpseg.segmenter import Segmenter

CALIBRATION = 32
"""Photos of train on which ranges are measured."""

MOST_LOST = 0.5
"""Of mIoU, in points."""

ROWS = {"torch, 32": None, "torch, bf16": "torch, 32", "onnxruntime, 32": None, "onnxruntime, int8": "onnxruntime, 32"}
"""Name -> the row that it is compared with."""

Labels = npt.NDArray[np.int32]


@dataclass
class Measured:
    """What is counted of one row.

    Attributes:
        matrix: all photos.
        same: of each photo, the share of pixels with the label of the row that this one is compared with.
        seconds: of each photo, from the picture in memory to its labels.
    """

    matrix: ConfusionMatrix
    same: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def runners(model: str, photos: list[str], prompts: Path, folder: Path) -> dict[str, Callable[[Image.Image], Labels]]:
    """Returns what labels a photo, by the name of its row."""
    threads, exact = torch.get_num_threads(), Rejection()
    first = Segmenter.from_pretrained(model, "cpu", rejection=exact)
    half = Segmenter.from_pretrained(model, "cpu", rejection=exact, precision="bf16")
    embeddings, arrays = PromptSet.load(prompts), Prompts.load(prompts)
    files = {"32": folder / "32.onnx", "int8": folder / "int8.onnx"}
    for name, file in files.items():
        calibrated = [word for photo in photos for word in ("--int8", photo)] if name == "int8" else []
        command = [sys.executable, "-m", "dpseg", "export", "--model", model, "--out", str(file), *calibrated]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    whole, small = (OnnxRunner(files[name], threads) for name in ("32", "int8"))
    return {
        "torch, 32": lambda photo: first(photo, prompts=embeddings, refine=False).labels,
        "torch, bf16": lambda photo: half(photo, prompts=embeddings, refine=False).labels,
        "onnxruntime, 32": lambda photo: whole(photo, arrays).labels,
        "onnxruntime, int8": lambda photo: small(photo, arrays).labels,
    }


def measure(asked: argparse.Namespace, folder: Path) -> tuple[dict[str, Measured], int, int]:
    """Counts the photos with every row; returns the rows, and how many photos and classes there are."""
    place = asked.root / asked.set
    plan = make_plan(
        open_dataset(place, None, "val"), EvalConfig(prompts=("text",), refine=(False,), limit=asked.limit)
    )
    encoded = encode_prompts(Segmenter.from_pretrained(asked.model, "cpu"), plan)["text"]
    encoded.prompts.save(folder / "prompts.safetensors")
    train = open_dataset(place, None, "train")
    spread = np.linspace(0, len(train) - 1, min(CALIBRATION, len(train))).astype(int)
    photos = []
    for number in spread.tolist():
        photos.append(str(folder / f"{number:05}.png"))
        train[number].image.save(photos[-1])
    label = runners(asked.model, photos, folder / "prompts.safetensors", folder)
    rows = {name: Measured(ConfusionMatrix(plan.shown, plan.dataset.ignore_index, plan.ignored)) for name in ROWS}
    for name in ROWS:  # the first run does not count
        label[name](plan.dataset[plan.photos[0]].image)
    for index in plan.photos:
        sample = plan.dataset[index]
        found: dict[str, Labels] = {}
        for name, row in rows.items():
            start = time.perf_counter()
            found[name] = label[name](sample.image)
            row.seconds.append(time.perf_counter() - start)
            row.same.append(float((found[name] == found[ROWS[name] or name]).mean()))
            row.matrix.update(sample.mask, encoded.lines[found[name]])
    return rows, len(plan.photos), len(plan.names)


def main() -> int:
    """Measures, prints the table, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--set", default="coco_things")
    parser.add_argument("--model", default="dpseg-lite")
    parser.add_argument("--limit", type=int, help="photos, evenly spread")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows, photos, classes = measure(asked, Path(folder))
    print(f"{asked.set}: {photos} photos, {classes} classes, {torch.get_num_threads()} threads\n")
    print("| | mIoU | pixels right, % | same, % | s a photo | time |\n|---|---|---|---|---|---|")
    results: dict[str, Any] = {}
    for name, row in rows.items():
        first = rows[ROWS[name] or name]
        ratio = statistics.median(mine / whole for mine, whole in zip(row.seconds, first.seconds, strict=True))
        results[name] = {
            "miou": 100 * row.matrix.mean_iou,
            "pixels_right": 100 * row.matrix.pixel_accuracy,
            "same": 100 * statistics.mean(row.same),
            "seconds": statistics.median(row.seconds),
            "time": ratio,
            "lost": 100 * (first.matrix.mean_iou - row.matrix.mean_iou),
        }
        figures = results[name]
        shown = " | ".join(f"{figures[key]:.2f}" for key in ("miou", "pixels_right", "same"))
        print(f"| {name} | {shown} | {figures['seconds']:.3f} | x {ratio:.2f} |")
    if asked.json is not None:
        write_atomically(asked.json, (json.dumps(results, indent=1) + "\n").encode())
    return int(any(row["lost"] > MOST_LOST for row in results.values()))


if __name__ == "__main__":
    sys.exit(main())
