"""Counts of blocks of photos on disk, so that an evaluation is shared by processes and machines, and resumes.

FOLDER/setting.json            what was evaluated, and how
FOLDER/blocks/SET/00000.npz    the integer counts of one block of photos; written in one step

A block is the same photos whoever counts it, and integers add up to the same whatever the order: the figures of a whole
set do not depend on how it was shared.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpseg import __version__
from dpseg.errors import DataError
from dpseg.evaluation.plan import Plan
from dpseg.evaluation.tally import Tally
from dpseg.files import make_folder, write_atomically
from dpseg.model.fingerprint import weights_fingerprint
from dpseg.prompts.bank import Bank
from dpseg.prompts.bank_store import BankStore
from dpseg.prompts.banks import PictureBank
from dpseg.segmenter import Segmenter

SETTING_FILE = "setting.json"
_BLOCKS = "blocks"


def describe(segmenter: Segmenter, plans: Sequence[Plan]) -> dict[str, Any]:
    """Returns all that decides the counts, as JSON values: the model's weights, the data sets, and the options.

    The photos are known by their names, so that folders may lie elsewhere on another machine.

    Args:
        segmenter: the model.
        plans: one a data set, of different names.
    """
    model, bank, store = segmenter.model, segmenter.bank, segmenter.store
    asked_first = {} if store is None else {"bank asked first": _bank_fingerprint(store)}
    return {
        "dpseg": __version__,
        "model": {
            **dataclasses.asdict(model.config),
            "precision": model.precision,
            "weights": weights_fingerprint(model.encoder.fingerprint, model.saved_state().values()),
            "bank": None if bank is None else _bank_fingerprint(bank),
            **asked_first,
            "refinement": dataclasses.asdict(segmenter.refinement),
        },
        "data sets": [plan.name for plan in plans],
        "sets": {plan.name: _describe_set(plan) for plan in plans},
    }


def check_setting(folder: Path, setting: Mapping[str, Any]) -> str:
    """Writes what is evaluated into a folder, or checks that the folder holds counts of the very same.

    Args:
        folder: made where it is missing.
        setting: what `describe` returned.

    Returns:
        A hash of the setting, for the blocks.

    Raises:
        DataError: the folder holds another evaluation; the first difference is named.
        OutputError: it cannot be written.
    """
    path = make_folder(folder) / SETTING_FILE
    now = json.loads(json.dumps(setting))
    if path.is_file():
        try:
            before = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise DataError(
                f"{path}: is damaged; delete it and {_BLOCKS}/ beside it, or choose another --out"
            ) from error
        difference = _first_difference(before, now)
        if difference is not None:
            key, old, new = difference
            raise DataError(
                f"{str(folder)!r} holds another evaluation: {key} was {_short(old)}, now it is {_short(new)};"
                " choose another --out, or delete that folder"
            )
    else:
        write_atomically(path, (json.dumps(now, ensure_ascii=False, indent=1) + "\n").encode())
    return _hash(now)


def missing_blocks(folder: Path, plan: Plan, shard: int = 0, shards: int = 1) -> tuple[int, ...]:
    """Returns the numbers of the blocks that nobody has counted yet.

    Args:
        folder: of the evaluation.
        plan: of the data set.
        shard: only blocks from this one on, from 0 ...
        shards: ... in steps of so many.
    """
    numbers = range(shard, len(plan.blocks), shards)
    return tuple(number for number in numbers if not _block_file(folder, plan, number).is_file())


def write_block(folder: Path, plan: Plan, number: int, tallies: Sequence[Tally], seconds: float, digest: str) -> Path:
    """Writes the counts of one block.

    Args:
        folder: of the evaluation.
        plan: of the data set.
        number: of the block, from 0.
        tallies: one a row of the plan.
        seconds: what it took.
        digest: what `check_setting` returned.

    Raises:
        OutputError: it cannot be written.
    """
    arrays: dict[str, Any] = {"digest": np.array(digest), "seconds": np.array(seconds)}
    for row, tally in enumerate(tallies):
        arrays |= {f"{row}.{name}": counts for name, counts in tally.to_arrays().items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    path = _block_file(folder, plan, number)
    make_folder(path.parent)
    return write_atomically(path, buffer.getvalue())


def merge_blocks(folder: Path, plan: Plan, digest: str) -> tuple[list[Tally], float]:
    """Adds up all blocks of a data set.

    Args:
        folder: of the evaluation.
        plan: of the data set; none of its blocks is missing.
        digest: what `check_setting` returned.

    Returns:
        One tally a row of the plan, and the seconds of all blocks together.

    Raises:
        DataError: a block is damaged, or of another evaluation.
    """
    totals, seconds = plan.tallies(), 0.0
    for number in range(len(plan.blocks)):
        path = _block_file(folder, plan, number)
        parts = plan.tallies()
        try:
            with np.load(path, allow_pickle=False) as arrays:
                same = str(arrays["digest"]) == digest
                seconds += float(arrays["seconds"])
                for row, part in enumerate(parts if same else []):
                    part.load_arrays({name: arrays[f"{row}.{name}"] for name in part.to_arrays()})
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: is damaged; delete it and run the same command again") from error
        if not same:
            raise DataError(f"{path}: is of another evaluation; delete it and run the same command again")
        totals = [total.merge(part) for total, part in zip(totals, parts, strict=True)]
    return totals, seconds


def _describe_set(plan: Plan) -> dict[str, Any]:
    data = plan.dataset
    return {
        "photos": len(plan.photos),
        "photo names": _hash([data.stems[index] for index in plan.photos]),
        "classes": len(data.class_names),
        "class names": _hash([plan.names, plan.prompt_names, plan.prompt_classes]),
        "ignore_index": data.ignore_index,
        "background": data.background_line0,
        "reference photos": _hash(
            [] if plan.pool is None else [[k, [plan.pool.stems[i] for i in drawn]] for k, drawn in plan.drawn.items()]
        ),
        "options": dataclasses.asdict(plan.config),
    }


def _block_file(folder: Path, plan: Plan, number: int) -> Path:
    return folder / _BLOCKS / plan.name / f"{number:05d}.npz"


def _bank_fingerprint(bank: PictureBank) -> str:
    rows = bank.to_bank() if isinstance(bank, BankStore) else bank
    assert isinstance(rows, Bank), "an evaluation opens banks by their place"
    return weights_fingerprint(_hash(rows.names), [rows.text, rows.dense, *rows.stages])


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _first_difference(before: Any, now: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """Returns the first value that differs, with its keys joined by dots, or None."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in [*now, *(name for name in before if name not in now)]:
            found = _first_difference(before.get(name), now.get(name), f"{key}.{name}" if key else name)
            if found is not None:
                return found
        return None
    return None if before == now else (key, before, now)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
