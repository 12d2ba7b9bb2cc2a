"""manifest.jsonl: a line for each picture that was painted, those that were rejected too.

Lines are only ever added, those of a batch at once and after its pictures. So a run that is killed loses the batch in
work and no other: a last line without its end is dropped. Of two lines of one picture the later holds.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from dpseg.errors import ConfigError, DataError, OutputError

NAME = "manifest.jsonl"
KEPT, REJECTED = "kept", "rejected"

Key = tuple[str, int, int, int]

_OPTIONS = {"base_seed": "seed", "judge": "model"}  # settings that an option of another name sets


@dataclass(frozen=True)
class Entry:
    """A picture.

    Attributes:
        name: its class; "class" in the file.
        synonyms: all names of the class.
        template: 1 to 80.
        turn: how often the template was used for the class before.
        attempt: 0 for the first try.
        sentence: what was asked for.
        seed: of torch's generator, in [0, 2^32).
        state: `KEPT` or `REJECTED`.
        reason: why it was rejected; of a picture that is kept in spite of a fault, that fault.
        file: its place, relative to the manifest's folder; None: not written.
        mask: the file whose alpha channel is the picture's mask, which is its own; None: it shows the thing all over.
        sha256: of the file, in hexadecimal.
        width: in pixels.
        height: in pixels.
        hash: as `difference_hash`, 16 hexadecimal digits.
        agreement: as `Judge.agreements`, in [-1, 1].
    """

    name: str
    synonyms: tuple[str, ...]
    template: int
    turn: int
    attempt: int
    sentence: str
    seed: int
    state: str
    reason: str | None = None
    file: str | None = None
    mask: str | None = None
    sha256: str | None = None
    width: int | None = None
    height: int | None = None
    hash: str | None = None
    agreement: float | None = None

    @property
    def key(self) -> Key:
        """What tells the picture from all others."""
        return self.name, self.template, self.turn, self.attempt


class Manifest:
    """The pictures of a folder.

    Attributes:
        folder: where the pictures and the file are.
        entries: by key; without those whose file was removed.
    """

    def __init__(self, folder: Path) -> None:
        """Reads the file, where there is one.

        Raises:
            DataError: a line is damaged, or the file cannot be read.
            OutputError: it cannot be written.
        """
        self.folder = folder
        self.entries: dict[Key, Entry] = {}
        self._rows: list[dict[str, Any]] = []
        for number, line in enumerate(self._whole_lines(), start=1):
            try:
                row = json.loads(line)
                entry = _entry(row)
            except (ValueError, TypeError, KeyError) as error:
                raise DataError(
                    f"{self.path}: line {number} is damaged; remove that line, and its picture is painted again"
                ) from error
            self._rows.append(row)
            self.entries[entry.key] = entry
        gone = [key for key, entry in self.entries.items() if entry.file and not (folder / entry.file).is_file()]
        for key in gone:
            del self.entries[key]

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / NAME

    def check(self, settings: Mapping[str, Any], synonyms: Mapping[str, tuple[str, ...]]) -> None:
        """Checks that what is there was painted as what is to come.

        Args:
            settings: values that must be the same for all pictures of a folder.
            synonyms: by class, its names.

        Raises:
            ConfigError: it was not; the text says which setting differs.
        """
        for row in self._rows:
            for name, value in settings.items():
                if row.get(name) != value:
                    raise ConfigError(
                        f"{self.folder} holds pictures painted with {_said(name, row.get(name))}, this run has"
                        f" {_said(name, value)}; use the same setting, or another folder"
                    )
            mine = synonyms.get(row["class"])
            if mine is not None and list(mine) != list(row["synonyms"]):
                raise ConfigError(
                    f"{self.folder} holds pictures of {', '.join(row['synonyms'])!r}, this run has"
                    f" {', '.join(mine)!r}; write the class as before, or use another folder"
                )

    def add(self, entries: Sequence[Entry], about: Mapping[str, Any]) -> None:
        """Writes lines of pictures whose files are written.

        Args:
            entries: the pictures.
            about: settings and origin, which go into each line.

        Raises:
            OutputError: they cannot be written.
        """
        rows = [_row(entry) | dict(about) for entry in entries]
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        try:
            with self.path.open("ab", buffering=0) as file:
                while data:
                    data = data[file.write(data) :]
                os.fsync(file.fileno())
        except OSError as error:
            raise _output_error(self.path, error) from error
        self._rows += rows
        self.entries |= {entry.key: entry for entry in entries}

    def _whole_lines(self) -> list[str]:
        """Returns the lines, and cuts off what a kill left of the last one."""
        try:
            data = self.path.read_bytes() if self.path.exists() else b""
            whole = data[: data.rfind(b"\n") + 1]
            if len(whole) < len(data):
                os.truncate(self.path, len(whole))
            return whole.decode().split("\n")[:-1]
        except OSError as error:
            raise _output_error(self.path, error) from error
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path}: is damaged, it is not UTF-8 text; use another folder") from error


def _row(entry: Entry) -> dict[str, Any]:
    values = asdict(entry)
    return {"class": values.pop("name"), **values}


def _entry(row: Mapping[str, Any]) -> Entry:
    values = {field.name: row["class" if field.name == "name" else field.name] for field in fields(Entry)}
    return Entry(**values | {"synonyms": tuple(values["synonyms"])})


def _said(name: str, value: Any) -> str:
    if name == "weights":
        return f"a --generator whose files are {value}"
    option = f"--{_OPTIONS.get(name, name).replace('_', '-')}"
    if isinstance(value, bool):
        return option if value else f"no {option}"
    return f"no {option}" if value in (None, "") else f"{option} {value}"


def _output_error(path: Path, error: OSError) -> OutputError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"{path}: the disk is full; free some space and run again, the pictures so far are kept")
    return OutputError(f"{path}: cannot be written ({error.strerror or error}); choose another folder")
