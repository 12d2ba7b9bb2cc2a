"""Banks in folders, whose features half precision holds exactly."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from dpseg.prompts.bank_contents import BankEntry
from dpseg.prompts.bank_segment import BankHead
from dpseg.prompts.bank_store import BankStore

HEAD = BankHead("tiny-1", 6, 7, (3, 4, 5))


def rows(count: int, seed: int = 0) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    dense, s2, s3, s4 = (torch.randn(count, size, generator=generator).half().float() for size in HEAD.sizes)
    return dense, (s2, s3, s4)


def words(*names: str) -> dict[str, Tensor]:
    """The same text features for the same name, of any length."""
    return {name: torch.randn(6, generator=torch.Generator().manual_seed(sum(name.encode()))) for name in names}


def fill(folder: Path, *names: str, seed: int = 0) -> BankStore:
    """Adds a picture a name: "<seed>:<number of ten digits>" is its key."""
    store = BankStore.create(folder, HEAD)
    entries = [BankEntry(f"{seed}:{number:010d}", name, f"{name}-{number}.jpg") for number, name in enumerate(names)]
    store.add(entries, *rows(len(names), seed), words(*names))
    return store


def state(bank: BankStore | Path) -> dict[tuple[str, str], tuple[BankEntry, list[float]]]:
    """All that a bank says, by key and name."""
    store = bank if isinstance(bank, BankStore) else BankStore(bank)
    found = {}
    for entry in store.entries():
        features = store.features(entry.key)
        assert features is not None
        found[entry.key, entry.name] = (entry, torch.cat([features[0], *features[1]]).tolist())
    return found


def segments(folder: Path, ending: str = "safetensors") -> list[Path]:
    """The files of a bank's features, or of their indexes, "json"."""
    return sorted((folder / "segments").glob(f"*.{ending}"))


def flip(path: Path, array: str, offset: int = 0) -> None:
    """Changes a bit of an array in a safetensors file."""
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    data[8 + length + int(json.loads(data[8 : 8 + length])[array]["data_offsets"][0]) + offset] ^= 1
    path.write_bytes(data)
