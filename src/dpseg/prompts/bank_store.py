"""A bank in a folder: the features of many pictures by name, added and removed at any time, looked up by meaning.

An entry is a picture under a name. Its key is a hash of what is encoded: the encoder, the picture's pixels, and where
in it the thing is; so a picture is known again whatever its file is called. `prompts.bank_index` says how the folder is
kept. Features are read in place from the disk: a large bank opens quickly and takes little memory.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dpseg.errors import PromptError, WeightsError, did_you_mean
from dpseg.prompts.bank import Bank, BankMatch
from dpseg.prompts.bank_contents import BankContents, BankEntry, bank_entries, entry_table, head_of
from dpseg.prompts.bank_index import HEAD_FILE, SEGMENTS, read_head, read_snapshot, write_head, write_removal
from dpseg.prompts.bank_lookup import Neighbour, averages, blend, nearest
from dpseg.prompts.bank_rewrite import SEGMENT_ROWS, compact, roll_up
from dpseg.prompts.bank_segment import FEATURES, Arrays, BankHead, EntryTable, new_id, write_segment


class BankStore:
    """A bank in a folder. Processes may read and write it at once; what another wrote is seen after `refresh`.

    Attributes:
        folder: where.
        head: the encoder, and the sizes of its features.
        damages: what could not be read, a line each; only where it was opened to be salvaged.
    """

    def __init__(self, folder: str | Path, salvage: bool = False) -> None:
        """Opens a bank.

        Args:
            folder: where it is.
            salvage: go on without what is damaged.

        Raises:
            WeightsError: There is none, it is of a newer version, or a part is damaged.
        """
        self.folder = Path(folder)
        self.head = read_head(self.folder, salvage)
        self._salvage = salvage
        self._snapshot = read_snapshot(self.folder, self.head, {}, salvage)
        self._contents = BankContents(self.head, self._snapshot.segments, self._snapshot.removed)
        self.damages = self._snapshot.damages

    @classmethod
    def create(cls, folder: str | Path, head: BankHead) -> BankStore:
        """Opens a bank, and makes it where there is none.

        Raises:
            WeightsError: It is of another encoder, damaged, or the folder holds something else.
            OutputError: It cannot be written.
        """
        folder = Path(folder)
        if not (folder / HEAD_FILE).is_file():
            write_head(folder, head)
        store = cls(folder)
        if store.head != head:
            raise WeightsError(
                f"{folder}: was made with the encoder {store.encoder!r}, not {head.encoder!r}; name another folder,"
                " or use the model that it was made with"
            )
        return store

    @classmethod
    def from_bank(cls, folder: str | Path, bank: Bank, source: str = "") -> BankStore:
        """Opens or makes a bank in a folder and adds the rows of a bank in one file.

        The arguments and errors are those of `create` and `add_bank`.
        """
        store = cls.create(folder, head_of(bank))
        store.add_bank(bank, source)
        return store

    @property
    def encoder(self) -> str:
        """Fingerprint of the encoder that made its features."""
        return self.head.encoder

    @property
    def names(self) -> tuple[str, ...]:
        """N distinct names."""
        return tuple(self._contents.by_name)

    def __len__(self) -> int:
        """The number of entries."""
        return len(self._contents.places)

    def __contains__(self, entry: tuple[str, str]) -> bool:
        """Whether there is an entry of that key and name."""
        return entry in self._contents.places

    def entries(self, name: str | None = None) -> Iterator[BankEntry]:
        """Yields all entries, or those of a name.

        Raises:
            PromptError: There is no such name.
        """
        if name is not None:
            self._check_name(name)
        for own in self.names if name is None else (name,):
            for place in self._contents.by_name[own]:
                yield self._contents.entry(place)

    def features(self, key: str) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]] | None:
        """Returns a picture's features under whatever name, half (F,) and three (D_j,); None: it is not there."""
        contents = self._contents  # another thread may replace it
        place = contents.by_key.get(key)
        if place is None:
            return None
        dense, s2, s3, s4 = (torch.from_numpy(row.copy()) for row in contents.features(place))
        return dense, (s2, s3, s4)

    def refresh(self) -> None:
        """Looks for what other processes wrote.

        Raises:
            WeightsError: A part is damaged.
        """
        old = self._snapshot
        known = {segment.id: segment for segment in self._contents.segments}
        new = read_snapshot(self.folder, self.head, known, self._salvage)
        if new.removed == old.removed and {segment.id for segment in new.segments} >= known.keys():
            for segment in new.segments:
                if segment.id not in known:
                    self._contents.add(segment)
        else:
            self._contents = BankContents(self.head, new.segments, new.removed)
        self._snapshot, self.damages = new, new.damages

    def add(
        self, entries: Sequence[BankEntry], dense: Tensor, stages: Sequence[Tensor], text: Mapping[str, Tensor]
    ) -> int:
        """Adds entries, all in one step: they are there or not, whenever the process is killed.

        Args:
            entries: N; those that are there already are passed over.
            dense: (N, F), as `VisualFeatures.dense`. Features are kept in half precision.
            stages: three tensors (N, D_j), as `VisualFeatures.stages`.
            text: name -> (F_t,) text features of any length; names that the bank has need none.

        Returns:
            How many were added.

        Raises:
            WeightsError: Features are of another size than the bank's, or are no finite numbers of half precision.
            OutputError: They cannot be written.
        """
        parts = dict(zip(FEATURES, (dense, *stages), strict=True))
        arrays: dict[str, NDArray[Any]] = {name: part.detach().cpu().half().numpy() for name, part in parts.items()}
        sizes = {name: (len(entries), size) for name, size in zip(FEATURES, self.head.sizes, strict=True)}
        if any(arrays[name].shape != shape for name, shape in sizes.items()):
            raise WeightsError(f"features of another size than those of {self.folder}; use the model it was made with")
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise WeightsError("features beyond half precision, or no numbers, cannot be kept; check the model")
        new = {(entry.key, entry.name): row for row, entry in reversed(list(enumerate(entries)))}
        rows = sorted(row for pair, row in new.items() if pair not in self)
        if not rows:
            return 0
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        chosen = [replace(entries[row], when=entries[row].when or now) for row in rows]
        table = entry_table(chosen, [new_id() for _ in rows])
        words = [self._text_of(name, text) for name in table.names]
        self._write(table, {"text": np.stack(words), **{name: array[rows] for name, array in arrays.items()}})
        return len(rows)

    def add_bank(self, bank: Bank, source: str = "") -> int:
        """Adds the rows of a bank in one file, and returns how many were new.

        Args:
            bank: of the same encoder.
            source: where it comes from.

        Raises:
            WeightsError: It is of another encoder.
            OutputError: The rows cannot be written.
        """
        if head_of(bank) != self.head:
            raise WeightsError(f"the bank {source or ''} is of the encoder {bank.encoder!r}, not {self.encoder!r}")
        entries = bank_entries(bank, source)
        return self.add(entries, bank.dense, bank.stages, dict(zip(bank.names, bank.text, strict=True)))

    def merge(self, other: BankStore) -> tuple[int, int]:
        """Adds the entries of another bank; each is compared with its checksum.

        Returns:
            How many were added, and how many were left out because they are damaged.

        Raises:
            WeightsError: It is of another encoder.
            OutputError: They cannot be written.
        """
        if other.head != self.head:
            raise WeightsError(
                f"{other.folder} is of the encoder {other.encoder!r}, {self.folder} of {self.encoder!r}; banks of"
                " several encoders cannot be merged, add the pictures with one model"
            )
        theirs = other._contents
        places = [place for pair, place in theirs.places.items() if pair not in self]
        sound = {number: theirs.segments[number].sound() for number in {number for number, _ in places}}
        good = [(number, row) for number, row in places if sound[number][row]]
        for start in range(0, len(good), SEGMENT_ROWS):
            self._write(*theirs.collect(good[start : start + SEGMENT_ROWS], fresh=True))
        return len(good), len(places) - len(good)

    def remove(self, name: str | None = None, key: str | None = None) -> int:
        """Removes the entries of a name, of a picture, or of both; returns how many.

        Their features stay on the disk until `compact`.

        Args:
            name: as in `names`.
            key: the key of a picture, or the first eight digits of it at least.

        Raises:
            PromptError: There is none such, or the digits are too few.
            OutputError: The note cannot be written.
        """
        self.refresh()
        if name is not None:
            self._check_name(name)
        found = self._contents.find(name, key)
        write_removal(self.folder, [identity for identity, _, _ in found])
        self.refresh()
        return len({(own_key, own_name) for _, own_key, own_name in found})

    def compact(self) -> None:
        """Writes all that counts together, and deletes what does not count.

        Raises:
            WeightsError: A part is damaged.
            OutputError: It cannot be written; what was there stays.
        """
        self.refresh()
        compact(self.folder, self._contents, self._snapshot)
        self.refresh()

    def lookup(self, text_features: Tensor, top: int = 3, floor: float = 0.8) -> BankMatch:
        """Blends, for each class, the names that are nearest in meaning, with the arguments of `Bank.lookup`.

        The pictures of a name are averaged first.

        Raises:
            PromptError: The text features are of another encoder.
        """
        return blend(self._contents, text_features, top, floor)

    def search(self, text_features: Tensor, top: int = 5) -> list[Neighbour]:
        """Returns the names that are nearest in meaning to a word, nearest first.

        Args:
            text_features: (F_t,), any length.
            top: so many.

        Raises:
            PromptError: The text features are of another encoder.
        """
        return nearest(self._contents, text_features, top)

    def to_bank(self) -> Bank:
        """Returns a bank for one file: a row a name, the average of its pictures.

        Raises:
            WeightsError: It is empty.
        """
        if not len(self):
            raise WeightsError(f"{self.folder}: is empty; add pictures first")
        return averages(self._contents, self.names)

    def _check_name(self, name: str) -> None:
        if name in self._contents.by_name:
            return
        near = difflib.get_close_matches(name, self.names, n=3, cutoff=0.5)
        hint = did_you_mean(name, near) if near else f"list them with: dpseg prompts bank list {self.folder}"
        raise PromptError(f"{self.folder} has no pictures of {name!r}; {hint}")

    def _text_of(self, name: str, text: Mapping[str, Tensor]) -> NDArray[np.float32]:
        if name not in text:
            return self._contents.text(name)
        row: NDArray[np.float32] = F.normalize(text[name].detach().cpu().float(), dim=-1).numpy()
        return row

    def _write(self, table: EntryTable, arrays: Arrays) -> None:
        write_segment(self.folder / SEGMENTS, self.head, table, arrays)
        self.refresh()
        if roll_up(self.folder, self._contents, self._snapshot):
            self.refresh()
