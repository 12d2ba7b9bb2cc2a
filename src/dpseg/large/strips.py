"""Finished strips of a large picture in a folder beside the result, so that work that was interrupted goes on.

FOLDER/setting.json    what is segmented, and how
FOLDER/00000.npz       one row of tiles: labels, what was counted, and a small picture; written in one step
"""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpseg.files import make_folder, output_error, write_atomically

_SETTING = "setting.json"
_FIELDS = ("labels", "counts", "sums", "photo")


@dataclass(frozen=True, eq=False)
class Strip:
    """What a row of tiles finishes.

    Attributes:
        labels: (h, W) of `label_type`, index of a class or `none_value`.
        counts: (K + 1,) int64, pixels of none and of each class.
        sums: (K,) float64, the sum of each class's scores over its own pixels.
        photo: (n, w, 3) uint8, the rows of the small picture that begin in it.
    """

    labels: NDArray[np.unsignedinteger[Any]]
    counts: NDArray[np.int64]
    sums: NDArray[np.float64]
    photo: NDArray[np.uint8]


def label_type(classes: int) -> type[np.unsignedinteger[Any]]:
    """Returns in how many bits labels of so many classes and none are kept: uint8, or uint16 above 255 classes."""
    return np.uint8 if classes <= 255 else np.uint16


def none_value(classes: int) -> int:
    """Returns the label of pixels without a class: the largest of `label_type`, 255 or 65535."""
    return int(np.iinfo(label_type(classes)).max)


class StripStore:
    """Strips on disk, in the order of the picture's rows."""

    def __init__(self, folder: Path, setting: Mapping[str, Any]) -> None:
        """Opens a folder, if it is there; strips in it that are of another setting are deleted.

        Args:
            folder: made with the first strip; nothing else is in it.
            setting: all that decides the labels, as JSON values.

        Raises:
            OutputError: the folder cannot be written.
        """
        self.folder = folder
        self._setting = json.dumps(setting, sort_keys=True, ensure_ascii=False)
        before = None
        with contextlib.suppress(OSError, ValueError):
            before = (folder / _SETTING).read_text("utf-8")
        if before != self._setting:
            self.delete()

    def finished(self) -> int:
        """Returns how many strips there are, from the first on, that can be read."""
        number = 0
        while self._path(number).is_file():
            try:
                with np.load(self._path(number)) as file:
                    for name in _FIELDS:
                        file[name]
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
                break
            number += 1
        return number

    def write(self, number: int, strip: Strip) -> None:
        """Keeps a strip.

        Raises:
            OutputError: the folder cannot be written, or the disk is full.
        """
        if not (self.folder / _SETTING).is_file():
            make_folder(self.folder)
            write_atomically(self.folder / _SETTING, self._setting.encode())
        buffer = io.BytesIO()
        np.savez_compressed(buffer, labels=strip.labels, counts=strip.counts, sums=strip.sums, photo=strip.photo)
        write_atomically(self._path(number), buffer.getvalue())

    def each(self, name: str) -> Iterator[NDArray[Any]]:
        """Returns one field of the strips, one after the other.

        Args:
            name: of an attribute of `Strip`.
        """
        number = 0
        while self._path(number).is_file():
            with np.load(self._path(number)) as file:
                yield file[name]
            number += 1

    def delete(self) -> None:
        """Deletes the strips, and the folder.

        Raises:
            OutputError: it cannot be.
        """
        try:
            if self.folder.is_dir():
                for path in self.folder.iterdir():
                    if path.suffix in (".npz", ".tmp") or path.name == _SETTING:
                        path.unlink()
                self.folder.rmdir()
        except OSError as error:
            raise output_error(self.folder, error) from error

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.npz"
