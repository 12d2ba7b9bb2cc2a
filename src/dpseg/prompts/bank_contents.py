"""Which entries of a bank's open segments count, by picture and by name; their averages and their text features."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dpseg.cache import content_key
from dpseg.config import Context
from dpseg.errors import PromptError
from dpseg.prompts.bank import Bank
from dpseg.prompts.bank_segment import FEATURES, BankHead, EntryTable, Segment, new_id

Place = tuple[int, int]
"""Where an entry is: the number of its segment, and its row there."""

_KEY_DIGITS = 8  # of a key, at least, to name a picture by it
_CHUNK = 2048  # rows that are averaged at a time


@dataclass(frozen=True)
class BankEntry:
    """A picture under a name.

    Attributes:
        key: hash of what was encoded, from `picture_key`.
        name: what it shows.
        source: the file's name as it was given.
        license: of the picture; may be empty.
        when: time at which it was added, ISO 8601, UTC; empty: now.
    """

    key: str
    name: str
    source: str = ""
    license: str = ""
    when: str = ""


def picture_key(encoder: str, image: Image.Image, mask: NDArray[np.bool_] | None, context: Context = "keep") -> str:
    """Returns a key for what is encoded of a picture, 64 hexadecimal digits.

    Args:
        encoder: fingerprint of the encoder.
        image: RGB.
        mask: (H, W), where in it the thing is; None: the whole picture.
        context: what surrounds the thing in the crop; of a whole picture, it does not count.
    """
    where = b"" if mask is None else np.packbits(mask).tobytes()
    around = () if mask is None or context == "keep" else (context,)
    return content_key(encoder, "picture", f"{image.width} x {image.height}", image.tobytes(), where, *around)


class BankContents:
    """The entries that count. One picture under one name counts once, however often it was written.

    Attributes:
        head: the bank's.
        segments: those that are open, by number.
        removed: ids of entries that do not count.
        places: (key, name) -> where the entry is.
        by_key: key -> where an entry of that picture is.
        by_name: name -> where its entries are, N names.
    """

    def __init__(self, head: BankHead, segments: Sequence[Segment], removed: Collection[str]) -> None:
        self.head, self.removed = head, removed
        self.segments: list[Segment] = []
        self.places: dict[tuple[str, str], Place] = {}
        self.by_key: dict[str, Place] = {}
        self.by_name: dict[str, list[Place]] = {}
        self._text_rows: list[int] = []  # of each name, counted over the text features of all segments
        self._names_before = 0
        for segment in segments:
            self.add(segment)

    def add(self, segment: Segment) -> None:
        """Takes one more segment."""
        number, table = len(self.segments), segment.table
        self.segments.append(segment)  # first, for a thread that reads meanwhile
        for row, (identity, key, owner) in enumerate(zip(table.ids, table.keys, table.owners, strict=True)):
            name = table.names[owner]
            if identity in self.removed or (key, name) in self.places:
                continue
            place = number, row
            self.places[key, name] = place
            self.by_key.setdefault(key, place)
            if name not in self.by_name:
                self.by_name[name] = []
                self._text_rows.append(self._names_before + owner)
            self.by_name[name].append(place)
        self._names_before += len(table.names)

    def entry(self, place: Place) -> BankEntry:
        """Returns who the entry at a place is."""
        number, row = place
        table = self.segments[number].table
        return BankEntry(
            key=table.keys[row],
            name=table.names[table.owners[row]],
            source=table.sources[row],
            license=table.licenses[row],
            when=table.when[row],
        )

    def features(self, place: Place) -> list[NDArray[Any]]:
        """Returns the features at a place in the order of `FEATURES`, (F,) and (D_j,), float16."""
        number, row = place
        return [self.segments[number].arrays[part][row] for part in FEATURES]

    def text(self, name: str) -> NDArray[np.float32]:
        """Returns a name's text features, (F_t,), a unit vector."""
        return self._text_at(self.by_name[name][0])

    def cosines(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compares K unit vectors (K, F_t) with the text features of all names: (N, K)."""
        if not self.by_name:
            return np.zeros((0, len(queries)), dtype=np.float32)
        turned = np.ascontiguousarray(queries.T)
        compared = [segment.arrays["text"] @ turned for segment in self.segments]
        return np.concatenate(compared)[np.array(self._text_rows, dtype=np.intp)]

    def means(self, names: Sequence[str]) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Averages the pictures of each of C names: (C, F) and three tensors (C, D_j), float32."""
        sums = {part: torch.zeros(len(names), size) for part, size in zip(FEATURES, self.head.sizes, strict=True)}
        wanted: dict[int, tuple[list[int], list[int]]] = {}  # segment -> rows, and the names that they belong to
        for owner, name in enumerate(names):
            for number, row in self.by_name[name]:
                rows, owners = wanted.setdefault(number, ([], []))
                rows.append(row)
                owners.append(owner)
        for number, (rows, owners) in wanted.items():
            for start in range(0, len(rows), _CHUNK):
                part_rows, part_owners = rows[start : start + _CHUNK], torch.tensor(owners[start : start + _CHUNK])
                for part, total in sums.items():
                    values = self.segments[number].arrays[part][part_rows].astype(np.float32)
                    total.index_add_(0, part_owners, torch.from_numpy(values))
        counts = torch.tensor([float(len(self.by_name[name])) for name in names])[:, None]
        dense, s2, s3, s4 = (sums[part] / counts for part in FEATURES)
        return dense, (s2, s3, s4)

    def collect(self, places: Sequence[Place], fresh: bool) -> tuple[EntryTable, dict[str, NDArray[Any]]]:
        """Returns entries as a new segment has them: who they are, and a copy of their features.

        Args:
            places: of the entries.
            fresh: give them new ids.
        """
        places = sorted(places)
        rows: dict[int, list[int]] = {}
        for number, row in places:
            rows.setdefault(number, []).append(row)
        entries = [self.entry(place) for place in places]
        kept = [self.segments[number].table.ids[row] for number, row in places]
        table = entry_table(entries, [new_id() for _ in kept] if fresh else kept)
        first = {entry.name: place for entry, place in zip(reversed(entries), reversed(places), strict=True)}
        words = [self._text_at(first[name]) for name in table.names]
        text = np.stack(words) if words else np.zeros((0, self.head.text), np.float32)
        arrays: dict[str, NDArray[Any]] = {"text": text}
        for part, size in zip(FEATURES, self.head.sizes, strict=True):
            picked = [self.segments[number].arrays[part][chosen] for number, chosen in rows.items()]
            arrays[part] = np.concatenate([*picked, np.zeros((0, size), np.float16)])
        return table, arrays

    def find(self, name: str | None, key: str | None) -> list[tuple[str, str, str]]:
        """Returns (id, key, name) of entries that count, and of what else was written of the same.

        Args:
            name: theirs; None: any.
            key: that of one picture, or the first eight digits of it at least; None: any.

        Raises:
            PromptError: Neither is given, the digits are too few or those of several pictures, or there is none such.
        """
        if name is None and key is None:
            raise PromptError("neither a name nor a key is given; say what to remove")
        if key is not None and len(key) < _KEY_DIGITS:
            raise PromptError(f"key {key!r} is too short; give {_KEY_DIGITS} digits or more")
        found = []
        for segment in self.segments:
            table = segment.table
            for identity, own_key, owner in zip(table.ids, table.keys, table.owners, strict=True):
                own_name = table.names[owner]
                if name in (None, own_name) and own_key.startswith(key or "") and identity not in self.removed:
                    found.append((identity, own_key, own_name))
        if key is not None and len({own_key for _, own_key, _ in found}) > 1:
            raise PromptError(f"key {key!r} is that of several pictures; give more of its digits")
        if not found:
            raise PromptError(f"no picture has the key {key!r}; see the keys with: dpseg prompts bank list --name NAME")
        return found

    def _text_at(self, place: Place) -> NDArray[np.float32]:
        segment = self.segments[place[0]]
        return np.asarray(segment.arrays["text"][segment.table.owners[place[1]]])


def entry_table(entries: Sequence[BankEntry], ids: Sequence[str]) -> EntryTable:
    """Returns entries as columns, without checksums."""
    names = {name: number for number, name in enumerate(dict.fromkeys(entry.name for entry in entries))}
    return EntryTable(
        names=list(names),
        name_checksums=[],
        ids=list(ids),
        keys=[entry.key for entry in entries],
        owners=[names[entry.name] for entry in entries],
        sources=[entry.source for entry in entries],
        licenses=[entry.license for entry in entries],
        when=[entry.when for entry in entries],
        checksums=[],
    )


def head_of(bank: Bank) -> BankHead:
    """Returns the head of a folder that can take the rows of a bank in one file."""
    d2, d3, d4 = (stage.shape[1] for stage in bank.stages)
    return BankHead(bank.encoder, bank.text.shape[1], bank.dense.shape[1], (d2, d3, d4))


def bank_entries(bank: Bank, source: str) -> list[BankEntry]:
    """Returns who the rows of a bank in one file are; of their pictures nothing is known, so features make the key."""
    parts = [part.detach().cpu().half().numpy() for part in (bank.dense, *bank.stages)]
    return [
        BankEntry(content_key(bank.encoder, "features", *(part[row].tobytes() for part in parts)), name, source)
        for row, name in enumerate(bank.names)
    ]
