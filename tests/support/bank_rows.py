"""Banks in folders with features that say whose they are, and processes that write them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

import dpseg.prompts.bank_rewrite as rewriting
from dpseg.prompts.bank_contents import BankEntry
from dpseg.prompts.bank_segment import BankHead
from dpseg.prompts.bank_store import BankStore

SOURCE = str(Path(rewriting.__file__).parents[2])
HEAD = BankHead("tiny-1", 6, 7, (3, 4, 5))

# Entry i of every writer is the same: its features are all i, so that a reader can check what it finds.
WRITER = """
import sys, torch
from dpseg.prompts.bank_contents import BankEntry
from dpseg.prompts.bank_segment import BankHead
from dpseg.prompts.bank_store import BankStore
first, last, size = (int(n) for n in sys.argv[2:5])
store = BankStore.create(sys.argv[1], BankHead("tiny-1", 6, size, (3, 4, 5)))
for i in range(first, last):
    rows = [torch.full((1, n), float(i)) for n in (size, 3, 4, 5)]
    text = torch.eye(6)[i % 6] + 0.01 * i
    store.add([BankEntry(f"key {i}", f"name {i % 10}")], rows[0], rows[1:], {f"name {i % 10}": text})
    assert (f"key {i}", f"name {i % 10}") in store
    print(i, flush=True)
"""


def start_writer(folder: Path, first: int, last: int, size: int = 7) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WRITER, str(folder), str(first), str(last), str(size)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def rows(count: int, seed: int = 0) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Features that half precision holds exactly."""
    generator = torch.Generator().manual_seed(seed)
    dense, s2, s3, s4 = (torch.randn(count, size, generator=generator).half().float() for size in HEAD.sizes)
    return dense, (s2, s3, s4)


def words(*names: str) -> dict[str, Tensor]:
    """The same text features for the same name, of any length."""
    return {name: torch.randn(6, generator=torch.Generator().manual_seed(sum(name.encode()))) for name in names}


def fill(folder: Path, names: list[str], seed: int = 0) -> BankStore:
    """Adds a picture a name."""
    store = BankStore.create(folder, HEAD)
    dense, stages = rows(len(names), seed)
    entries = [BankEntry(f"{seed}:{number:010d}", name, f"{name}-{number}.jpg") for number, name in enumerate(names)]
    store.add(entries, dense, stages, words(*names))
    return store


def state(store: BankStore) -> dict[tuple[str, str], tuple[BankEntry, list[float]]]:
    """All that a bank says, by key and name."""
    found = {}
    for entry in store.entries():
        features = store.features(entry.key)
        assert features is not None
        found[entry.key, entry.name] = (entry, torch.cat([features[0], *features[1]]).tolist())
    return found


def segments(folder: Path, ending: str = "safetensors") -> list[Path]:
    return sorted((folder / "segments").glob(f"*.{ending}"))
