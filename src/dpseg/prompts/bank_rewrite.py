"""Writes segments of a bank together, so that there are few, and nothing in them that does not count."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from dpseg.errors import WeightsError
from dpseg.prompts.bank_contents import BankContents
from dpseg.prompts.bank_index import SEGMENTS, Snapshot, delete
from dpseg.prompts.bank_segment import write_segment

SEGMENT_ROWS = 20_000
"""So many entries a segment at most."""

SMALL, MANY = 1024, 32
"""Segments of fewer entries than the one are written together once there are as many as the other."""


def compact(folder: Path, contents: BankContents, snapshot: Snapshot) -> None:
    """Writes all that counts together, and deletes what does not.

    Args:
        folder: the bank's.
        contents: of the bank.
        snapshot: from which they are.

    Raises:
        WeightsError: A segment is damaged.
        OutputError: The new ones cannot be written; what was there stays.
    """
    for segment in contents.segments:
        if not segment.sound().all():
            raise WeightsError(f"{segment.id}: is damaged; see: dpseg prompts bank verify {folder}")
    _rewrite(folder, contents, snapshot, range(len(contents.segments)), whole=True)


def roll_up(folder: Path, contents: BankContents, snapshot: Snapshot) -> bool:
    """Writes small segments together where there are many, and says whether it did so.

    The arguments and errors are those of `compact`; what is damaged is left as it is.
    """
    small = [number for number, segment in enumerate(contents.segments) if len(segment) < SMALL]
    sound = [number for number in small if contents.segments[number].sound().all()] if len(small) >= MANY else []
    if len(sound) < MANY:
        return False
    _rewrite(folder, contents, snapshot, sound, whole=False)
    return True


def _rewrite(folder: Path, contents: BankContents, snapshot: Snapshot, numbers: Collection[int], whole: bool) -> None:
    """Writes segments anew. The last of the new ones takes the place of the old: a kill before it changes nothing."""
    chosen = set(numbers)
    old = [contents.segments[number] for number in chosen]
    places = [place for place in contents.places.values() if place[0] in chosen]
    parts = [places[start : start + SEGMENT_ROWS] for start in range(0, len(places), SEGMENT_ROWS)] or [[]]
    replaces = {segment.id for segment in old} | snapshot.replaced
    # Ids are never forgotten: another process may be writing an entry again that was removed in the meantime.
    removed = snapshot.removed if whole else frozenset[str]().union(*(segment.removed for segment in old))
    for part in parts[:-1]:
        write_segment(folder / SEGMENTS, contents.head, *contents.collect(part, fresh=False))
    last = contents.collect(parts[-1], fresh=False)
    write_segment(folder / SEGMENTS, contents.head, *last, replaces, removed)
    delete(folder, replaces, snapshot.removals if whole else ())
