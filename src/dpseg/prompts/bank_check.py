"""What is damaged in a bank's folder, and how much of it can be salvaged."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from dpseg.errors import WeightsError
from dpseg.prompts.bank_contents import BankContents
from dpseg.prompts.bank_index import SEGMENTS, leftovers, read_head, read_snapshot
from dpseg.prompts.bank_segment import BankHead, DamagedFileError, EntryTable, Segment, file_digest, read_segment

_SHOWN = 3  # names in a line


@dataclass(frozen=True)
class BankCheck:
    """What was found.

    Attributes:
        entries: so many entries of them count.
        names: so many names these have.
        sound: so many of the entries are as they were written.
        problems: what is damaged, a line each.
        leftovers: so many files do not count, of writers that were killed or are still at it.
    """

    entries: int
    names: int
    sound: int
    problems: tuple[str, ...]
    leftovers: int


def check_bank(folder: str | Path) -> BankCheck:
    """Reads all of a bank and compares it with its hashes and checksums.

    Raises:
        WeightsError: There is no bank, it is of a newer version, or nothing of it can be read.
    """
    folder = Path(folder)
    problems: list[str] = []
    try:
        head = read_head(folder)
    except WeightsError as error:
        head = read_head(folder, salvage=True)
        problems.append(str(error))
    snapshot = read_snapshot(folder, head, {}, salvage=True)
    problems += snapshot.damages
    contents = BankContents(head, snapshot.segments, snapshot.removed)
    sound = [segment.sound() for segment in snapshot.segments]
    for segment, rows in zip(snapshot.segments, sound, strict=True):
        hurt = [segment.table.names[segment.table.owners[row]] for row in (~rows).nonzero()[0].tolist()]
        problem = _problem(folder / SEGMENTS, segment, hurt, head)
        if problem:
            problems.append(f"{folder / SEGMENTS / segment.id}: {problem}")
    return BankCheck(
        entries=len(contents.places),
        names=len(contents.by_name),
        sound=sum(bool(sound[number][row]) for number, row in contents.places.values()),
        problems=tuple(problems),
        leftovers=len(leftovers(folder)),
    )


def _problem(place: Path, segment: Segment, hurt: list[str], head: BankHead) -> str:
    """Returns what is wrong with a segment that can be read; empty where nothing is."""
    if hurt:
        names = list(dict.fromkeys(hurt))
        more = f" and {len(names) - _SHOWN} more names" if len(names) > _SHOWN else ""
        return f"{len(hurt)} of {len(segment)} entries are damaged, of {', '.join(names[:_SHOWN])}{more}"
    if not segment.digest:
        return ""  # its index is among the damages already
    try:
        if file_digest(place, segment.id) != segment.digest:
            return "its file of features is not as it was written, but no entry is damaged"
        copy = read_segment(place, segment.id, head, from_copy=True)
    except (OSError, DamagedFileError) as error:
        return str(error)
    differ = [
        one.name for one in fields(EntryTable) if getattr(copy.table, one.name) != getattr(segment.table, one.name)
    ]
    return f"its index was changed after it was written ({', '.join(differ)})" if differ else ""
