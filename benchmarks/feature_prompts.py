"""Can words stand in for pictures? Visual prompts regressed from words, against blended ones, text alone, and pictures.

    python benchmarks/feature_prompts.py DATA_ROOT [MODEL [PHOTOS]]

prints three tables, with the bank of dpseg-lite for any MODEL of that encoder. The first compares features: a third of
the bank's names at a time is left out, and V is made of those names' words by the others. How near is it to V of the
names' own pictures, and of how many names is it nearest to the right pictures, among those of all names left out? The
second segments DATA_ROOT/coco_things val (PHOTOS of them, evenly spread) with every third of the 80 names left out of
the bank, trained and untrained. dpseg-lite itself was trained on these names; docs/results.md says how to train a
model that was not. The third is the test of unseen_names.py, objects of which training had no masks, without their
rows in the bank, for each kind of --feature-prompts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from unseen_names import COUNTED, unseen

from dpseg.config import EvalConfig, FeaturePrompts
from dpseg.data.benchmarks import open_dataset
from dpseg.data.vocabularies import load_vocabulary
from dpseg.evaluation.evaluate import EncodedPrompts, predict
from dpseg.evaluation.metrics import ConfusionMatrix
from dpseg.evaluation.plan import Plan, make_plan
from dpseg.evaluation.seen import by_seen, seen_classes
from dpseg.model.prompt_encoding import bank_prompts, name_features, unit_rows, visual_prompts
from dpseg.pretrained import load_pretrained, untrained
from dpseg.prompts.bank import Bank
from dpseg.prompts.banks import PictureBank, chain, check_encoder
from dpseg.prompts.prompt_set import PromptSet, VisualPrompts
from dpseg.prompts.regressor import FeatureRegressor
from dpseg.prompts.text import parse_classes
from dpseg.segmenter import Segmenter

THIRDS, DRAWS, TOP = 3, 8, 5


def select(bank: Bank, rows: list[int]) -> Bank:
    """Returns some rows of a bank."""
    s2, s3, s4 = (stage[rows] for stage in bank.stages)
    return Bank(tuple(bank.names[row] for row in rows), bank.text[rows], bank.dense[rows], (s2, s3, s4), bank.encoder)


def by_name(bank: Bank) -> Bank:
    """Averages the rows of each name, whatever its case."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(bank.names):
        rows.setdefault(name.casefold(), []).append(row)

    def mean(tensor: Tensor) -> Tensor:
        return torch.stack([tensor[mine].mean(dim=0) for mine in rows.values()])

    s2, s3, s4 = (mean(stage) for stage in bank.stages)
    return Bank(tuple(rows), F.normalize(mean(bank.text), dim=-1), mean(bank.dense), (s2, s3, s4), bank.encoder)


Maker = Callable[[Bank, Tensor], tuple[Tensor, Tensor]]
"""A bank and words' features (K, F_t) -> pictures' features (K, n, F), and which words have some, (K,) bool."""


def blended(bank: Bank, text: Tensor) -> tuple[Tensor, Tensor]:
    """Blends as `Bank.lookup` does, only where a name is near enough."""
    match = bank.lookup(text)
    return match.dense[:, None], match.found


def blended_always(bank: Bank, text: Tensor) -> tuple[Tensor, Tensor]:
    """Blends however far the nearest names are."""
    match = bank.lookup(text, floor=-1.0)
    return match.dense[:, None], match.found


def regressed(bank: Bank, text: Tensor) -> tuple[Tensor, Tensor]:
    """The regression's mean."""
    match = FeatureRegressor.fit(bank).lookup(text)
    return match.dense[:, None], match.found


def drawn(bank: Bank, text: Tensor) -> tuple[Tensor, Tensor]:
    """Several draws of the regression."""
    return FeatureRegressor.fit(bank).draw(text, DRAWS).dense, torch.ones(len(text), dtype=torch.bool)


@torch.no_grad()
def feature_rows(segmenter: Segmenter, bank: Bank, make: Maker) -> tuple[Tensor, Tensor, Tensor]:
    """Makes V for each name by the others.

    Returns:
        For each name the cosine with its own pictures (N,), 0 where nothing is made; the rank of these among the
        pictures of all names that were left out with it (N,), 0 for the nearest; whether something is made (N,).
    """
    encoder, count = segmenter.model.encoder, len(bank)
    cosines, ranks, made = torch.zeros(count), torch.full((count,), count), torch.zeros(count, dtype=torch.bool)
    for third in range(THIRDS):
        rows = list(range(third, count, THIRDS))
        others = [row for row in range(count) if row % THIRDS != third]
        dense, found = make(select(bank, others), bank.text[rows])
        guess = F.normalize(F.normalize(encoder.project_visual(dense), dim=-1).mean(dim=1), dim=-1)
        truth = F.normalize(encoder.project_visual(bank.dense[rows]), dim=-1)
        table = guess @ truth.T
        own = table.diagonal()
        cosines[rows] = torch.where(found, own, 0.0)
        ranks[rows] = torch.where(found, (table > own[:, None]).sum(dim=1), count)
        made[rows] = found
    return cosines, ranks, made


def print_features(segmenter: Segmenter, bank: Bank) -> None:
    """Prints the table of features, of all names and of COCO's, which are averages of many pictures."""
    makers: dict[str, Maker] = {
        "blended, where a name is near": blended,
        "blended, always": blended_always,
        "regressed": regressed,
        f"regressed, {DRAWS} draws": drawn,
    }
    groups = [
        torch.ones(len(bank), dtype=torch.bool),
        torch.from_numpy(seen_classes(bank.names, load_vocabulary("coco"))),
    ]
    counts = [int(group.sum()) for group in groups]
    print(f"{counts[0]} names in {THIRDS} parts, {counts[1]} of them of COCO; nearest and among {TOP} nearest in %\n")
    print(f"| V | made | cosine | nearest | of {TOP} | COCO's: made | cosine | nearest | of {TOP} |")
    print("|---|---|---|---|---|---|---|---|---|")
    for label, make in makers.items():
        cosines, ranks, made = feature_rows(segmenter, bank, make)
        cells = []
        for group in groups:
            cells += [f"{100 * made[group].float().mean():.0f} %", f"{cosines[made & group].mean():.2f}"]
            cells += [f"{100 * (ranks[group] < top).float().mean():.1f}" for top in (1, TOP)]
        print(f"| {label} | {' | '.join(cells)} |", flush=True)


@dataclass(frozen=True)
class Held:
    """Names of which the bank has no pictures.

    Attributes:
        names: all names of the data set that are decoded.
        held: those without pictures.
        full: the bank as it ships.
        known: without the rows of these names.
    """

    names: list[str]
    held: list[str]
    full: Bank
    known: Bank

    def prompts(self, segmenter: Segmenter, source: PictureBank | None) -> PromptSet:
        """Returns all names in words; the held ones with pictures of `source`, the others with the bank's."""
        encoder, cache = segmenter.model.encoder, segmenter.cache
        rest = parse_classes([name for name in self.names if name not in self.held])
        prompts = segmenter.prompts(self.names, bank=False)
        found = bank_prompts(encoder, self.known, rest, cache)
        found += bank_prompts(encoder, source, parse_classes(self.held), cache) if source is not None else []
        for visual in found:
            prompts = prompts.replace(visual)
        return prompts

    def drawn(self, segmenter: Segmenter, regressor: FeatureRegressor) -> VisualPrompts:
        """Returns the average of several draws for the held names."""
        encoder = segmenter.model.encoder
        draws = regressor.draw(name_features(encoder, parse_classes(self.held), segmenter.cache), DRAWS)
        s2, s3, s4 = (stage.flatten(0, 1) for stage in draws.stages)
        rows = unit_rows(encoder, draws.dense.flatten(0, 1), (s2, s3, s4))
        return visual_prompts(self.held, [k for k in range(len(self.held)) for _ in range(DRAWS)], rows, "regressed")


def hold_out(names: list[str], bank: Bank) -> Held:
    """Leaves every third name out of a bank."""
    held = names[THIRDS - 1 :: THIRDS]
    lower = {name.casefold() for name in held}
    return Held(
        names, held, bank, select(bank, [k for k, name in enumerate(bank.names) if name.casefold() not in lower])
    )


@torch.no_grad()
def all_prompts(segmenter: Segmenter, parts: Held) -> dict[str, PromptSet]:
    """Returns the rows of the second table."""
    regressor = FeatureRegressor.fit(parts.known)
    text = parts.prompts(segmenter, None)
    both = chain(parts.known, regressor)
    assert both is not None
    return {
        "text alone": text,
        "the bank's own pictures": parts.prompts(segmenter, parts.full),
        "blended, where a name is near": parts.prompts(segmenter, parts.known),
        "regressed": parts.prompts(segmenter, regressor),
        f"regressed, {DRAWS} draws": text.replace(parts.drawn(segmenter, regressor)),
        "blended, else regressed": parts.prompts(segmenter, both),
        "text alone, the other names too": segmenter.prompts(parts.names, bank=False),
    }


def segment(segmenter: Segmenter, plan: Plan, prompts: dict[str, PromptSet]) -> dict[str, ConfusionMatrix]:
    """Counts the photos of a plan, Inference I."""
    lines = np.array(plan.prompt_classes, dtype=np.int32)
    encoded = {label: EncodedPrompts("text", one, lines) for label, one in prompts.items()}
    counts = {label: ConfusionMatrix(plan.shown, plan.dataset.ignore_index, plan.ignored) for label in prompts}
    for number, index in enumerate(plan.photos):
        print(f"\rphoto {number + 1} of {len(plan.photos)}", end="", file=sys.stderr, flush=True)
        sample = plan.dataset[index]
        photo = segmenter.encode([sample.image])
        for label, one in encoded.items():
            counts[label].update(sample.mask, predict(segmenter, plan, one, photo, refine=False))
    return counts


def print_segmentation(segmenter: Segmenter, plain: Segmenter, bank: Bank, root: Path, limit: int | None) -> None:
    """Prints the table of mIoU."""
    dataset = open_dataset(root / "coco_things")
    plan = make_plan(dataset, EvalConfig(prompts=("text",), refine=(False,), limit=limit))
    parts = hold_out([*plan.prompt_names], bank)
    held: NDArray[np.bool_] = np.array([name in parts.held for name in plan.shown])
    print(
        f"\n{len(parts.held)} of {len(parts.names)} names left out of the bank, {len(plan.photos)} photos; mIoU in %\n"
    )
    print("| the names left out have | untrained: left out | the others | trained: left out | the others |")
    print("|---|---|---|---|---|")
    tables = [segment(one, plan, all_prompts(one, parts)) for one in (plain, segmenter)]
    for label in tables[0]:
        figures = [by_seen(table[label], ~held)[group]["miou"] for table in tables for group in ("unseen", "seen")]
        print(f"| {label} | {' | '.join(f'{100 * figure:.1f}' for figure in figures)} |")


def print_unseen(segmenter: Segmenter, bank: Bank, root: Path) -> None:
    """Prints the share of pictures whose centre is named right, by kind of feature prompts."""
    pictures = unseen(root)
    lower = {name.casefold() for name in pictures}
    known = select(bank, [row for row, name in enumerate(bank.names) if name.casefold() not in lower])
    coco = [name for name in load_vocabulary("coco") if name not in pictures]
    kinds: tuple[FeaturePrompts, ...] = get_args(FeaturePrompts)
    prompts = {
        (kind, beside): Segmenter(segmenter.model, known, feature_prompts=kind).prompts([*pictures, *others])
        for kind in kinds
        for beside, others in (("no others", []), ("COCO's names", coco))
    }
    right, total = dict.fromkeys(prompts, 0), 0
    for index, files in enumerate(pictures.values()):
        for file in files[COUNTED]:
            photo, total = segmenter.encode([file]), total + 1
            for key, one in prompts.items():
                labels = segmenter.decode(photo, one, refine=False)[0].labels
                height, width = labels.shape
                centre = labels[height // 4 : height - height // 4, width // 4 : width - width // 4]
                right[key] += int(np.bincount(centre.ravel(), minlength=len(one)).argmax()) == index
    print(f"\n{total} pictures of {len(pictures)} names left out of the bank; named right in %\n")
    print("| feature prompts | beside no others | beside COCO's names |\n|---|---|---|")
    for kind in kinds:
        shares = [f"{100 * right[kind, beside] / total:.1f}" for beside in ("no others", "COCO's names")]
        print(f"| {kind} | {' | '.join(shares)} |")


def main(root: Path, model: str = "dpseg-lite", limit: int | None = None) -> None:
    """Prints the tables as Markdown."""
    segmenter = Segmenter.from_pretrained(model)
    plain = Segmenter(untrained(segmenter.model))
    bank = load_pretrained("dpseg-lite")[1]
    assert bank is not None
    check_encoder(segmenter.model.encoder.fingerprint, bank)
    print_features(segmenter, by_name(bank))
    print_segmentation(segmenter, plain, bank, root, limit)
    print_unseen(segmenter, bank, root)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:3], *(int(word) for word in sys.argv[3:4]))
