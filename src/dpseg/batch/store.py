"""The folder of the results, on a disk or at an address of fsspec; a file in it is whole, or not there."""

from __future__ import annotations

import posixpath
import uuid
from pathlib import Path

from dpseg.batch.sources import one_line, open_place
from dpseg.errors import OutputError
from dpseg.files import make_folder, write_atomically

_ONE_STEP = frozenset(("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oci", "oss", "r2", "memory"))
"""Protocols under which a file appears when all of it was sent."""


class Store:
    """Files by their names below one folder."""

    def __init__(self, address: str) -> None:
        """Opens a folder; it is made with the first file.

        Raises:
            ConfigError: the address cannot be used.
            MissingExtraError: the package for the protocol is not installed.
        """
        self._place = open_place(address)
        self.address = self._place.address(self._place.path).rstrip("/")

    @property
    def local(self) -> bool:
        """Whether it is on a disk of this machine."""
        return self._place.local

    def read(self, name: str) -> bytes | None:
        """Returns the content of a file; None: there is none.

        Raises:
            OutputError: it cannot be read.
        """
        try:
            return bytes(self._place.fs.cat_file(self._path(name)))
        except FileNotFoundError:
            return None
        except Exception as error:  # each protocol has its own kinds
            raise self._error(name, "read", error) from error

    def exists(self, name: str) -> bool:
        """Whether there is such a file.

        Raises:
            OutputError: that cannot be told.
        """
        try:
            self._place.fs.invalidate_cache()  # another worker may have written it
            return bool(self._place.fs.isfile(self._path(name)))
        except Exception as error:
            raise self._error(name, "read", error) from error

    def names(self, folder: str) -> set[str]:
        """Returns the names of the files and folders in a folder; none where it is missing.

        Raises:
            OutputError: it cannot be listed.
        """
        try:
            self._place.fs.invalidate_cache()
            return {posixpath.basename(path) for path in self._place.fs.ls(self._path(folder), detail=False)}
        except FileNotFoundError:
            return set()
        except Exception as error:
            raise self._error(folder, "listed", error) from error

    def write(self, name: str, data: bytes) -> None:
        """Writes a file, in one step for whoever reads it.

        Args:
            name: with slashes where it is in a folder, which is made.
            data: the whole content.

        Raises:
            OutputError: it cannot be written, or the disk is full.
        """
        path, fs = self._path(name), self._place.fs
        if self.local:
            make_folder(Path(path).parent)
            write_atomically(path, data)
            return
        try:
            if fs.protocol in _ONE_STEP or not _ONE_STEP.isdisjoint(fs.protocol):
                fs.pipe_file(path, data)
                return
            fs.makedirs(posixpath.dirname(path), exist_ok=True)
            beside = posixpath.join(posixpath.dirname(path), f".{uuid.uuid4().hex}.tmp")
            fs.pipe_file(beside, data)
            fs.mv(beside, path)
        except Exception as error:
            raise self._error(name, "written", error) from error

    def delete(self, name: str) -> None:
        """Deletes a file.

        Raises:
            OutputError: it cannot be.
        """
        try:
            self._place.fs.rm_file(self._path(name))
        except Exception as error:
            raise self._error(name, "deleted", error) from error

    def _path(self, name: str) -> str:
        return posixpath.join(self._place.path, name)

    def _error(self, name: str, what: str, error: Exception) -> OutputError:
        return OutputError(f"{self.address}/{name}: cannot be {what} ({one_line(error)}); choose another --out")
