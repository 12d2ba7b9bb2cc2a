"""What a run is, and what of it is finished.

OUT/manifest.json  all that decides the results, and how the pictures were cut in blocks
OUT/parts/part-00000000.parquet
                   one block; that it is there means that it is finished
OUT/labels/KEY.png label maps, where they are wanted; written before the part of their block
OUT/broken.jsonl   pictures that could not be read, written anew at the end of each run

Blocks are runs of so many pictures in the order of their keys: the same pictures whoever segments them, and whenever.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from dpseg import __version__
from dpseg.batch.rows import decode_errors
from dpseg.batch.sources import Item
from dpseg.batch.store import Store
from dpseg.errors import ConfigError, OutputError
from dpseg.model.fingerprint import weights_fingerprint
from dpseg.prompts.prompt_set import PromptSet
from dpseg.segmenter import Segmenter

MANIFEST, PARTS, LABELS, BROKEN = "manifest.json", "parts", "labels", "broken.jsonl"

_PART = re.compile(r"part-(\d{8})\.parquet")
_READERS = 16  # parts that are read at a time: most of the time is waiting


def part_name(number: int) -> str:
    """Returns the name of a block's part.

    Args:
        number: of the block, from 0.
    """
    return f"{PARTS}/part-{number:08d}.parquet"


def cut(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """Cuts pictures in blocks.

    Args:
        items: sorted.
        size: pictures a block, 1 or more; the last has fewer.
    """
    return [items[start : start + size] for start in range(0, len(items), size)]


def describe(
    segmenter: Segmenter, prompts: PromptSet, items: Sequence[Item], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what a run is, as JSON values.

    Pictures are known by their keys, so that they and the results may be moved together; their content is not read.

    Args:
        segmenter: the model.
        prompts: the classes.
        items: all pictures, sorted.
        options: what else decides the results, as JSON values.
    """
    model = segmenter.model
    described = {
        "dpseg": __version__,
        "pictures": len(items),
        "list": _hash_keys(items),
        "names": prompts.names,
        "prompts": _hash_prompts(prompts),
        "weights": weights_fingerprint(model.encoder.fingerprint, model.saved_state().values()),
        "model": {**dataclasses.asdict(model.config), "precision": model.precision},
        "refinement": dataclasses.asdict(segmenter.refinement),
        **options,
    }
    plain: dict[str, Any] = json.loads(json.dumps(described))
    return plain


def check_manifest(store: Store, described: Mapping[str, Any]) -> None:
    """Writes what a run is into its folder, or checks that the folder is of the very same.

    Raises:
        ConfigError: the folder is of another run; the first difference is named.
        OutputError: it cannot be read or written.
    """
    data = store.read(MANIFEST)
    if data is None:
        if finished_blocks(store):
            raise ConfigError(f"{store.address}: holds parts without {MANIFEST}; choose another --out")
        store.write(MANIFEST, (json.dumps(described, ensure_ascii=False, indent=1) + "\n").encode())
        return
    try:
        before = dict(json.loads(data))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{store.address}/{MANIFEST}: is damaged; choose another --out") from error
    for name in [*described, *before]:
        if before.get(name) != described.get(name):
            raise ConfigError(
                f"{store.address}: holds another run: {name} was {_short(before.get(name))}, now it is"
                f" {_short(described.get(name))}; choose another --out, or delete that folder"
            )


def finished_blocks(store: Store) -> set[int]:
    """Returns the numbers of the blocks whose parts are there."""
    matches = (_PART.fullmatch(name) for name in store.names(PARTS))
    return {int(match[1]) for match in matches if match}


def read_errors(store: Store, numbers: Sequence[int]) -> Iterator[tuple[int, list[tuple[str, str | None]]]]:
    """Reads the parts of some blocks.

    Args:
        store: of the results.
        numbers: of the blocks.

    Yields:
        For each block its number, and for each of its pictures the key and why it could not be read, or None.

    Raises:
        OutputError: a part is missing or damaged.
    """

    def read(number: int) -> list[tuple[str, str | None]]:
        name = f"{store.address}/{part_name(number)}"
        data = store.read(part_name(number))
        if data is None:
            raise OutputError(f"{name}: is missing, although its block was finished; run the same command again")
        return decode_errors(data, name)

    with ThreadPoolExecutor(_READERS) as pool:
        yield from zip(numbers, pool.map(read, numbers), strict=True)


def forget_broken(store: Store, finished: set[int]) -> set[int]:
    """Deletes the parts of blocks with pictures that could not be read, so that these blocks are segmented again.

    Args:
        store: of the results.
        finished: numbers of the blocks that are finished.

    Returns:
        Those that still are.
    """
    broken = [number for number, rows in read_errors(store, sorted(finished)) if any(error for _, error in rows)]
    for number in broken:
        store.delete(part_name(number))
    return finished - set(broken)


def list_broken(store: Store, blocks: int) -> list[tuple[str, str]]:
    """Collects the pictures that could not be read, once all blocks are finished, and writes BROKEN.

    Args:
        store: of the results.
        blocks: how many there are.

    Returns:
        The keys, sorted, and the reasons.

    Raises:
        OutputError: a part is missing or damaged, or the list cannot be written.
    """
    broken = [(key, error) for _, rows in read_errors(store, range(blocks)) for key, error in rows if error is not None]
    lines = (json.dumps({"key": key, "error": error}, ensure_ascii=False) + "\n" for key, error in broken)
    store.write(BROKEN, "".join(lines).encode())
    return broken


def _hash_keys(items: Sequence[Item]) -> str:
    digest = hashlib.sha256()
    for item in items:
        digest.update(item.key.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()[:16]


def _hash_prompts(prompts: PromptSet) -> str:
    digest = hashlib.sha256(json.dumps(prompts.names).encode())
    for tensor in prompts.embeddings.tensors().values():
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
