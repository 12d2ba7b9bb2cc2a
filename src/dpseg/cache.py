"""Embeddings on disk, so that a word or a picture is encoded once.

Entries are found by the encoder's fingerprint and a hash of the content, so nothing is ever out of date. What is put
together goes into one new file (a shard), written beside its place and renamed; files are never changed afterwards. So
two processes may read and write at once, and one that is killed leaves nothing half written. Each entry has a checksum:
a damaged shard is removed, and what it held is encoded and written again. When there are many small shards they are
merged.

The cache never makes anything fail: where its folder cannot be read or written, it holds nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dpseg.errors import OutputError
from dpseg.files import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

ENVIRONMENT = "DPSEG_CACHE"
"""Environment variable: another folder, or "off"."""

MAX_SHARDS = 64
"""So many shards an encoder before the small ones are merged."""

_SMALL = 4 * 2**20  # bytes; larger shards are never merged, so that merging stays quick
_STALE = 3600.0  # seconds after which a temporary file belongs to a process that was killed
_CHECKSUMS = "crc32"


def cache_folder() -> Path | None:
    """Returns where embeddings are kept: what DPSEG_CACHE names, else the user's cache folder; None: nowhere."""
    setting = os.environ.get(ENVIRONMENT, "").strip()
    if setting.lower() == "off":
        return None
    if setting:
        return Path(setting).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("dpseg", appauthor=False))


def content_key(*parts: str | bytes) -> str:
    """Returns a key for content: the SHA-256 of the parts and their lengths, in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(f"{'s' if isinstance(part, str) else 'b'}{len(data)}:".encode())
        digest.update(data)
    return digest.hexdigest()


class EmbeddingCache:
    """Tensors by encoder and key, kept across processes. Threads may share it.

    Attributes:
        folder: where; None: nothing is kept.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        """Opens the cache; nothing is read yet.

        Args:
            folder: another place than `cache_folder()`.
        """
        self.folder = cache_folder() if folder is None else Path(folder)
        self._indexes: dict[Path, _Index] = {}
        self._lock = threading.Lock()

    def get_many(self, encoder: str, keys: Sequence[str]) -> dict[str, Tensor]:
        """Returns what is there of the entries asked for, by key, on the CPU.

        Args:
            encoder: fingerprint of the encoder.
            keys: as from `content_key`.
        """
        with self._lock:
            index = self._index(encoder)
            return {} if index is None else index.read(keys)

    def put_many(self, encoder: str, entries: Mapping[str, Tensor]) -> None:
        """Keeps entries. Where that cannot be done, they are not kept.

        Args:
            encoder: fingerprint of the encoder.
            entries: tensors of any shape, by key.
        """
        with self._lock:
            index = self._index(encoder)
            if index is not None and entries:
                index.add(entries)

    def clear(self) -> None:
        """Removes all entries of all encoders."""
        if self.folder is None:
            return
        with self._lock:
            for path in [*self.folder.glob("*/*.safetensors"), *self.folder.glob("*/.*.tmp")]:
                _remove(path)
            self._indexes.clear()

    def _index(self, encoder: str) -> _Index | None:
        if self.folder is None:
            return None
        folder = self.folder / hashlib.sha256(encoder.encode()).hexdigest()[:24]
        return self._indexes.setdefault(folder, _Index(folder))


class _Index:
    """The shards of one encoder's folder, and which of them holds which key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards: set[Path] = set()
        self.homes: dict[str, Path] = {}

    def read(self, keys: Sequence[str]) -> dict[str, Tensor]:
        if any(key not in self.homes for key in keys):
            self.scan()
        found = self._read_known(keys)
        if len(found) < len(set(keys)) and self.scan():  # another process has merged shards in the meantime
            found |= self._read_known([key for key in keys if key not in found])
        return found

    def add(self, entries: Mapping[str, Tensor]) -> None:
        self.scan()
        entries = dict(entries)
        merged: list[Path] = []
        if len(self.shards) >= MAX_SHARDS:
            for shard in [shard for shard in self.shards if _size(shard) < _SMALL]:
                entries = _load(shard, self._keys(shard)) | entries
                merged.append(shard)
        if self._write(entries):
            for shard in merged:
                _remove(shard)
                self.shards.discard(shard)

    def scan(self) -> bool:
        """Looks for shards that came or went, and says whether there are any."""
        shards = set(self._list())
        changed = shards != self.shards
        self.homes = {key: shard for key, shard in self.homes.items() if shard in shards}
        for shard in shards - self.shards:
            self.homes |= dict.fromkeys(_read_keys(shard), shard)
        self.shards = shards
        return changed

    def _read_known(self, keys: Sequence[str]) -> dict[str, Tensor]:
        wanted: dict[Path, list[str]] = {}
        for key in dict.fromkeys(keys):
            if key in self.homes:
                wanted.setdefault(self.homes[key], []).append(key)
        found: dict[str, Tensor] = {}
        for shard, names in wanted.items():
            found |= _load(shard, names)
        return found

    def _keys(self, shard: Path) -> list[str]:
        return [key for key, home in self.homes.items() if home == shard]

    def _list(self) -> Iterator[Path]:
        try:
            names = os.listdir(self.folder)
        except OSError:
            return
        for name in names:
            path = self.folder / name
            if name.endswith(".safetensors"):
                yield path
            elif name.endswith(".tmp"):
                with contextlib.suppress(OSError):
                    if time.time() - path.stat().st_mtime > _STALE:
                        path.unlink()

    def _write(self, entries: Mapping[str, Tensor]) -> bool:
        from safetensors.torch import save

        # Clones, because safetensors refuses tensors that share memory.
        plain = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in entries.items()}
        checksums = json.dumps({key: _checksum(tensor) for key, tensor in plain.items()})
        shard = self.folder / f"{uuid.uuid4().hex}.safetensors"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(shard, save(plain, metadata={_CHECKSUMS: checksums}))
        except (OSError, OutputError):
            return False
        self.shards.add(shard)
        self.homes |= dict.fromkeys(plain, shard)
        return True


def _read_keys(shard: Path) -> list[str]:
    """Returns a shard's keys; of one that is damaged none, and it is removed."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(shard, framework="pt") as file:
            return list(file.keys())
    except SafetensorError:
        _remove(shard)
    except (OSError, RuntimeError):  # another process has merged it
        pass
    return []


def _load(shard: Path, keys: Sequence[str]) -> dict[str, Tensor]:
    """Returns entries of a shard; of one that is damaged those that are whole, and it is removed."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, Tensor] = {}
    try:
        with safe_open(shard, framework="pt") as file:
            checksums = json.loads((file.metadata() or {}).get(_CHECKSUMS, "{}"))
            for key in keys:
                tensor = file.get_tensor(key).clone()
                if _checksum(tensor) == checksums.get(key):
                    found[key] = tensor
    except OSError:
        return found
    except (SafetensorError, ValueError, RuntimeError):
        if not shard.exists():  # another process merged it while it was being opened: torch's RuntimeError
            return found
    if len(found) < len(keys):
        _remove(shard)
    return found


def _checksum(tensor: Tensor) -> int:
    import torch

    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
