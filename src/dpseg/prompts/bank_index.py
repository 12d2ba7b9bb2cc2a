"""A bank's folder: which of its segments and entries count.

BANK/bank.json      what it is: the encoder, and the sizes of its features
BANK/segments/      segments, two files each
BANK/removed/       notes with the ids of entries that do not count any more

Every file is written beside its place, renamed and never changed. A segment may take the place of others: those do not
count from then on, whether they are deleted yet or not. An entry keeps its id when it is written again, so what is
removed stays so whichever writer was first. Hence there is nothing to lock: a writer that is killed leaves what was
there before, and two writers write different files.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from dpseg.errors import WeightsError
from dpseg.files import make_folder, write_atomically
from dpseg.prompts.bank_segment import (
    BankHead,
    DamagedFileError,
    Segment,
    head_from,
    new_id,
    read_json,
    read_segment,
    to_json,
)

HEAD_FILE, SEGMENTS, REMOVED = "bank.json", "segments", "removed"
_KIND, _VERSION = "bank folder", 1
_STALE = 3600.0  # seconds after which a file that does not count belongs to a process that was killed


@dataclass(frozen=True)
class Listing:
    """The files of a bank.

    Attributes:
        segments: ids of segments with an index.
        removals: ids of notes of what was removed.
    """

    segments: frozenset[str]
    removals: frozenset[str]


@dataclass(frozen=True)
class Snapshot:
    """What a bank held at a moment.

    Attributes:
        segments: those that count, in the order of their ids.
        removed: ids of entries that do not count.
        replaced: ids of segments that do not count but are still there.
        removals: ids of the notes.
        damages: what cannot be read, a line each.
    """

    segments: tuple[Segment, ...]
    removed: frozenset[str]
    replaced: frozenset[str]
    removals: frozenset[str]
    damages: tuple[str, ...]


def read_head(folder: Path, salvage: bool = False) -> BankHead:
    """Reads what a bank is.

    Args:
        folder: the bank's.
        salvage: where its file is lost, ask the segments.

    Raises:
        WeightsError: There is no bank, its file is damaged, or of a newer version.
    """
    path = folder / HEAD_FILE
    try:
        about = read_json(path)
        if about.get("kind") != _KIND or not isinstance(about.get("version"), int):
            raise DamagedFileError(f"{path}: is not that of a bank; give a folder that dpseg prompts bank add made")
        if about["version"] > _VERSION:
            raise WeightsError(f"{path}: format version {about['version']} is newer than {_VERSION}; update dpseg")
        return head_from(path, about)
    except (OSError, DamagedFileError) as error:
        for index in sorted((folder / SEGMENTS).glob("[!.]*.json")) if salvage else ():
            with contextlib.suppress(OSError, DamagedFileError):
                return head_from(index, read_json(index))
        if isinstance(error, DamagedFileError):
            raise
        raise WeightsError(f"{folder}: is no bank of pictures; make one with: dpseg prompts bank add") from error


def write_head(folder: Path, head: BankHead) -> None:
    """Makes a bank's folder.

    Raises:
        WeightsError: There is something else in it.
        OutputError: It cannot be written.
    """
    make_folder(folder)
    foreign = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    foreign = sorted(set(foreign) - {HEAD_FILE, SEGMENTS, REMOVED})
    if foreign:
        raise WeightsError(f"{folder}: holds other files, such as {foreign[0]}; name a new folder for the bank")
    for part in (SEGMENTS, REMOVED):
        make_folder(folder / part)
    write_atomically(folder / HEAD_FILE, to_json({"kind": _KIND, "version": _VERSION, **asdict(head)}))


def write_removal(folder: Path, ids: Collection[str]) -> None:
    """Notes that entries do not count any more.

    Raises:
        OutputError: It cannot be written.
    """
    write_atomically(folder / REMOVED / f"{new_id()}.json", to_json({"removed": sorted(ids)}))


def list_files(folder: Path) -> Listing:
    """Lists a bank's files: the notes first, for the segment that takes up a note is there before the note goes."""
    removals = frozenset(path.stem for path in (folder / REMOVED).glob("[!.]*.json"))
    return Listing(frozenset(path.stem for path in (folder / SEGMENTS).glob("[!.]*.json")), removals)


def read_snapshot(folder: Path, head: BankHead, known: Mapping[str, Segment], salvage: bool = False) -> Snapshot:
    """Reads what counts, while others may write.

    Args:
        folder: the bank's.
        head: the bank's.
        known: segments that are open already, by id.
        salvage: go on without what is damaged, and take lost indices from their copies.

    Raises:
        WeightsError: Something that counts is damaged.
    """
    segments, removals, damages = dict(known), dict[str, frozenset[str]](), dict[str, str]()
    listing = list_files(folder)
    while True:
        for identity in sorted(listing.removals - removals.keys()):
            with contextlib.suppress(FileNotFoundError):  # taken up by a segment in the meantime
                removals[identity] = _read_removal(folder, identity, damages)
        for identity in sorted(listing.segments - segments.keys() - damages.keys()):
            segment = _open(folder, identity, head, damages, salvage)
            if segment is not None:
                segments[identity] = segment
        again = list_files(folder)
        if again == listing:  # else files came or went: a reader between the two could have missed both
            break
        listing = again
    there = {identity: segment for identity, segment in segments.items() if identity in listing.segments}
    replaced = {identity for segment in there.values() for identity in segment.replaces}
    counting = tuple(there[identity] for identity in sorted(there.keys() - replaced))
    found = tuple(text for identity, text in damages.items() if identity not in replaced)
    if found and not salvage:
        raise WeightsError(f"{found[0]}; see what can be salvaged with: dpseg prompts bank verify {folder}")
    removed = [ids for identity, ids in removals.items() if identity in listing.removals]
    removed += [frozenset(segment.removed) for segment in counting]
    return Snapshot(
        counting, frozenset().union(*removed), frozenset(replaced & listing.segments), listing.removals, found
    )


def delete(folder: Path, segments: Collection[str], removals: Collection[str]) -> None:
    """Deletes files that do not count any more, as far as it can: a segment's index first, then its features.

    What killed writers left goes too, once it is an hour old.
    """
    for identity in segments:
        with contextlib.suppress(OSError):
            (folder / SEGMENTS / f"{identity}.json").unlink(missing_ok=True)
            (folder / SEGMENTS / f"{identity}.safetensors").unlink(missing_ok=True)
    for identity in removals:
        with contextlib.suppress(OSError):
            (folder / REMOVED / f"{identity}.json").unlink(missing_ok=True)
    for path in leftovers(folder):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE:
                path.unlink()


def leftovers(folder: Path) -> list[Path]:
    """Returns files that do not count, of writers that were killed or are still at it."""
    halves = [path for part in (".", SEGMENTS, REMOVED) for path in (folder / part).glob(".*.tmp")]
    features = (folder / SEGMENTS).glob("[!.]*.safetensors")
    return sorted([*halves, *(path for path in features if not path.with_suffix(".json").exists())])


def _open(folder: Path, identity: str, head: BankHead, damages: dict[str, str], salvage: bool) -> Segment | None:
    """Opens a segment; notes what is damaged; None where it cannot be read or has just gone."""
    place = folder / SEGMENTS
    try:
        return read_segment(place, identity, head)
    except FileNotFoundError as error:
        if (place / f"{identity}.json").exists():  # its index would have gone first
            damages[identity] = f"{error.filename}: is missing"
    except DamagedFileError as error:
        damages[identity] = str(error)
        if salvage:
            with contextlib.suppress(FileNotFoundError, DamagedFileError):
                return read_segment(place, identity, head, from_copy=True)
    return None


def _read_removal(folder: Path, identity: str, damages: dict[str, str]) -> frozenset[str]:
    path = folder / REMOVED / f"{identity}.json"
    try:
        return frozenset(map(str, read_json(path)["removed"]))
    except (DamagedFileError, KeyError, TypeError):
        damages[identity] = f"{path}: the note of what was removed is damaged"
    return frozenset()
