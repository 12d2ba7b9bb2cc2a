"""Pictures on their way into a bank: found, read, encoded where they are not in it yet, added a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dpseg.cache import content_key
from dpseg.data.pictures import PictureSet
from dpseg.errors import DPSegError
from dpseg.lookahead import look_ahead
from dpseg.model.encoders import Encoder
from dpseg.model.prompt_encoding import CROP_BATCH, encoder_device, name_features
from dpseg.prompts.bank_contents import BankEntry, picture_key
from dpseg.prompts.bank_segment import BankHead
from dpseg.prompts.bank_store import BankStore
from dpseg.prompts.text import parse_class
from dpseg.prompts.visual import Reference, parse_reference
from dpseg.segmenter import Segmenter

FLUSH = 16
"""So many pictures are encoded and added at a time: what a kill can lose."""

_WAITING = 4  # pictures that are read ahead

Row = tuple[Tensor, tuple[Tensor, Tensor, Tensor]]
"""Features of a picture, (F,) and three (D_j,), in half precision."""


@dataclass(frozen=True, eq=False)
class NamedPicture:
    """A picture for a bank.

    Attributes:
        name: what it shows.
        reference: the picture, and where in it the thing is.
        source: how it was given.
    """

    name: str
    reference: Reference
    source: str


@dataclass(frozen=True, eq=False)
class ReadPicture:
    """A picture that was read.

    Attributes:
        name: what it shows.
        source: how it was given.
        key: of its content.
        crop: for the encoder, (3, s, s), and its mask (s, s); None: the bank has its features.
    """

    name: str
    source: str
    key: str
    crop: tuple[Tensor, Tensor] | None


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


def folder_pictures(folder: Path) -> list[NamedPicture]:
    """Lists FOLDER/NAME/PICTURE.jpg; underscores in NAME stand for spaces.

    Raises:
        DataError: there is no such folder, or it holds no such pictures.
    """
    found = PictureSet(folder)
    names = [parse_class(name).name for name in found.class_names]
    return [
        NamedPicture(names[found.shown(index)], Reference(path), str(path))
        for index, path in enumerate(found.image_paths)
    ]


def reference_pictures(references: Sequence[str]) -> list[NamedPicture]:
    """Reads NAME=PICTURE, NAME=PICTURE:MASK or NAME=PICTURE:x0,y0,x1,y1; no file is opened yet.

    Raises:
        PromptError: one is not of this form.
    """
    found = []
    for text in references:
        name, reference = parse_reference(text)
        found.append(NamedPicture(parse_class(name).name, reference, text.partition("=")[2].strip()))
    return found


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
        encoder: of the model.
        count: what became of the pictures so far.
    """

    def __init__(self, store: BankStore, segmenter: Segmenter, license_text: str = "") -> None:
        """Takes a bank and the model that it was made with; `license_text` goes with every entry."""
        self.store, self.count = store, AddCount()
        self._segmenter, self._license = segmenter, license_text
        self.encoder: Encoder = segmenter.model.encoder
        self._fingerprint = self.encoder.fingerprint
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
                elif (read.key, read.name) in self.store:
                    self.count.there += 1
                else:
                    waiting.append(read)
                if len(waiting) >= FLUSH:
                    full, waiting = waiting, []
                    self.add(full, self.encode(full))
                step()
        finally:  # also when the user stops it
            if waiting:
                self.add(waiting, self.encode(waiting))

    def read(self, picture: NamedPicture) -> ReadPicture:
        """Reads a picture.

        Raises:
            DPSegError: it or its mask cannot be read, or do not go together.
        """
        image, mask = picture.reference.read()
        key = picture_key(self._fingerprint, image, mask)
        known = self.store.features(key) is not None
        crop = None if known else Reference(image, mask=mask).crop(self.encoder.crop_size)
        return ReadPicture(picture.name, picture.source, key, crop)

    def encode(self, pictures: Sequence[ReadPicture], cached: bool = False) -> list[Row]:
        """Returns features of pictures: the bank's, or else encoded.

        Args:
            pictures: N.
            cached: keep features on disk also of pictures that are not added, so that they are encoded once.
        """
        rows: dict[str, Row] = {}
        keys = {picture.key: content_key("bank", picture.key) for picture in pictures}
        kept = self._segmenter.cache.get_many(self._fingerprint, list(keys.values())) if cached else {}
        for key, name in keys.items():
            stored = self.store.features(key)
            if stored is not None:
                rows[key] = stored
            elif name in kept:
                rows[key] = _split(kept[name], self.store.head)
        missing = {one.key: one.crop for one in pictures if one.key not in rows and one.crop is not None}
        fresh = dict(zip(missing, encode_crops(self.encoder, list(missing.values())), strict=True))
        if cached and fresh:
            packed = {keys[key]: torch.cat([dense, *stages]) for key, (dense, stages) in fresh.items()}
            self._segmenter.cache.put_many(self._fingerprint, packed)
        rows |= fresh
        return [rows[picture.key] for picture in pictures]

    def add(self, pictures: Sequence[ReadPicture], rows: Sequence[Row]) -> None:
        """Adds pictures with their features, in one step."""
        for name in {picture.name for picture in pictures} - self._text.keys():
            self._text[name] = name_features(self.encoder, [parse_class(name)], self._segmenter.cache)[0]
        entries = [BankEntry(one.key, one.name, one.source, self._license) for one in pictures]
        s2, s3, s4 = (torch.stack([stages[j] for _, stages in rows]) for j in range(3))
        added = self.store.add(entries, torch.stack([dense for dense, _ in rows]), (s2, s3, s4), self._text)
        self.count.added += added
        self.count.there += len(entries) - added

    def _try_read(self, picture: NamedPicture) -> ReadPicture | DPSegError:
        try:
            return self.read(picture)
        except DPSegError as error:
            return error


def encode_crops(encoder: Encoder, crops: Sequence[tuple[Tensor, Tensor]]) -> list[Row]:
    """Encodes prompt pictures as a bank keeps them, before any projection that training changes.

    Args:
        encoder: whose frozen visual prompt encoder.
        crops: N pairs of a picture (3, s, s), RGB in [0, 1], and its mask (s, s) in [0, 1].
    """
    device = encoder_device(encoder)
    size = 1 if device.type == "cpu" else CROP_BATCH
    rows: list[Row] = []
    for start in range(0, len(crops), size):
        batch = crops[start : start + size]
        features = encoder.visual_features(
            torch.stack([crop for crop, _ in batch]).to(device), torch.stack([mask for _, mask in batch]).to(device)
        )
        dense, (s2, s3, s4) = features.dense.half().cpu(), (stage.half().cpu() for stage in features.stages)
        rows += [(dense[n], (s2[n], s3[n], s4[n])) for n in range(len(batch))]
    return rows


def _split(packed: Tensor, head: BankHead) -> Row:
    dense, s2, s3, s4 = packed.split(head.sizes)
    return dense, (s2, s3, s4)
