"""Writing files so that a reader, a second process or a kill never sees half of one."""

from __future__ import annotations

import contextlib
import errno
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

from dpseg.errors import OutputError


def make_folder(folder: str | Path) -> Path:
    """Makes a folder and those above it, where they are missing.

    Raises:
        OutputError: It cannot be made, or a file is in its place.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(folder, error) from error
    return folder


def write_atomically(path: str | Path, data: bytes) -> Path:
    """Writes a file beside its place and renames it there, so that the old or the new content stands, whatever happens.

    Raises:
        OutputError: The folder is missing or closed to writing, or the disk is full. The old content stays.
    """
    path = Path(path)
    _refuse_devices(path)
    temporary = path.with_name(f".{path.name[:80]}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
        temporary.replace(path)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return path


def output_error(path: Path, error: OSError) -> OutputError:
    """Says why a file or folder cannot be written, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"{path}: the disk is full; free some space or choose another folder")
    return OutputError(f"{path}: cannot be written ({error.strerror or error}); choose another folder")


@contextlib.contextmanager
def written_beside(path: str | Path) -> Iterator[Path]:
    """Lets a block write a file piece by piece beside its place, where it is renamed if the block succeeds.

    Args:
        path: the file's place.

    Yields:
        Where to write. Whatever ends the block early, that file is deleted and the old content of the place stays.

    Raises:
        OutputError: As `write_atomically`.
    """
    path = Path(path)
    _refuse_devices(path)
    temporary = path.with_name(f".{path.name[:80]}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except OutputError:
        raise
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _refuse_devices(path: Path) -> None:
    """Raises an error where a file would take the place of /dev/null or its like, which a rename would remove."""
    try:
        mode = path.stat().st_mode
    except OSError:  # it is not there, or writing will tell
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OutputError(f"{path}: is a device, a pipe or a socket, no file; choose another place")
