"""`dpseg evaluate`: labelled photos in, a table of mIoU and its relatives out."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from rich.console import Console

from dpseg.commands.places import check_writable
from dpseg.commands.progress import progress
from dpseg.config import EvalConfig, PromptKind
from dpseg.errors import ConfigError, did_you_mean
from dpseg.files import write_atomically

PROMPT_KINDS: tuple[PromptKind, ...] = get_args(PromptKind)
_REFINE = {"off": (False,), "on": (True,), "both": (False, True)}


@dataclass(frozen=True)
class EvaluateOptions:
    """The options of `dpseg evaluate`.

    Attributes:
        data: folder with images/, masks/ and classes.txt.
        config: which prompts, and how.
        split: photos named in SPLIT.txt; None: all.
        names: vocabulary or file with other words for the classes; None: classes.txt.
        model: name, folder or hub id.
        untrained: measure what the model was before training, the plain cosine.
        device: None: CUDA where there is a GPU.
        out: file of the JSON report; None: none is written.
    """

    data: Path
    config: EvalConfig
    split: str | None = "val"
    names: str | None = None
    model: str = "dpseg-lite"
    untrained: bool = False
    device: str | None = None
    out: Path | None = None


def evaluate(options: EvaluateOptions, console: Console, errors: Console) -> int:
    """Measures the model, prints the table and writes the report.

    Args:
        options: what the user asked for.
        console: where the table is printed.
        errors: where progress is shown.

    Returns:
        The exit status, 0.

    Raises:
        DPSegError: the user's mistake.
    """
    from dpseg.data.folder import FolderDataset
    from dpseg.data.vocabularies import load_vocabulary
    from dpseg.evaluation.evaluate import evaluate as measure
    from dpseg.pretrained import untrained
    from dpseg.segmenter import Segmenter

    dataset = FolderDataset(options.data, options.split)
    needs_pictures = bool({"pictures", "both"} & set(options.config.prompts))
    pool = FolderDataset(options.data) if needs_pictures else None
    names = None if options.names is None else load_vocabulary(options.names)
    if options.out is not None:
        check_writable(options.out.parent)
    with errors.status(f"Loading {options.model}") if errors.is_terminal else nullcontext():
        segmenter = Segmenter.from_pretrained(options.model, options.device)
        if options.untrained:
            segmenter = Segmenter(untrained(segmenter.model).to(segmenter.device), segmenter.bank)
    count = min(len(dataset), options.config.limit or len(dataset))
    with progress(errors, count, "photos", lines=True) as step:
        report = measure(segmenter, dataset, options.config, names, pool, step)
    what = f"{options.data.resolve().name} {options.split or ''}".strip()
    rate = report.seconds / max(1, report.photos)
    console.print(
        f"{what}: {report.photos} photos, {len(dataset.class_names)} classes, {options.model}"
        f"{' untrained' if options.untrained else ''},"
        f" {report.seconds:.0f} s ({rate:.2f} s a photo)\n",
        markup=False,
        soft_wrap=True,
    )
    console.print(report.to_markdown(), markup=False, soft_wrap=True)
    if options.out is not None:
        content = json.dumps(report.to_json(), ensure_ascii=False, indent=1) + "\n"
        write_atomically(options.out, content.encode())
    return 0


def prompt_kinds(text: str) -> tuple[PromptKind, ...]:
    """Reads --prompts.

    Raises:
        ConfigError: a word is unknown.
    """
    words = [word.strip().lower() for word in text.split(",") if word.strip()]
    if words == ["all"]:
        return PROMPT_KINDS
    for word in words:
        if word not in PROMPT_KINDS:
            raise ConfigError(f"prompts {word!r} is unknown; {did_you_mean(word, [*PROMPT_KINDS, 'all'])}")
    if not words:
        raise ConfigError(f"no prompts given; known: {', '.join(PROMPT_KINDS)}, all")
    return tuple(kind for kind in PROMPT_KINDS if kind in words)


def refine_rows(text: str) -> tuple[bool, ...]:
    """Reads --refine of an evaluation.

    Raises:
        ConfigError: the word is unknown.
    """
    if text.lower() not in _REFINE:
        raise ConfigError(f"refine {text!r} is unknown; {did_you_mean(text, _REFINE)}")
    return _REFINE[text.lower()]
