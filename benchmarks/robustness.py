"""Pictures that are noisy, blurred or wrong: what do they cost, by themselves and beside words?

    python benchmarks/robustness.py --data DATA_ROOT [--set NAME] [--photos N] [--out FOLDER]

spoils the reference pictures (5 a class) of clothing and coco_things, measures pictures alone and both on some photos
of val, and writes robustness.json and robustness.png. Noise and blur spoil every picture. Of wrong pictures, all five
of a share of the classes show the next class in the list, or some of the five of every class do. Each photo is encoded
once and decoded with all prompts.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from few_shot import Case, count, without_words
from PIL import Image
from scipy import ndimage

from dpseg.config import EvalConfig
from dpseg.data.benchmarks import open_dataset
from dpseg.data.labelled import LabelledSet
from dpseg.evaluation.evaluate import EncodedPrompts
from dpseg.evaluation.plan import Plan, make_plan
from dpseg.evaluation.references import cut_references
from dpseg.evaluation.workers import ModelSource
from dpseg.files import make_folder, write_atomically
from dpseg.images import load_image
from dpseg.matching import MATCHINGS
from dpseg.prompts.text import parse_class
from dpseg.prompts.visual import Reference
from dpseg.segmenter import Segmenter

SETS = ("clothing", "coco_things")
SHOWN = 5
References = dict[int, list[Reference]]


def noise(reference: Reference, strength: float, random: np.random.Generator) -> Reference:
    """Adds Gaussian noise; `strength` is its standard deviation as a share of the range of a colour."""
    pixels = np.asarray(load_image(reference.image), dtype=np.float32)
    noisy = pixels + random.normal(0, 255 * strength, pixels.shape)
    return replace(reference, image=Image.fromarray(noisy.clip(0, 255).astype(np.uint8)))


def blur(reference: Reference, strength: float, random: np.random.Generator) -> Reference:
    """Blurs; `strength` is the standard deviation as a share of the longer side of the thing's bounding box."""
    image, mask = reference.read()
    rows, columns = np.nonzero(np.ones((image.height, image.width)) if mask is None else mask)
    sigma = strength * (1 + max(np.ptp(rows), np.ptp(columns)))
    blurred = ndimage.gaussian_filter(np.asarray(image, dtype=np.float32), (sigma, sigma, 0))
    return replace(reference, image=Image.fromarray(blurred.round().clip(0, 255).astype(np.uint8)))


def spoil(references: References, how: Callable[..., Reference], strength: float) -> References:
    """Spoils every picture; the draw is the same for every strength."""
    random = np.random.default_rng(0)
    return {value: [how(one, strength, random) for one in pictures] for value, pictures in references.items()}


def wrong_class(references: References, share: float) -> References:
    """Gives a share of the classes, drawn at random, the pictures of the next class."""
    values = list(references)
    drawn = np.random.default_rng(0).permutation(len(values))[: round(share * len(values))]
    following = {values[place]: references[values[(place + 1) % len(values)]] for place in drawn.tolist()}
    return references | following


def wrong_pictures(references: References, number: float) -> References:
    """Gives every class so many of the next class's pictures in place of its own."""
    values, wrong = list(references), int(number)
    pairs = zip(values, [*values[1:], values[0]], strict=True)
    return {value: [*references[after][:wrong], *references[value][wrong:]] for value, after in pairs}


SPOILED: dict[str, tuple[Callable[[References, float], References], tuple[float, ...]]] = {
    "noise": (lambda references, strength: spoil(references, noise, strength), (0.1, 0.3, 0.6)),
    "blur": (lambda references, strength: spoil(references, blur, strength), (1 / 32, 1 / 16, 1 / 8)),
    "classes with wrong pictures": (wrong_class, (0.25, 0.5, 1.0)),
    "wrong pictures of 5": (wrong_pictures, (1, 2, 3)),
}


def prompt(segmenter: Segmenter, plan: Plan, references: References) -> EncodedPrompts:
    """Encodes the names of all classes, and references."""
    names = dict(zip(plan.prompt_classes, plan.prompt_names, strict=True))
    pictures = {parse_class(names[value]).name: own for value, own in references.items()}
    encoded = segmenter.prompts(plan.prompt_names, pictures or None, bank=False)
    return EncodedPrompts("both", encoded, np.array(plan.prompt_classes, dtype=np.int32))


def pair(segmenter: Segmenter, plan: Plan, references: References) -> dict[str, Case]:
    """Encodes references by themselves and with the names of all classes."""
    both = prompt(segmenter, plan, references)
    return {"pictures": Case.of(plan, without_words(both)), "both": Case.of(plan, both)}


def measure(segmenter: Segmenter, dataset: LabelledSet, pool: LabelledSet, limit: int) -> dict[str, Any]:
    """Returns mIoU and pixels right in %, as robustness.json holds them."""
    plan = make_plan(dataset, EvalConfig(references=SHOWN, limit=limit), pool=pool)
    clean = cut_references(pool, plan.drawn)
    text = Case.of(plan, prompt(segmenter, plan, {}))
    right = pair(segmenter, plan, clean)
    spoiled = {
        (what, strength): pair(segmenter, plan, how(clean, strength))
        for what, (how, strengths) in SPOILED.items()
        for strength in strengths
    }
    count(segmenter, [text, *(case for cases in (right, *spoiled.values()) for case in cases.values())])
    result: dict[str, Any] = {"text": figures(text), **{kind: figures(case) for kind, case in right.items()}}
    for what, (_, strengths) in SPOILED.items():
        result[what] = {
            f"{strength:.3g}": {kind: figures(case) for kind, case in spoiled[what, strength].items()}
            for strength in strengths
        }
    return result | {"photos": len(plan.photos)}


def figures(case: Case) -> dict[str, float]:
    """Returns what was counted, in %."""
    values = {"mIoU": case.counts.mean_iou, "pixels right": case.counts.pixel_accuracy}
    return {name: round(100 * value, 2) for name, value in values.items()}


def draw(results: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Draws mIoU against severity, a row a set and a column a kind of spoiling, as a PNG file's content."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(SPOILED), 2.7 * len(results)), layout="constrained")
    for row, (name, result) in enumerate(results.items()):
        for column, what in enumerate(SPOILED):
            axes = figure.add_subplot(len(results), len(SPOILED), row * len(SPOILED) + column + 1)
            severities = ["0", *result[what]]
            for kind, colour, marker in (("pictures", "#d97a2b", "s"), ("both", "#a3246b", "o")):
                values = [result[kind]["mIoU"], *(result[what][severity][kind]["mIoU"] for severity in severities[1:])]
                axes.plot(severities, values, color=colour, marker=marker, label=kind)
            axes.axhline(result["text"]["mIoU"], color="#3b6fb5", linestyle="--", label="text")
            axes.set_ylim(bottom=0)
            axes.set_title(what if row == 0 else "", fontsize=10)
            axes.grid(axis="y", color="#e4e4e0")
            if column == 0:
                axes.set_ylabel(f"{name}: mIoU, %")
            if row == column == 0:
                axes.legend(frameon=False)
    content = io.BytesIO()
    figure.savefig(content, dpi=80)
    return content.getvalue()


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a Markdown table of mIoU / pixels right, and of the mIoU that was lost."""
    lines = ["| set | pictures | severity | pictures alone | both | lost alone | lost with both |", "|---" * 7 + "|"]

    def cell(values: Mapping[str, float]) -> str:
        return f"{values['mIoU']:.1f} / {values['pixels right']:.1f}"

    for name, result in results.items():
        lines.append(f"| {name} | as they are | | {cell(result['pictures'])} | {cell(result['both'])} | | |")
        for what in SPOILED:
            for severity, values in result[what].items():
                lost = [f"{result[kind]['mIoU'] - values[kind]['mIoU']:.1f}" for kind in ("pictures", "both")]
                cells = [name, what, severity, cell(values["pictures"]), cell(values["both"]), *lost]
                lines.append("| " + " | ".join(cells) + " |")
        lines.append(f"| {name} | none: text | | | {cell(result['text'])} | | |")
    return "\n".join(lines)


def gentler(results: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    """Returns where both lose as much mIoU as pictures alone, or more: the claim is that there is no such place."""
    return [
        f"{name}, {what} {severity}"
        for name, result in results.items()
        for what in SPOILED
        for severity, values in result[what].items()
        if result["both"]["mIoU"] - values["both"]["mIoU"] >= result["pictures"]["mIoU"] - values["pictures"]["mIoU"]
    ]


def main() -> None:
    """Measures, prints the table and writes the files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the sets")
    parser.add_argument("--set", action="append", choices=SETS, help="only this; may be repeated")
    parser.add_argument("--photos", type=int, default=40, help="so many photos of a set")
    parser.add_argument("--model", default="dpseg-lite")
    parser.add_argument("--match", choices=list(MATCHINGS), help="default: as the model's config says")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    folder = make_folder(options.out)
    path = folder / "robustness.json"
    results: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}
    matching = None if options.match is None else MATCHINGS[options.match]
    segmenter = ModelSource(options.model, matching=matching).load()
    for name in options.set or SETS:
        place = options.data / name
        val, everything = open_dataset(place, split="val"), open_dataset(place, split=None)
        results[name] = measure(segmenter, val, everything, options.photos)
        write_atomically(path, (json.dumps(results, indent=1) + "\n").encode())
        write_atomically(folder / "robustness.png", draw(results))
    print(table(results))
    places = gentler(results)
    print("\nboth degrade more gently than pictures alone" + (f", but for: {'; '.join(places)}" if places else ""))


if __name__ == "__main__":
    main()
