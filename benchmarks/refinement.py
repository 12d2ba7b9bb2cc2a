"""What Inference II and its variants give and cost, beside Inference I: accuracy and time of each, in one table.

    python benchmarks/refinement.py DATA_ROOT [--limit 60] [--json FILE] [--untrained]

segments DATA_ROOT/coco_things and clothing, val, and the frames of two walks, lums_road and dhcn_campus, in their
order; the walks are in dpseg-lite's training data. "From 0.9" is the mean score that a region needs. A cell has mIoU
and the pixels right in %. "found in" is the share of the photos, of all sets and kinds of prompts, in which a region
was good enough, "time" the median over these photos of encoding and labelling one against Inference I. Both are
measured photo by photo in one process, so that the table can be made on a machine that does other work too. The last
row is told by the masks which regions are right: what a refinement without mistakes would give.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dpseg.config import EvalConfig, PromptKind, RefineConfig
from dpseg.data.benchmarks import open_dataset
from dpseg.evaluation.evaluate import EncodedPrompts, encode_prompts
from dpseg.evaluation.metrics import ConfusionMatrix
from dpseg.evaluation.plan import Plan, make_plan
from dpseg.files import write_atomically
from dpseg.photos import Encoded
from dpseg.pretrained import untrained
from dpseg.refine import Region, find_regions, refine
from dpseg.result import Segmentation
from dpseg.scene import Scene
from dpseg.segmenter import Segmenter

SETS: dict[str, tuple[str | None, tuple[PromptKind, ...]]] = {
    "coco_things": ("val", ("text", "both")),
    "clothing": ("val", ("text", "both")),
    "lums_road": (None, ("text",)),
    "dhcn_campus": (None, ("text",)),
}
"""Name -> split (None: all photos) and kinds of prompts."""


@dataclass(frozen=True)
class Variant:
    """One row.

    Attributes:
        label: its first cell.
        config: what becomes a prompt; None: Inference I.
        sequence: prompts are carried from photo to photo.
        told: only regions that are right, by the masks.
    """

    label: str
    config: RefineConfig | None = None
    sequence: bool = False
    told: bool = False


def variants() -> list[Variant]:
    """Returns the rows, Inference I first."""
    certain, lower = RefineConfig(), RefineConfig(min_confidence=0.7)
    sure = replace(lower, core=0.5, features="pooled")
    return [
        Variant("Inference I"),
        Variant("II, from 0.9: crops", certain),
        Variant("II, from 0.9: cores", replace(certain, core=0.5)),
        Variant("II, from 0.9: pooled", replace(certain, features="pooled")),
        Variant("sequence, from 0.9: crops", certain, sequence=True),
        Variant("II, from 0.7: crops", lower),
        Variant("II, from 0.7: one crop a class", replace(lower, max_regions=1)),
        Variant("II, from 0.7: cores", replace(lower, core=0.5)),
        Variant("II, from 0.7: pooled", replace(lower, features="pooled")),
        Variant("II, from 0.7: cores, pooled", sure),
        Variant("II, from 0.7: cores, pooled, blend 0.5", replace(sure, blend=0.5)),
        Variant("sequence, from 0.7: crops", lower, sequence=True),
        Variant("sequence, from 0.7: cores, pooled", sure, sequence=True),
        Variant("II, from 0.7: cores, pooled, only right regions", sure, told=True),
    ]


@dataclass
class Measured:
    """One cell: what is counted of a variant on one set with one kind of prompts.

    Attributes:
        matrix: all photos.
        ratios: of the photos in which something was found: seconds against Inference I.
        photos: so many were counted.
    """

    matrix: ConfusionMatrix
    ratios: list[float] = field(default_factory=list)
    photos: int = 0


def natural(name: str) -> list[int | str]:
    """Returns a key by which frame 9 comes before frame 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def right_ones(regions: Sequence[Region], lines: NDArray[np.int32], truth: NDArray[np.generic]) -> list[Region]:
    """Returns the regions that mostly cover their own class."""
    right = []
    for region in regions:
        mask = np.array(Image.fromarray(region.mask.numpy()).resize(truth.shape[::-1], Image.Resampling.NEAREST))
        if mask.any() and (truth[mask] == lines[region.class_index]).mean() > 0.5:
            right.append(region)
    return right


@torch.inference_mode()
def told(segmenter: Segmenter, encoded: Encoded, prompts: EncodedPrompts, truth: NDArray[np.generic]) -> Segmentation:
    """Runs Inference II with the right regions alone."""
    first = segmenter.decode(encoded, prompts.prompts, refine=False)[0]
    best, leaders = torch.from_numpy(first.logits).max(dim=0)
    regions = right_ones(find_regions(best, leaders, segmenter.refinement), prompts.lines, truth)
    used = refine(segmenter.model, encoded, prompts.prompts, [regions], segmenter.refinement)[0]
    return first if used is prompts.prompts else segmenter.decode(encoded, used, refine=False)[0]


def measure(segmenter: Segmenter, plan: Plan, kind: PromptKind, rows: Sequence[Variant]) -> list[Measured]:
    """Counts the photos of one set with one kind of prompts."""
    prompts = encode_prompts(segmenter, plan, [kind])[kind]
    cells = [Measured(ConfusionMatrix(plan.shown, plan.dataset.ignore_index, plan.ignored)) for _ in rows]
    usable = segmenter.usable(prompts.prompts)
    scenes = [Scene(usable, row.config) if row.config is not None and row.sequence else None for row in rows]
    for index in sorted(plan.photos, key=lambda index: natural(plan.dataset.stems[index])):
        sample, base = plan.dataset[index], 0.0
        start = time.perf_counter()
        encoded = segmenter.encode([sample.image])
        encoding = time.perf_counter() - start
        for row, cell, scene in zip(rows, cells, scenes, strict=True):
            segmenter.refinement = row.config or RefineConfig()
            before = None if scene is None else scene.prompts
            start = time.perf_counter()
            if scene is not None:
                result = segmenter.follow(encoded, scene)
                found = scene.prompts is not before
            elif row.told:
                result, found = told(segmenter, encoded, prompts, sample.mask), False
            else:
                result = segmenter.decode(encoded, prompts.prompts, row.config is not None)[0]
                found = result.prompts != prompts.prompts.sources
            seconds = encoding + time.perf_counter() - start
            base = base or seconds
            cell.ratios += [seconds / base] if found else []
            cell.matrix.update(sample.mask, prompts.lines[result.labels])
            cell.photos += 1
    return cells


def summary(row: Variant, cells: dict[str, Measured]) -> dict[str, Any]:
    """Returns the figures of one row as JSON values; its ratio is None where nothing was found."""
    ratios = [ratio for cell in cells.values() for ratio in cell.ratios]
    sets = {
        name: {
            "miou": 100 * cell.matrix.mean_iou,
            "pixels_right": 100 * cell.matrix.pixel_accuracy,
            "photos": cell.photos,
            "ratios": cell.ratios,
        }
        for name, cell in cells.items()
    }
    return {
        "variant": row.label,
        "sets": sets,
        "found_in": None if row.told else len(ratios) / max(1, sum(cell.photos for cell in cells.values())),
        "time": statistics.median(ratios) if ratios else None,
    }


def markdown(table: Sequence[dict[str, Any]]) -> str:
    """Returns the table."""
    names = list(table[0]["sets"])
    lines = [f"| | {' | '.join(names)} | found in | time |", "|---" * (len(names) + 3) + "|"]
    for row in table:
        figures = [f"{row['sets'][name]['miou']:.1f} / {row['sets'][name]['pixels_right']:.1f}" for name in names]
        found = "-" if row["found_in"] is None else f"{100 * row['found_in']:.0f} %"
        took = "-" if row["time"] is None else f"x {row['time']:.2f}"
        lines.append(f"| {row['variant']} | {' | '.join(figures)} | {found} | {took} |")
    return "\n".join(lines)


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description="Accuracy and time of refinement.")
    parser.add_argument("root", type=Path)
    parser.add_argument("--model", default="dpseg-lite")
    parser.add_argument("--untrained", action="store_true", help="the plain cosine")
    parser.add_argument("--limit", type=int, help="photos of a set, evenly spread")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    segmenter = Segmenter.from_pretrained(asked.model)
    if asked.untrained:
        segmenter = Segmenter(untrained(segmenter.model))
    rows = variants()
    cells: list[dict[str, Measured]] = [{} for _ in rows]
    for name in asked.sets.split(","):
        split, kinds = SETS[name]
        dataset = open_dataset(asked.root / name, None, split)
        pool = open_dataset(asked.root / name, None, None)
        config = EvalConfig(prompts=kinds, refine=(False,), limit=asked.limit)
        plan = make_plan(dataset, config, None, pool if "both" in kinds else None)
        for kind in kinds:
            for mine, cell in zip(cells, measure(segmenter, plan, kind, rows), strict=True):
                mine[f"{name}, {kind}"] = cell
    table = [summary(row, mine) for row, mine in zip(rows, cells, strict=True)]
    print(markdown(table))
    if asked.json is not None:
        write_atomically(asked.json, (json.dumps(table, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
