"""How well a model segments labelled photos: one tally for each kind of prompts and inference."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpseg import __version__
from dpseg.config import EvalConfig, PromptKind
from dpseg.data.labelled import LabelledSet
from dpseg.errors import ConfigError
from dpseg.evaluation.plan import Plan, make_plan
from dpseg.evaluation.references import cut_references
from dpseg.evaluation.seen import seen_classes
from dpseg.evaluation.table import Report, Row
from dpseg.evaluation.tally import Tally
from dpseg.photos import Encoded
from dpseg.prompts.prompt_set import PromptSet
from dpseg.prompts.text import parse_class
from dpseg.segmenter import Segmenter


@dataclass(frozen=True, eq=False)
class EncodedPrompts:
    """Encoded prompts of one kind.

    Attributes:
        kind: which.
        prompts: of C classes.
        lines: (C,) int32, the data set's class that each of them counts as.
    """

    kind: PromptKind
    prompts: PromptSet
    lines: NDArray[np.int32]


def evaluate(
    segmenter: Segmenter,
    dataset: LabelledSet,
    config: EvalConfig,
    names: Sequence[str] | None = None,
    pool: LabelledSet | None = None,
    step: Callable[[], None] = lambda: None,
    training: Sequence[str] | None = None,
) -> Report:
    """Measures one model on one data set, in this process.

    Args:
        segmenter: the model.
        dataset: photos and masks.
        config: which prompts, and how.
        names: words for the classes, one for each line of classes.txt, synonyms after commas; None: those lines.
        pool: where reference pictures are cut from, without the photos of `dataset`; needed for pictures.
        step: called after each photo.
        training: the names on which the model was trained, synonyms after commas; None: nobody knows.

    Raises:
        DataError: names and classes differ in number, masks are not usable, or there is nothing to cut references from.
        ConfigError: the model has no bank and one is to be measured, or a number is out of range.
        ImageError: a photo cannot be read.
    """
    start = time.perf_counter()
    plan = make_plan(dataset, config, names, pool)
    tallies = plan.tallies()
    count_photos(segmenter, plan, encode_prompts(segmenter, plan), plan.photos, tallies, step)
    return make_report(plan, segmenter, tallies, time.perf_counter() - start, training)


def make_report(
    plan: Plan, segmenter: Segmenter, tallies: Sequence[Tally], seconds: float, training: Sequence[str] | None
) -> Report:
    """Puts a name on every tally, and beside them what is needed to repeat the evaluation.

    Args:
        plan: what was measured.
        segmenter: the model.
        tallies: one a row of the plan, over all its photos.
        seconds: what it took.
        training: as `evaluate`.
    """
    setting: dict[str, Any] = {
        "data": plan.name,
        "model": dataclasses.asdict(segmenter.model.config),
        "evaluation": dataclasses.asdict(plan.config),
        "machine": f"{platform.machine()}, {segmenter.device}, {torch.get_num_threads()} threads",
        "versions": {"dpseg": __version__, "torch": str(torch.__version__)},
    }
    rows = tuple(Row(kind, refine, tally) for (kind, refine), tally in zip(plan.rows, tallies, strict=True))
    seen = None if training is None else tuple(seen_classes(plan.names, training).tolist())
    return Report(plan.name, rows, len(plan.photos), seconds, setting, seen)


def encode_prompts(
    segmenter: Segmenter, plan: Plan, kinds: Sequence[PromptKind] | None = None
) -> dict[PromptKind, EncodedPrompts]:
    """Encodes every kind of prompts that is asked for.

    Args:
        segmenter: the model.
        plan: what is measured.
        kinds: which; None: all of the plan.

    Raises:
        ConfigError: the model has no bank and one is to be measured.
        DataError: a mask of a reference picture is not usable.
        PromptError: two classes have the same name, or one has none.
    """
    kinds = plan.config.prompts if kinds is None else kinds
    if "bank" in kinds and segmenter.bank is None and segmenter.store is None:
        raise ConfigError(
            "the model has no bank; give one with --bank DIR, or leave it out: --prompts text,pictures,both"
        )
    wanted = {"pictures", "both"} & set(kinds)
    context = plan.config.ref_context
    references = cut_references(plan.pool, plan.drawn, context) if wanted and plan.pool is not None else {}
    lines = list(plan.prompt_classes)
    shown = [place for place, line in enumerate(lines) if line in references and lines.count(line) == 1]
    pictures = {parse_class(plan.prompt_names[place]).name: references[lines[place]] for place in shown}
    encoded: dict[PromptKind, EncodedPrompts] = {}
    for kind in kinds:
        if kind == "pictures":
            prompts, mine = segmenter.prompts(None, pictures), [lines[place] for place in shown]
        else:
            prompts = segmenter.prompts(plan.prompt_names, pictures if kind == "both" else None, bank=kind == "bank")
            mine = lines
        encoded[kind] = EncodedPrompts(kind, prompts, np.array(mine, dtype=np.int32))
    return encoded


def count_photos(
    segmenter: Segmenter,
    plan: Plan,
    prompts: dict[PromptKind, EncodedPrompts],
    photos: Sequence[int],
    tallies: Sequence[Tally],
    step: Callable[[], None] = lambda: None,
) -> None:
    """Segments photos with all prompts and counts their pixels; a photo is encoded once.

    Args:
        segmenter: the model.
        plan: what is measured.
        prompts: what `encode_prompts` returned.
        photos: indices in the data set.
        tallies: one a row of the plan; they are added to.
        step: called after each photo.

    Raises:
        DataError: a mask is not usable.
        ImageError: a photo cannot be read.
    """
    for index in photos:
        sample = plan.dataset[index]
        encoded = segmenter.encode([sample.image], plan.config.size)
        for (kind, refine), tally in zip(plan.rows, tallies, strict=True):
            tally.update(index, sample.mask, predict(segmenter, plan, prompts[kind], encoded, refine))
        step()


def predict(
    segmenter: Segmenter, plan: Plan, prompts: EncodedPrompts, encoded: Encoded, refine: bool
) -> NDArray[np.int32]:
    """Returns the labels of one photo as indices of the data set's classes, (H, W), -1 for none.

    Args:
        segmenter: the model.
        plan: what is measured.
        prompts: the words or pictures.
        encoded: the photo.
        refine: Inference II.
    """
    labels = segmenter.decode(encoded, prompts.prompts, refine, plan.background)[0].labels
    lines = np.append(prompts.lines, np.int32(0))  # the label -1, none, is line 0: the background
    prediction: NDArray[np.int32] = lines[labels] if plan.background is not None else prompts.lines[labels]
    return prediction
