"""Pictures on their way into a bank: read, encoded where they are not in it yet, added a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dpseg.data.picture_features import BATCH, PictureEncoder, ReadPicture, Row
from dpseg.data.pictures import NamedPicture
from dpseg.errors import DPSegError
from dpseg.lookahead import look_ahead
from dpseg.model.prompt_encoding import name_features
from dpseg.prompts.bank_contents import BankEntry
from dpseg.prompts.bank_segment import BankHead
from dpseg.prompts.bank_store import BankStore
from dpseg.prompts.text import parse_class
from dpseg.segmenter import Segmenter

_WAITING = 4  # pictures that are read ahead


@dataclass
class AddCount:
    """What became of pictures.

    Attributes:
        added: so many.
        there: so many were in the bank already.
        failed: why others could not be read.
    """

    added: int = 0
    there: int = 0
    failed: list[DPSegError] = field(default_factory=list)


def bank_head(segmenter: Segmenter) -> BankHead:
    """Returns the head of a bank for a model; a blank picture tells the sizes."""
    encoder = segmenter.model.encoder
    blank = torch.zeros(1, 3, encoder.crop_size, encoder.crop_size, device=segmenter.device)
    features = encoder.visual_features(blank)
    d2, d3, d4 = (stage.shape[1] for stage in features.stages)
    text = name_features(encoder, [parse_class("thing")], segmenter.cache)
    return BankHead(encoder.fingerprint, text.shape[1], features.dense.shape[1], (d2, d3, d4))


class BankFiller:
    """Adds pictures to a bank.

    Attributes:
        store: the bank.
        pictures: encodes what the bank does not know.
        count: what became of the pictures so far.
    """

    def __init__(self, store: BankStore, segmenter: Segmenter, license_text: str = "") -> None:
        """Takes a bank and the model that it was made with; `license_text` goes with every entry."""
        self.store, self.count = store, AddCount()
        self.pictures = PictureEncoder(segmenter.model.encoder, segmenter.cache, store.features)
        self._license = license_text
        self._text: dict[str, Tensor] = {}

    def add_all(self, pictures: Iterable[NamedPicture], step: Callable[[], None]) -> None:
        """Reads, encodes and adds pictures; those that cannot be read are counted.

        Args:
            pictures: any number.
            step: called after each.
        """
        waiting: list[ReadPicture] = []
        try:
            for _, read in look_ahead(pictures, self._try_read, _WAITING):
                if isinstance(read, DPSegError):
                    self.count.failed.append(read)
                elif (read.key, read.picture.name) in self.store:
                    self.count.there += 1
                else:
                    waiting.append(read)
                if len(waiting) >= BATCH:
                    full, waiting = waiting, []
                    self.add(full, self.pictures.encode(full))
                step()
        finally:  # also when the user stops it
            if waiting:
                self.add(waiting, self.pictures.encode(waiting))

    def add_best(self, candidates: Sequence[NamedPicture], count: int) -> None:
        """Encodes candidates of a class, the largest first, and adds the best of them, `count` at most, in one step."""
        chosen, rows = self.pictures.best(candidates, count, self.count.failed)
        if chosen:
            self.add(chosen, rows)

    def add(self, pictures: Sequence[ReadPicture], rows: Sequence[Row]) -> None:
        """Adds pictures with their features, in one step."""
        given = [one.picture for one in pictures]
        for name in {picture.name for picture in given} - self._text.keys():
            self._text[name] = name_features(self.pictures.encoder, [parse_class(name)], self.pictures.cache)[0]
        entries = [BankEntry(one.key, one.picture.name, one.picture.source, self._license) for one in pictures]
        s2, s3, s4 = (torch.stack([stages[j] for _, stages in rows]) for j in range(3))
        added = self.store.add(entries, torch.stack([dense for dense, _ in rows]), (s2, s3, s4), self._text)
        self.count.added += added
        self.count.there += len(entries) - added

    def _try_read(self, picture: NamedPicture) -> ReadPicture | DPSegError:
        try:
            return self.pictures.read(picture)
        except DPSegError as error:
            return error
