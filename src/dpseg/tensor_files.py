"""One safetensors file that says what it is: prompt sets and banks are kept so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dpseg.errors import DPSegError
from dpseg.files import write_atomically

_KEY = "dpseg"


def write_tensors(
    path: str | Path, kind: str, version: int, tensors: Mapping[str, Tensor], about: Mapping[str, Any]
) -> Path:
    """Writes tensors and what they are, atomically.

    Args:
        path: the file.
        kind: what it holds, e.g. "prompts"; `read_tensors` asks for the same.
        version: of the kind's format.
        tensors: by name, on any device.
        about: JSON values.

    Raises:
        OutputError: It cannot be written.
    """
    from safetensors.torch import save

    # Clones, because safetensors refuses tensors that share memory.
    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    head = json.dumps({"kind": kind, "version": version, **about}, ensure_ascii=False)
    return write_atomically(path, save(plain, metadata={_KEY: head}))


def kind_of(path: str | Path) -> str | None:
    """Returns what a file holds, as it was written; None where it cannot be read or is of no kind."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            kind = json.loads((file.metadata() or {}).get(_KEY, "{}")).get("kind")
    except (OSError, SafetensorError, ValueError):
        return None
    return kind if isinstance(kind, str) else None


def read_tensors(
    path: str | Path, kind: str, version: int, error: type[DPSegError]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `write_tensors` wrote.

    Args:
        path: the file.
        kind: as it was written.
        version: the newest that the caller understands.
        error: the kind of error to raise.

    Returns:
        The tensors by name, on the CPU, and the rest.

    Raises:
        DPSegError: As `error`; the file is missing, damaged, of another kind, or of a newer version.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise error(f"{path}: no such file; check the path")
    try:
        with safe_open(path, framework="pt") as file:
            head = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as cause:
        raise error(f"{path}: cannot be read ({cause}); it is no safetensors file or damaged, make it again") from cause
    if head.get("kind") != kind:
        raise error(
            f"{path}: holds {head.get('kind', 'something else')!r}, not {kind!r}; give a file that dpseg wrote as such"
        )
    if not isinstance(head.get("version"), int) or head["version"] > version:
        raise error(
            f"{path}: format version {head.get('version')!r} is newer than {version}; update dpseg, or make it again"
        )
    return tensors, head
