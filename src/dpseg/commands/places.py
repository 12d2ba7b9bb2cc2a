"""Where results go, so that none overwrites another and none is taken for a photo."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dpseg.files import make_folder, write_atomically


def output_places(photos: Sequence[Path]) -> dict[Path, tuple[Path, str]]:
    """Returns for each photo the folder, below the output folder, and the stem of its results.

    Photos of one name from several folders keep their folders. Where two of one folder differ in their ending only, the
    ending stays in the stem. Names that differ in case only count as the same, as they do on many disks.

    Args:
        photos: distinct files.
    """
    stems = Counter(photo.stem.casefold() for photo in photos)
    folders = [Path(os.path.abspath(photo)).parent for photo in photos]
    top = _common_folder(folders) if max(stems.values(), default=0) > 1 else None
    wanted = [
        (Path() if top is None else folder.relative_to(top), photo.stem)
        for photo, folder in zip(photos, folders, strict=True)
    ]
    counts = Counter(_key(folder, stem) for folder, stem in wanted)
    places: dict[Path, tuple[Path, str]] = {}
    taken: set[str] = set()
    for photo, (folder, stem) in zip(photos, wanted, strict=True):
        stem = photo.name if counts[_key(folder, stem)] > 1 else stem
        unique, number = stem, 2
        while _key(folder, unique) in taken:
            unique, number = f"{stem}-{number}", number + 1
        taken.add(_key(folder, unique))
        places[photo] = folder, unique
    return places


def without_results(found: Sequence[Path], patterns: Sequence[str], out: Path) -> list[Path]:
    """Leaves out pictures in the output folder, unless they are named themselves: an earlier run wrote them.

    Args:
        found: the pictures.
        patterns: what the user named.
        out: the output folder.
    """
    named = {os.path.abspath(os.path.expanduser(pattern)) for pattern in patterns}
    below = os.path.join(os.path.abspath(out), "")
    if any(os.path.join(name, "").startswith(below) for name in named):
        return list(found)
    return [path for path in found if os.path.abspath(path) in named or not os.path.abspath(path).startswith(below)]


def check_writable(folder: Path) -> None:
    """Makes a folder where it is missing, and tries to write in it.

    Raises:
        OutputError: that fails.
    """
    make_folder(folder)
    probe = write_atomically(folder / f".dpseg-{uuid.uuid4().hex}", b"")
    with contextlib.suppress(OSError):
        probe.unlink()


def _common_folder(folders: Sequence[Path]) -> Path | None:
    try:
        return Path(os.path.commonpath(folders))
    except ValueError:  # on several drives
        return None


def _key(folder: Path, stem: str) -> str:
    return f"{folder.as_posix()}/{stem}".casefold()
