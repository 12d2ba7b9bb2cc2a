"""Any bank of visual prompts, in one file or in a folder, and several that are asked in turn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, get_args

import torch
from torch import Tensor

from dpseg.config import FeaturePrompts
from dpseg.errors import ConfigError, WeightsError, did_you_mean
from dpseg.prompts.bank import Bank, BankMatch
from dpseg.prompts.bank_index import HEAD_FILE
from dpseg.prompts.bank_store import BankStore
from dpseg.prompts.regressor import FeatureRegressor

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


@dataclass(frozen=True)
class RegressedBank:
    """What a regression on banks makes of words; it is fitted when it is first asked.

    Attributes:
        banks: one at least, all of one encoder.
    """

    banks: tuple[Bank | BankStore, ...]

    @property
    def encoder(self) -> str:
        """Fingerprint of the encoder that made their features."""
        return self.banks[0].encoder

    @cached_property
    def regressor(self) -> FeatureRegressor:
        """The regression, fitted on what the banks hold now.

        Raises:
            PromptError: They have too few names.
        """
        return FeatureRegressor.fit(*(bank.to_bank() if isinstance(bank, BankStore) else bank for bank in self.banks))

    def lookup(self, text_features: Tensor, top: int = 3, floor: float = 0.8) -> BankMatch:
        """See `FeatureRegressor.lookup`."""
        return self.regressor.lookup(text_features, top, floor)


def feature_bank(kind: FeaturePrompts, *banks: PictureBank | None) -> PictureBank | None:
    """Returns what gives pictures to words that come without; None where nothing does.

    Args:
        kind: whether it blends the banks' pictures, and whether it regresses where they know nothing.
        *banks: asked in turn; None is fine.

    Raises:
        ConfigError: The kind is unknown; or it is to regress, and there is no bank with pictures.
    """
    if kind not in (kinds := get_args(FeaturePrompts)):
        raise ConfigError(f"feature prompts {kind!r} are unknown; {did_you_mean(kind, kinds)}")
    if kind == "off":
        return None
    if kind == "blend":
        return chain(*banks)
    full = tuple(bank for bank in banks if isinstance(bank, Bank | BankStore) and len(bank))
    if not full:
        raise ConfigError(
            "feature prompts are to be regressed, and there is no bank with pictures; give one, or choose off or blend"
        )
    return chain(*banks, RegressedBank(full))


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
    names, weights, sources = list(match.names), list(match.weights), list(match.sources)
    for number, row in enumerate(rows.tolist()):
        names[row], weights[row], sources[row] = more.names[number], more.weights[number], more.sources[number]
    found = match.found.index_copy(0, rows, more.found.to(torch.bool))
    return BankMatch(found, put(match.dense, more.dense), (s2, s3, s4), tuple(names), tuple(weights), tuple(sources))
