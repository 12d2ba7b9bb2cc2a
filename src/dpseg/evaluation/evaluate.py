"""How well a model segments labelled photos: one confusion matrix for each kind of prompts and inference."""

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
from dpseg.data.folder import FolderDataset, Sample
from dpseg.errors import ConfigError, DataError
from dpseg.evaluation.metrics import ConfusionMatrix
from dpseg.evaluation.references import sample_references
from dpseg.prompts.prompt_set import PromptSet
from dpseg.prompts.text import parse_class
from dpseg.prompts.visual import Reference
from dpseg.segmenter import Segmenter


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        prompts: what the classes were told by.
        refine: Inference II, or Inference I.
        matrix: all photos together.
    """

    prompts: PromptKind
    refine: bool
    matrix: ConfusionMatrix


@dataclass(frozen=True)
class Report:
    """What `evaluate` measured.

    Attributes:
        rows: the table.
        photos: so many were evaluated.
        seconds: of the whole evaluation, reading included.
        setting: what else is needed to repeat it, JSON values.
    """

    rows: tuple[Row, ...]
    photos: int
    seconds: float
    setting: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Returns everything as JSON values."""
        return {
            **self.setting,
            "photos": self.photos,
            "seconds": round(self.seconds, 2),
            "rows": [{"prompts": row.prompts, "refine": row.refine, **row.matrix.to_json()} for row in self.rows],
        }

    def to_markdown(self) -> str:
        """Returns the table, in %."""
        lines = [
            "| prompts | inference | mIoU | pixels right | mean accuracy | frequency-weighted IoU |",
            "|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            m = row.matrix
            values = (m.mean_iou, m.pixel_accuracy, m.mean_accuracy, m.frequency_weighted_iou)
            figures = " | ".join(f"{100 * value:.1f}" for value in values)
            lines.append(f"| {row.prompts} | {'II' if row.refine else 'I'} | {figures} |")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Prompts:
    """Encoded prompts, and for each of their classes the line of classes.txt."""

    kind: PromptKind
    prompts: PromptSet
    lines: NDArray[np.int32]


def evaluate(
    segmenter: Segmenter,
    dataset: FolderDataset,
    config: EvalConfig,
    names: Sequence[str] | None = None,
    pool: FolderDataset | None = None,
    step: Callable[[], None] = lambda: None,
) -> Report:
    """Measures one model on one data set.

    Args:
        segmenter: the model.
        dataset: photos and masks.
        config: which prompts, and how.
        names: words for the classes, one for each line of classes.txt, synonyms after commas; None: those lines.
        pool: where reference pictures are cut from, without the photos of `dataset`; needed for pictures.
        step: called after each photo.

    Raises:
        DataError: names and classes differ in number, masks are not usable, or there is nothing to cut references from.
        ConfigError: the model has no bank and one is to be measured, or a number is out of range.
        ImageError: a photo cannot be read.
    """
    if config.references < 1 or (config.limit is not None and config.limit < 1):
        raise ConfigError(f"references {config.references}, limit {config.limit}: give numbers of 1 or more")
    start = time.perf_counter()
    names = _names(dataset, names)
    prompts = _encode(segmenter, dataset, config, names, pool)
    ignored = {0} if dataset.background_line0 and config.ignore_background else set()
    shown = [parse_class(name).name for name in names]
    matrices = {
        (one.kind, refine): ConfusionMatrix(shown, dataset.ignore_index, ignored)
        for one in prompts
        for refine in config.refine
    }
    background = config.background if dataset.background_line0 and not config.ignore_background else None
    chosen = _spread(len(dataset), config.limit)
    for index in chosen:
        _count(segmenter, dataset[index], prompts, config, background, matrices)
        step()
    rows = tuple(Row(kind, refine, matrix) for (kind, refine), matrix in matrices.items())
    setting = {
        "data": dataset.root.resolve().name,
        "model": dataclasses.asdict(segmenter.model.config),
        "evaluation": dataclasses.asdict(config),
        "machine": f"{platform.machine()}, {segmenter.device}, {torch.get_num_threads()} threads",
        "versions": {"dpseg": __version__, "torch": str(torch.__version__)},
    }
    return Report(rows, len(chosen), time.perf_counter() - start, setting)


def _names(dataset: FolderDataset, names: Sequence[str] | None) -> list[str]:
    if names is not None and len(names) != len(dataset.class_names):
        raise DataError(
            f"{len(names)} names for {len(dataset.class_names)} classes; give one for each line of classes.txt"
        )
    return list(dataset.class_names if names is None else names)


def _encode(
    segmenter: Segmenter, dataset: FolderDataset, config: EvalConfig, names: Sequence[str], pool: FolderDataset | None
) -> list[_Prompts]:
    """Encodes every kind of prompts that is asked for."""
    lines = list(range(int(dataset.background_line0), len(names)))
    references: dict[int, list[Reference]] = {}
    if {"pictures", "both"} & set(config.prompts):
        if pool is None:
            raise DataError("no photos to cut reference pictures from; use --prompts text")
        references = sample_references(pool, dataset.stems, config.references, config.seed)
    if "bank" in config.prompts and segmenter.bank is None:
        raise ConfigError("the model has no bank; leave it out: --prompts text,pictures,both")
    words = [names[line] for line in lines]
    pictures = {parse_class(names[line]).name: references[line] for line in lines if line in references}
    encoded: list[_Prompts] = []
    for kind in config.prompts:
        if kind == "pictures":
            prompts, mine = segmenter.prompts(None, pictures), [line for line in lines if line in references]
        else:
            shown = pictures if kind == "both" else None
            prompts, mine = segmenter.prompts(words, shown, bank=kind == "bank"), lines
        encoded.append(_Prompts(kind, prompts, np.array(mine, dtype=np.int32)))
    return encoded


def _count(
    segmenter: Segmenter,
    sample: Sample,
    prompts: Sequence[_Prompts],
    config: EvalConfig,
    background: float | None,
    matrices: dict[tuple[PromptKind, bool], ConfusionMatrix],
) -> None:
    """Segments one photo with all prompts and counts its pixels; the photo is encoded once."""
    encoded = segmenter.encode([sample.image], config.size)
    for one in prompts:
        for refine in config.refine:
            labels = segmenter.decode(encoded, one.prompts, refine, background)[0].labels
            lines = np.append(one.lines, np.int32(0))  # the label -1, none, is line 0: the background
            prediction = lines[labels] if background is not None else one.lines[labels]
            matrices[one.kind, refine].update(sample.mask, prediction)


def _spread(count: int, limit: int | None) -> list[int]:
    """Returns `limit` of `count` indices, evenly spread."""
    if limit is None or limit >= count:
        return list(range(count))
    return sorted({int(index) for index in np.linspace(0, count - 1, limit).round()})
