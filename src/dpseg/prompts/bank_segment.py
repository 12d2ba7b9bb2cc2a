"""One segment of a bank's folder: the features of some pictures, and an index that says who they are.

ID.safetensors    text, dense, stage2, stage3, stage4, and a copy of the index
ID.json           the index: the entries, checksums, and the hash of that file

Both are written once and never changed; the index comes last, so a segment that has one is whole.
"""

from __future__ import annotations

import hashlib
import json
import uuid
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpseg.errors import WeightsError
from dpseg.files import write_atomically

FEATURES = ("dense", "stage2", "stage3", "stage4")
"""The arrays with one row a picture; "text" has one a name."""

_COPY = "index"
_DTYPES = {"F32": np.float32, "F16": np.float16, "U8": np.uint8}

Arrays = Mapping[str, NDArray[Any]]


class DamagedFileError(WeightsError):
    """A file of a bank is not as it was written."""


@dataclass(frozen=True)
class BankHead:
    """What all entries of a bank have in common.

    Attributes:
        encoder: fingerprint of the encoder that made them.
        text: F_t, size of the text features.
        dense: F, as in `VisualFeatures`.
        stages: D_2, D_3, D_4.
    """

    encoder: str
    text: int
    dense: int
    stages: tuple[int, int, int]

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """F, D_2, D_3, D_4: of a row of each of `FEATURES`."""
        return (self.dense, *self.stages)


@dataclass(frozen=True)
class EntryTable:
    """Who the N rows of a segment are, as columns.

    Attributes:
        names: M distinct names.
        name_checksums: M CRC-32 of the names' text features.
        ids: N, unlike those of any other entry.
        keys: N hashes of the pictures' content.
        owners: N indices into `names`.
        sources: N names of files, as they were given.
        licenses: N texts, which may be empty.
        when: N times at which the entry was added, ISO 8601, UTC.
        checksums: N CRC-32 of the features.
    """

    names: Sequence[str]
    name_checksums: Sequence[int]
    ids: Sequence[str]
    keys: Sequence[str]
    owners: Sequence[int]
    sources: Sequence[str]
    licenses: Sequence[str]
    when: Sequence[str]
    checksums: Sequence[int]

    def __len__(self) -> int:
        return len(self.ids)

    def fits(self, arrays: Arrays, head: BankHead) -> bool:
        """Says whether the columns are as long as each other and as the arrays."""
        columns = {len(getattr(self, field.name)) for field in fields(self)[2:]}
        owners = np.array(self.owners, dtype=np.intp)
        shapes = {"text": (len(self.names), head.text)}
        shapes |= {part: (len(self), size) for part, size in zip(FEATURES, head.sizes, strict=True)}
        return (
            columns == {len(self)}
            and len(self.names) == len(self.name_checksums)
            and bool(((owners >= 0) & (owners < len(self.names))).all())
            and all(name in arrays and arrays[name].shape == shape for name, shape in shapes.items())
        )


@dataclass(frozen=True, eq=False)
class Segment:
    """A segment that is open for reading, without a copy of its features in memory.

    Attributes:
        id: its files' name.
        table: who the N rows are.
        arrays: "text" (M, F_t) float32, and `FEATURES` (N, F), (N, D_j) float16.
        replaces: ids of segments that do not count any more.
        removed: ids of entries that do not count any more.
        digest: SHA-256 of the file of arrays as the index has it; empty where the copy of the index was read.
    """

    id: str
    table: EntryTable
    arrays: Arrays
    replaces: tuple[str, ...]
    removed: tuple[str, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.table)

    def sound(self) -> NDArray[np.bool_]:
        """Returns which of the N rows are as they were written, their names' text features included."""
        names = np.array(_checksums([self.arrays["text"]]), dtype=np.int64) == np.array(self.table.name_checksums)
        rows = np.array(_checksums([self.arrays[part] for part in FEATURES]), dtype=np.int64)
        return np.asarray((rows == np.array(self.table.checksums)) & names[np.array(self.table.owners, dtype=np.intp)])


def new_id() -> str:
    """Returns a name for new files: the time, for people, and a random part."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:16]}"


def write_segment(
    folder: Path,
    head: BankHead,
    table: EntryTable,
    arrays: Arrays,
    replaces: Collection[str] = (),
    removed: Collection[str] = (),
) -> str:
    """Writes a segment and returns its id.

    Args:
        folder: of the segments.
        head: the bank's.
        table: who the rows are; its checksums are made here.
        arrays: as in `Segment`.
        replaces: ids of segments that do not count from now on.
        removed: ids of entries that do not count.

    Raises:
        OutputError: It cannot be written.
    """
    from safetensors.numpy import save

    rows = _checksums([arrays[part] for part in FEATURES])
    table = replace(table, name_checksums=_checksums([arrays["text"]]), checksums=rows)
    about = {
        **asdict(head),
        "replaces": sorted(replaces),
        "removed": sorted(removed),
        "entries": {field.name: list(getattr(table, field.name)) for field in fields(table)},
    }
    tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    data = save({**tensors, _COPY: np.frombuffer(to_json(about), dtype=np.uint8)})
    identity = new_id()
    write_atomically(folder / f"{identity}.safetensors", data)
    write_atomically(folder / f"{identity}.json", to_json({**about, "sha256": hashlib.sha256(data).hexdigest()}))
    return identity


def read_segment(folder: Path, identity: str, head: BankHead, from_copy: bool = False) -> Segment:
    """Opens a segment. Its values are not looked at, see `Segment.sound`.

    Args:
        folder: of the segments.
        identity: the segment's id.
        head: the bank's.
        from_copy: read the copy of the index that stands beside the features.

    Raises:
        FileNotFoundError: One of its files is not there.
        DamagedFileError: Its files are damaged, do not go together, or are of another encoder.
    """
    path = folder / f"{identity}.safetensors"
    about = {} if from_copy else read_json(path.with_suffix(".json"))
    arrays = _map_arrays(path)
    if from_copy:
        about = parse_json(path, arrays.get(_COPY, np.zeros(0, np.uint8)).tobytes())
    try:
        table = EntryTable(**{field.name: about["entries"][field.name] for field in fields(EntryTable)})
        fits = table.fits(arrays, head)
        replaces, removed = tuple(map(str, about["replaces"])), tuple(map(str, about["removed"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{path}: its index is incomplete ({error})") from error
    if head_from(path, about) != head:
        raise DamagedFileError(f"{path}: is of another encoder, {about['encoder']!r}")
    if not fits:
        raise DamagedFileError(f"{path}: its index does not fit its features")
    return Segment(identity, table, arrays, replaces, removed, str(about.get("sha256", "")))


def file_digest(folder: Path, identity: str) -> str:
    """Returns the SHA-256 of a segment's file of features."""
    with (folder / f"{identity}.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def head_from(path: Path, about: Mapping[str, Any]) -> BankHead:
    """Reads the head of a bank out of JSON values.

    Raises:
        DamagedFileError: They hold none.
    """
    try:
        d2, d3, d4 = about["stages"]
        return BankHead(str(about["encoder"]), int(about["text"]), int(about["dense"]), (int(d2), int(d3), int(d4)))
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{path}: does not say which encoder it is of") from error


def read_json(path: Path) -> dict[str, Any]:
    """Reads a file of JSON.

    Raises:
        FileNotFoundError: It is not there.
        DamagedFileError: It holds no JSON object.
    """
    return parse_json(path, path.read_bytes())


def parse_json(path: Path, data: bytes) -> dict[str, Any]:
    """Reads a JSON object; `path` is for the error.

    Raises:
        DamagedFileError: It is none.
    """
    try:
        content = json.loads(data)
    except ValueError as error:
        raise DamagedFileError(f"{path}: its index is damaged ({error})") from error
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path}: its index is damaged")
    return content


def to_json(content: Mapping[str, Any]) -> bytes:
    """Returns JSON in UTF-8; what a file name holds beyond it is escaped as JSON does."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def _checksums(parts: Sequence[NDArray[Any]]) -> list[int]:
    """Returns a CRC-32 for each of N rows, over all `parts`, each (N, anything)."""
    sums = [0] * len(parts[0])
    for part in parts:
        sums = [zlib.crc32(row.data, before) for row, before in zip(np.ascontiguousarray(part), sums, strict=True)]
    return sums


def _map_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Returns a safetensors file's arrays as views of the file."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                raise ValueError("cut off")
            header = json.loads(file.read(length))
        values = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + length).view(np.ndarray)
        arrays = {}
        for name, about in header.items():
            begin, end = about["data_offsets"]
            arrays[name] = values[begin:end].view(_DTYPES[about["dtype"]]).reshape(about["shape"])
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"{path}: its features cannot be read ({error})") from error
    return arrays
