"""What early rejection costs in accuracy and saves in time, beside decoding every class, on labelled photos.

    python benchmarks/rejection.py DATA_ROOT [--sets coco_things] [--limit 60] [--json FILE]

segments DATA_ROOT/SET, val, Inference I, with each of the `BOUNDS` (--max-classes, --keep-top). The first row decodes
every class and is exact; "lost" is its mIoU less the row's. "decoded" is the mean number of classes that a photo kept,
"time" the median over the photos of decoding against the first row's, both in one process. A model's default may give
up classes only where that loses less than 0.1 mIoU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import torch

from dpseg.config import EvalConfig, PromptKind
from dpseg.data.benchmarks import open_dataset
from dpseg.evaluation.evaluate import encode_prompts
from dpseg.evaluation.metrics import ConfusionMatrix
from dpseg.evaluation.plan import Plan, make_plan
from dpseg.files import write_atomically
from dpseg.rejection import Rejection
from dpseg.segmenter import Segmenter

BOUNDS = (
    Rejection(),
    Rejection(64),
    Rejection(48),
    Rejection(32),
    Rejection(16),
    Rejection(48, 8),
    Rejection(48, 4),
    Rejection(48, 2),
    Rejection(48, 1),
)


@dataclass
class Measured:
    """What is counted of one bound on one set.

    Attributes:
        matrix: all photos.
        decoded: classes that each photo kept.
        seconds: of decoding each photo.
    """

    matrix: ConfusionMatrix
    decoded: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


@torch.inference_mode()
def measure(segmenter: Segmenter, plan: Plan, kind: PromptKind) -> list[Measured]:
    """Counts the photos of one set with each of the `BOUNDS`."""
    prompts = encode_prompts(segmenter, plan, [kind])[kind]
    embeddings = segmenter.usable(prompts.prompts).embeddings
    cells = [Measured(ConfusionMatrix(plan.shown, plan.dataset.ignore_index, plan.ignored)) for _ in BOUNDS]
    model = segmenter.model
    for index in plan.photos:
        sample = plan.dataset[index]
        encoded = segmenter.encode([sample.image])
        image = encoded.photos[0].image
        for bound, cell in zip(BOUNDS, cells, strict=True):
            model.config = replace(model.config, rejection=bound, decode_classes=None)
            start = time.perf_counter()
            found = model.decode_photo(encoded.pyramid, embeddings, (image.height, image.width))
            labels = found.labels()
            cell.seconds.append(time.perf_counter() - start)
            cell.decoded.append(len(found.logits))
            cell.matrix.update(sample.mask, prompts.lines[labels])
    return cells


def summary(cells: Sequence[Measured]) -> list[dict[str, Any]]:
    """Returns the rows of one set as JSON values."""
    rows = []
    exact = cells[0]
    for bound, cell in zip(BOUNDS, cells, strict=True):
        ratios = [mine / whole for mine, whole in zip(cell.seconds, exact.seconds, strict=True)]
        rows.append(
            {
                "max_classes": bound.max_classes,
                "keep_top": bound.keep_top,
                "miou": 100 * cell.matrix.mean_iou,
                "lost": 100 * (exact.matrix.mean_iou - cell.matrix.mean_iou),
                "pixels_right": 100 * cell.matrix.pixel_accuracy,
                "decoded": statistics.mean(cell.decoded),
                "time": statistics.median(ratios),
            }
        )
    return rows


def markdown(name: str, photos: int, classes: int, rows: Sequence[dict[str, Any]]) -> str:
    """Returns the table of one set."""
    lines = [
        f"{name}: {photos} photos, {classes} classes\n",
        "| max-classes | keep-top | mIoU | lost | pixels right, % | decoded | time |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        bounds = [str(row["max_classes"] or "all"), str(row["keep_top"] or "-")]
        figures = [f"{row['miou']:.2f}", f"{row['lost']:.2f}", f"{row['pixels_right']:.2f}", f"{row['decoded']:.1f}"]
        lines.append("| " + " | ".join([*bounds, *figures, f"x {row['time']:.2f}"]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measures and prints the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--model", default="dpseg-lite")
    parser.add_argument("--sets", default="coco_things")
    parser.add_argument("--prompts", default="text", choices=get_args(PromptKind))
    parser.add_argument("--limit", type=int, help="photos of a set, evenly spread")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    segmenter = Segmenter.from_pretrained(asked.model)
    results: dict[str, Any] = {}
    for name in asked.sets.split(","):
        config = EvalConfig(prompts=(asked.prompts,), refine=(False,), limit=asked.limit)
        pool = open_dataset(asked.root / name, None, None) if asked.prompts in ("pictures", "both") else None
        plan = make_plan(open_dataset(asked.root / name, None, "val"), config, None, pool)
        results[name] = summary(measure(segmenter, plan, asked.prompts))
        print(markdown(name, len(plan.photos), len(plan.names), results[name]) + "\n", flush=True)
    if asked.json is not None:
        write_atomically(asked.json, (json.dumps(results, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
