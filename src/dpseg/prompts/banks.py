"""Any bank of visual prompts, in one file or in a folder, and several that are asked in turn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from dpseg.errors import WeightsError
from dpseg.prompts.bank import Bank, BankMatch
from dpseg.prompts.bank_index import HEAD_FILE
from dpseg.prompts.bank_store import BankStore

BANK_FILE = "bank.safetensors"
"""The bank beside a model."""


class PictureBank(Protocol):
    """What a bank of either kind offers."""

    @property
    def encoder(self) -> str:
        """Fingerprint of the encoder that made its features."""
        ...

    def lookup(self, text_features: Tensor, top: int = 3, floor: float = 0.8) -> BankMatch:
        """See `Bank.lookup`."""
        ...


@dataclass(frozen=True)
class BankChain:
    """Banks that are asked in turn: a class gets what the first has that knows a name near enough.

    Attributes:
        banks: one at least, all of one encoder.
    """

    banks: tuple[PictureBank, ...]

    @property
    def encoder(self) -> str:
        """Fingerprint of the encoder that made their features."""
        return self.banks[0].encoder

    def lookup(self, text_features: Tensor, top: int = 3, floor: float = 0.8) -> BankMatch:
        """See `Bank.lookup`; no class is blended from several banks."""
        match = self.banks[0].lookup(text_features, top, floor)
        for bank in self.banks[1:]:
            missing = (~match.found).nonzero()[:, 0]
            if len(missing):
                match = _fill(match, missing, bank.lookup(text_features[missing.to(text_features.device)], top, floor))
        return match


def chain(*banks: PictureBank | None) -> PictureBank | None:
    """Returns one bank for several; None where all are None."""
    there = tuple(bank for bank in banks if bank is not None)
    return there[0] if len(there) == 1 else BankChain(there) if there else None


def open_bank(place: str | Path) -> Bank | BankStore:
    """Opens a bank: its folder, its file, or a model's folder that holds that file.

    Raises:
        WeightsError: There is none, or it is damaged.
    """
    place = Path(place).expanduser()
    if place.is_dir():
        beside = place / BANK_FILE
        return Bank.load(beside) if beside.is_file() and not (place / HEAD_FILE).is_file() else BankStore(place)
    return Bank.load(place)


def check_encoder(encoder: str, *banks: PictureBank | None) -> None:
    """Checks that banks go with a model.

    Args:
        encoder: fingerprint of the model's encoder.
        *banks: None is fine.

    Raises:
        WeightsError: A bank was made with another encoder.
    """
    for bank in banks:
        if bank is not None and bank.encoder != encoder:
            raise WeightsError(
                f"the bank was made with the encoder {bank.encoder!r}, the model has {encoder!r}; make it again with"
                " this model"
            )


def _fill(match: BankMatch, rows: Tensor, more: BankMatch) -> BankMatch:
    """Returns `match` with what `more` has for some of its classes, rows (C,)."""

    def put(old: Tensor, new: Tensor) -> Tensor:
        return old.index_copy(0, rows, new.to(old))

    s2, s3, s4 = (put(old, new) for old, new in zip(match.stages, more.stages, strict=True))
    names, weights = list(match.names), list(match.weights)
    for number, row in enumerate(rows.tolist()):
        names[row], weights[row] = more.names[number], more.weights[number]
    found = match.found.index_copy(0, rows, more.found.to(torch.bool))
    return BankMatch(found, put(match.dense, more.dense), (s2, s3, s4), tuple(names), tuple(weights))
