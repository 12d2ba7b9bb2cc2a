"""Few-shot: how good are words, 1, 2, 5 and 10 reference pictures a class, and both, with nothing trained for it?

    python benchmarks/few_shot.py --data DATA_ROOT [--set NAME] [--seeds N] [--limit PHOTOS] [--out FOLDER]

measures val of the sets in `RUNS`, with references from train: mIoU and pixels right, the background ignored, as mean
and range over draws of the references. It writes few_shot.json and few_shot.png. Each photo is encoded once and decoded
with all prompts. One set at a time may be given; the others' figures in few_shot.json then stay.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpseg.config import EvalConfig
from dpseg.data.benchmarks import open_dataset
from dpseg.data.labelled import LabelledSet
from dpseg.evaluation.evaluate import EncodedPrompts, encode_prompts, predict
from dpseg.evaluation.metrics import ConfusionMatrix
from dpseg.evaluation.plan import Plan, make_plan
from dpseg.evaluation.workers import ModelSource
from dpseg.files import make_folder, write_atomically
from dpseg.matching import MATCHINGS
from dpseg.prompts.prompt_set import PromptSet
from dpseg.segmenter import Segmenter

COUNTS = (1, 2, 5, 10)
SHOWN = 5  # references a class of the figure "both"


@dataclass(frozen=True)
class Run:
    """One curve.

    Attributes:
        data: folder below the data's root.
        untrained: the plain cosine of the encoders, which never saw any of the sets.
        match: key of `MATCHINGS`; None: as the model's config says.
    """

    data: str
    untrained: bool = False
    match: str | None = None


RUNS = {
    "iot_boards": Run("iot_boards", untrained=True, match="alike"),
    "iot_boards, trained on it": Run("iot_boards", match="alike"),
    "clothing": Run("clothing"),
}


@dataclass(frozen=True, eq=False)
class Case:
    """Prompts of one kind and the counts of what they gave."""

    plan: Plan
    prompts: EncodedPrompts
    counts: ConfusionMatrix

    @classmethod
    def of(cls, plan: Plan, prompts: EncodedPrompts) -> Case:
        """Starts with nothing counted."""
        return cls(plan, prompts, ConfusionMatrix(plan.shown, plan.dataset.ignore_index, plan.ignored))


def without_words(both: EncodedPrompts) -> EncodedPrompts:
    """Returns the pictures of words and pictures by themselves, as if they had been encoded alone."""
    shown = both.prompts.embeddings.has_visual
    e = both.prompts.embeddings.map(lambda tensor: tensor[shown])
    embeddings = replace(e, text=torch.zeros_like(e.text), has_text=torch.zeros_like(e.has_text))
    names = tuple(name for name, kept in zip(both.prompts.names, shown.tolist(), strict=True) if kept)
    return EncodedPrompts(
        "pictures", PromptSet(names, embeddings, both.prompts.encoder), both.lines[shown.cpu().numpy()]
    )


def count(segmenter: Segmenter, cases: Sequence[Case]) -> None:
    """Segments the plan's photos with the prompts of every case; each photo is encoded once."""
    first = cases[0].plan
    for number, index in enumerate(first.photos, start=1):
        sample = first.dataset[index]
        encoded = segmenter.encode([sample.image])
        for case in cases:
            case.counts.update(sample.mask, predict(segmenter, case.plan, case.prompts, encoded, False))
        print(f"\r{first.name}: {number}/{len(first.photos)} photos", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)


def measure(
    segmenter: Segmenter, dataset: LabelledSet, pool: LabelledSet, seeds: int, limit: int | None
) -> dict[str, Any]:
    """Returns one run's figures in %, means over the draws, as few_shot.json holds them.

    Args:
        segmenter: the model.
        dataset: what is measured.
        pool: where references come from.
        seeds: draws of the references, from seed 0 on.
        limit: so many photos only; None: all.
    """
    text: Case | None = None
    cases: dict[tuple[str, int, int], Case] = {}
    for seed in range(seeds):
        for shown in COUNTS:
            plan = make_plan(dataset, EvalConfig(references=shown, seed=seed, limit=limit), pool=pool)
            both = encode_prompts(segmenter, plan, ("both",))["both"]
            text = text or Case.of(plan, encode_prompts(segmenter, plan, ("text",))["text"])
            cases["both", shown, seed] = Case.of(plan, both)
            cases["pictures", shown, seed] = Case.of(plan, without_words(both))
    assert text is not None
    count(segmenter, [text, *cases.values()])

    def figures(kind: str, value: Callable[[ConfusionMatrix], float]) -> dict[str, list[float]]:
        draws = {n: [100 * value(cases[kind, n, seed].counts) for seed in range(seeds)] for n in COUNTS}
        return {str(n): [round(mean, 2) for mean in each] for n, each in draws.items()}

    miou = {kind: figures(kind, lambda counts: counts.mean_iou) for kind in ("pictures", "both")}
    pixels = {kind: figures(kind, lambda counts: counts.pixel_accuracy) for kind in ("pictures", "both")}
    return {
        "text": round(100 * text.counts.mean_iou, 2),
        **{key: round(float(np.mean(draws)), 2) for key, draws in miou["pictures"].items()},
        "both": round(float(np.mean(miou["both"][str(SHOWN)])), 2),
        "pixels right": {
            "text": round(100 * text.counts.pixel_accuracy, 2),
            **{key: round(float(np.mean(draws)), 2) for key, draws in pixels["pictures"].items()},
            "both": round(float(np.mean(pixels["both"][str(SHOWN)])), 2),
        },
        "draws": {"mIoU": miou, "pixels right": pixels},
        "photos": len(text.plan.photos),
    }


def draw(results: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Draws mIoU against the references a class, one panel a run, as a PNG file's content."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(results), 3.4), layout="constrained")
    for number, (name, result) in enumerate(results.items(), start=1):
        axes = figure.add_subplot(1, len(results), number)
        for kind, colour, marker in (("pictures", "#d97a2b", "s"), ("both", "#a3246b", "o")):
            draws = np.array([result["draws"]["mIoU"][kind][str(n)] for n in COUNTS])
            axes.plot(range(len(COUNTS)), draws.mean(axis=1), color=colour, marker=marker, label=kind)
            axes.fill_between(range(len(COUNTS)), draws.min(axis=1), draws.max(axis=1), color=colour, alpha=0.2, lw=0)
        axes.axhline(result["text"], color="#3b6fb5", linestyle="--", label="text")
        axes.set(title=name, xlabel="references a class", xticks=range(len(COUNTS)), xticklabels=COUNTS)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", color="#e4e4e0")
        if number == 1:
            axes.set_ylabel("mIoU, %")
            axes.legend(frameon=False)
    content = io.BytesIO()
    figure.savefig(content, dpi=100)
    return content.getvalue()


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a Markdown table: mIoU / pixels right, and the range of the mIoU over the draws."""
    lines = ["| set | prompts | text | " + " | ".join(map(str, COUNTS)) + " |", "|---" * (3 + len(COUNTS)) + "|"]
    for name, result in results.items():
        for kind in ("pictures", "both"):
            cells = []
            for n in COUNTS:
                miou, pixels = (result["draws"][what][kind][str(n)] for what in ("mIoU", "pixels right"))
                cells.append(f"{np.mean(miou):.1f} / {np.mean(pixels):.1f} ({min(miou):.1f} to {max(miou):.1f})")
            words = f"{result['text']:.1f} / {result['pixels right']['text']:.1f}"
            lines.append(f"| {name} | {kind} | {words} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measures, prints the table and writes the files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the sets")
    parser.add_argument("--set", action="append", choices=list(RUNS), help="only this; may be repeated")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the references")
    parser.add_argument("--limit", type=int, help="so many photos of a set only")
    parser.add_argument("--model", default="dpseg-lite")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    folder = make_folder(options.out)
    path = folder / "few_shot.json"
    results: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}
    for name in options.set or RUNS:
        run = RUNS[name]
        matching = None if run.match is None else MATCHINGS[run.match]
        segmenter = ModelSource(options.model, None, run.untrained, matching).load()
        place = options.data / run.data
        val, everything = open_dataset(place, split="val"), open_dataset(place, split=None)
        figures = measure(segmenter, val, everything, options.seeds, options.limit)
        results[name] = figures | {"setting": asdict(run) | {"model": options.model}}
        results = {known: results[known] for known in RUNS if known in results}
        write_atomically(path, (json.dumps(results, indent=1) + "\n").encode())
        write_atomically(folder / "few_shot.png", draw(results))
    print(table(results))


if __name__ == "__main__":
    main()
