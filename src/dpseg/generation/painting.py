"""Paints what a plan asks for and a manifest lacks, batch by batch, and judges it."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpseg.files import make_folder, write_atomically
from dpseg.generation.manifest import KEPT, REJECTED, Entry, Manifest
from dpseg.generation.pipeline import Painter, Wishes
from dpseg.generation.plan import Slot
from dpseg.generation.quality import NSFW, Judge, Picture, difference_hash, fault, tidy


@dataclass(frozen=True)
class Rules:
    """What becomes of pictures that failed.

    Attributes:
        min_agreement: as `fault`.
        retries: so many tries more for a picture that is rejected, 0 or more.
        keep_all: keep what still fails after the last try, but for what the safety checker flags.
    """

    min_agreement: float | None = None
    retries: int = 2
    keep_all: bool = False


class Painting:
    """A run: a painter, a judge, and the manifest of what they made.

    All pictures have their first try before any has its second. So which of two near-duplicates is kept depends neither
    on the batch size nor on when a run was stopped and taken up again.

    Attributes:
        manifest: is added to.
        painter: paints.
        judge: knows all classes of the slots.
        wishes: as `Painter.resolve` returned them.
        rules: for what failed.
        seed: from which the pictures' seeds are made, 0 or more.
        about: what each line of the manifest says besides.
    """

    def __init__(
        self,
        manifest: Manifest,
        painter: Painter,
        judge: Judge,
        wishes: Wishes,
        rules: Rules,
        seed: int,
        about: Mapping[str, Any],
    ) -> None:
        """Takes up what the manifest holds."""
        self.manifest = manifest
        self.painter = painter
        self.judge = judge
        self.wishes = wishes
        self.rules = rules
        self.seed = seed
        self.about = about
        self._kept: dict[tuple[str, int, int], Entry] = {}
        self._hashes: defaultdict[str, list[int]] = defaultdict(list)
        for entry in manifest.entries.values():
            self._note(entry)

    def kept(self, slots: Sequence[Slot]) -> list[Entry]:
        """Returns the pictures of those slots that have one."""
        return [self._kept[slot.key] for slot in slots if slot.key in self._kept]

    def failed(self, slots: Sequence[Slot]) -> list[Entry]:
        """Returns the last try of those slots whose tries have all failed."""
        tries = [(slot, self.manifest.entries.get((*slot.key, self.rules.retries))) for slot in slots]
        return [entry for slot, entry in tries if entry is not None and slot.key not in self._kept]

    def open(self, slots: Sequence[Slot]) -> int:
        """Returns how many slots are yet to be painted."""
        return len(slots) - len(self.kept(slots)) - len(self.failed(slots))

    def closes(self, entry: Entry) -> bool:
        """Tells whether a slot is done with this try."""
        return entry.state == KEPT or entry.attempt == self.rules.retries

    def paint(self, slots: Sequence[Slot], batch_size: int) -> Iterator[list[Entry]]:
        """Paints until each slot has a picture or has failed.

        Args:
            slots: distinct.
            batch_size: pictures at a time, 1 or more.

        Yields:
            The entries of a batch, when its files and its lines of the manifest are written.

        Raises:
            DPSegError: the pipeline refuses, the memory is too small, or the disk is full.
        """
        for attempt in range(self.rules.retries + 1):
            waiting = [slot for slot in slots if self._waits(slot, attempt)]
            for start in range(0, len(waiting), batch_size):
                yield self._batch(waiting[start : start + batch_size], attempt)

    def _waits(self, slot: Slot, attempt: int) -> bool:
        return slot.key not in self._kept and (*slot.key, attempt) not in self.manifest.entries

    def _batch(self, slots: Sequence[Slot], attempt: int) -> list[Entry]:
        seeds = [slot.seed(self.seed, attempt) for slot in slots]
        images = self.painter.paint([slot.sentence for slot in slots], seeds, self.wishes)
        pictures = [None if image is None else tidy(image) for image in images]
        shown = [(slot.entry.name, picture) for slot, picture in zip(slots, pictures, strict=True) if picture]
        agreements = iter(self.judge.agreements([name for name, _ in shown], [picture for _, picture in shown]))
        entries = [
            self._flagged(slot, attempt, seed)
            if picture is None
            else self._judged(slot, attempt, seed, picture, next(agreements))
            for slot, seed, picture in zip(slots, seeds, pictures, strict=True)
        ]
        self.manifest.add(entries, self.about)
        return entries

    def _flagged(self, slot: Slot, attempt: int, seed: int) -> Entry:
        return _entry(slot, attempt, seed, state=REJECTED, reason=NSFW)

    def _judged(self, slot: Slot, attempt: int, seed: int, picture: Picture, agreement: float) -> Entry:
        """Decides on a picture, and writes it if it is kept."""
        reason = fault(picture, agreement, self._hashes[slot.entry.name], self.rules.min_agreement)
        spared = self.rules.keep_all and attempt == self.rules.retries
        file = slot.file(seed) if reason is None or spared else None
        data = picture.png()
        if file is not None:
            place = self.manifest.folder / file
            make_folder(place.parent)
            write_atomically(place, data)
        entry = _entry(
            slot,
            attempt,
            seed,
            state=REJECTED if file is None else KEPT,
            reason=reason,
            file=file,
            mask=file if picture.masked else None,
            sha256=hashlib.sha256(data).hexdigest(),
            width=picture.image.width,
            height=picture.image.height,
            hash=f"{difference_hash(picture.image):016x}",
            agreement=round(agreement, 4),
        )
        self._note(entry)
        return entry

    def _note(self, entry: Entry) -> None:
        if entry.state == KEPT:
            self._kept[entry.key[:3]] = entry
            self._hashes[entry.name].append(int(entry.hash or "0", 16))


def _entry(slot: Slot, attempt: int, seed: int, **found: Any) -> Entry:
    return Entry(
        name=slot.entry.name,
        synonyms=slot.entry.synonyms,
        template=slot.template,
        turn=slot.turn,
        attempt=attempt,
        sentence=slot.sentence,
        seed=seed,
        **found,
    )
