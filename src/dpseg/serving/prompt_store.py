"""Prompt sets that the server keeps: the latest in memory, saved ones also in a folder, each under an id.

An id of a request is only ever looked up among the ids that are there. No path is made of it.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections import OrderedDict
from pathlib import Path

from dpseg.errors import DPSegError
from dpseg.files import make_folder
from dpseg.prompts.prompt_set import PromptSet
from dpseg.serving.problems import RequestError, shorten
from dpseg.serving.prompt_requests import KEY_LENGTH

_log = logging.getLogger("dpseg.serving")
_SUFFIX = ".safetensors"
_OWN_ID = re.compile(rf"[0-9a-f]{{{KEY_LENGTH}}}")  # what requests left; other files are the operator's
_ANY_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class PromptMemory:
    """Prompt sets by key, up to so many bytes; those that were not used for longest make room. Threads may share it."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._sets: OrderedDict[str, PromptSet] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sets)

    def get(self, key: str) -> PromptSet | None:
        """Returns what is kept under a key; None: nothing."""
        with self._lock:
            found = self._sets.get(key)
            if found is not None:
                self._sets.move_to_end(key)
            return found

    def put(self, key: str, prompts: PromptSet) -> None:
        """Keeps a set, unless it is larger than the whole memory."""
        size = size_of(prompts)
        with self._lock:
            if key in self._sets:
                self._bytes -= size_of(self._sets.pop(key))
            if size > self.max_bytes:
                return
            self._sets[key] = prompts
            self._bytes += size
            while self._bytes > self.max_bytes:
                self._bytes -= size_of(self._sets.popitem(last=False)[1])


class PromptStore:
    """Saved prompt sets by id, in memory and, where there is one, in a folder. Threads may share it.

    In the folder, files whose names are an id of this program are those that requests left: the oldest are removed when
    there are too many. Files that the operator put there have other names, and are never removed.
    """

    def __init__(self, memory: PromptMemory, folder: Path | None, max_files: int) -> None:
        """Lists the folder, which is made where it is missing.

        Args:
            memory: for the sets that were used last.
            folder: None: there is none.
            max_files: sets that requests may leave there.

        Raises:
            OutputError: the folder cannot be made.
        """
        self.memory, self.folder, self.max_files = memory, folder, max_files
        self._files: OrderedDict[str, Path] = OrderedDict()
        self._lock = threading.Lock()
        if folder is not None:
            files = sorted(make_folder(folder).glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime)
            self._files |= {path.stem: path for path in files if _ANY_ID.fullmatch(path.stem)}

    def save(self, key: str, prompts: PromptSet) -> None:
        """Keeps a set under its key.

        Raises:
            OutputError: the folder cannot be written.
        """
        self.memory.put(key, prompts)
        if self.folder is None:
            return
        path = prompts.save(self.folder / f"{key}{_SUFFIX}")
        with self._lock:
            self._files[key] = path
            self._files.move_to_end(key)
            own = [name for name in self._files if _OWN_ID.fullmatch(name)]
            for name in own[: max(0, len(own) - self.max_files)]:
                with contextlib.suppress(OSError):
                    self._files.pop(name).unlink()

    def get(self, key: str) -> PromptSet:
        """Returns what was saved under an id.

        Raises:
            RequestError: nothing, or no longer.
        """
        found = self.memory.get(key)
        if found is None and (path := self._files.get(key)) is not None:
            try:
                found = PromptSet.load(path)
                self.memory.put(key, found)
            except DPSegError as error:
                _log.warning("a saved prompt set cannot be used: %s", error)
        if found is None:
            raise RequestError(
                404, f"no prompt set has the id {shorten(repr(key))}, or no longer; send it to POST /v1/prompts again"
            )
        return found


def size_of(prompts: PromptSet) -> int:
    """Returns the bytes of a set's tensors."""
    return sum(tensor.nbytes for tensor in prompts.embeddings.tensors().values())
