"""Where a text-to-image pipeline's files are, and what they say of themselves."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from dpseg.errors import ConfigError, MissingExtraError, ModelNotFoundError, WeightsError, did_you_mean
from dpseg.model.clip_weights import one_line

DTYPES = {"32": torch.float32, "16": torch.float16, "bf16": torch.bfloat16}
"""Name -> numbers in which a pipeline computes."""

_INDEX, _CARD = "model_index.json", "README.md"
_WEIGHTS = (".bin", ".json", ".model", ".pt", ".safetensors", ".txt")
_PIECES, _PIECE = 16, 65_536  # pieces of a file that are hashed, and bytes of each
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT = 10.0  # seconds to wait for the hub's first answer


@dataclass(frozen=True)
class Found:
    """A pipeline's folder.

    Attributes:
        name: as the user gave it.
        folder: with `model_index.json`.
        commit: of the hub; None: unknown.
    """

    name: str
    folder: Path
    commit: str | None

    def weights(self) -> str:
        """Returns 16 hexadecimal digits that change with the files: their names, sizes and pieces of their content."""
        digest = hashlib.sha256()
        for path in sorted(self.folder.rglob("*")):
            if path.suffix in _WEIGHTS and path.is_file():
                digest.update(f"{path.relative_to(self.folder).as_posix()} {path.stat().st_size}\n".encode())
                digest.update(_pieces(path))
        return digest.hexdigest()[:16]

    def license(self) -> str | None:
        """Returns what the model card says, which is a README.md that begins with YAML; None: it says nothing."""
        try:
            parts = (self.folder / _CARD).read_text("utf-8-sig").split("---")
            card = yaml.safe_load(parts[1]) if len(parts) > 2 and not parts[0].strip() else None
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            return None
        if not isinstance(card, dict) or not card.get("license"):
            return None
        return str(card["license_name"] if card["license"] == "other" and card.get("license_name") else card["license"])

    def dtype(self, asked: str, device: torch.device) -> torch.dtype:
        """Returns the numbers in which it is to compute.

        Args:
            asked: a key of `DTYPES`, or "auto": 32 bits on a CPU, and 16 on a GPU, as bfloat16 where a transformer
                paints, for those overflow in float16.
            device: where.

        Raises:
            ConfigError: the dtype is unknown.
        """
        if asked in DTYPES:
            return DTYPES[asked]
        if asked != "auto":
            raise ConfigError(f"dtype {asked!r} is unknown; {did_you_mean(asked, ['auto', *DTYPES])}")
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if "transformer" in _index(self.folder) else torch.float16


def find_generator(name: str) -> Found:
    """Returns a pipeline's folder; one of the hub is fetched first, or found in the hub's cache.

    Args:
        name: a folder that diffusers saved, or "user/model" on the Hugging Face hub.

    Raises:
        ModelNotFoundError: there is no such pipeline.
        WeightsError: it cannot be fetched, or the folder is no pipeline.
        MissingExtraError: diffusers is not installed.
    """
    diffusers = import_diffusers()
    folder = Path(name).expanduser()
    if folder.exists() and not folder.is_dir():
        raise WeightsError(f"{name}: is a file; give the folder of a diffusers pipeline, which holds {_INDEX}")
    if not folder.is_dir():
        if not _HUB_ID.fullmatch(name):
            raise ModelNotFoundError(
                f"no folder is called {name!r}; give the folder of a diffusers pipeline, or user/model on the hub"
            )
        folder = _fetch(diffusers, name)
    _index(folder)
    commit = folder.resolve().name  # the hub's cache names a folder after the commit
    return Found(name, folder, commit if _COMMIT.fullmatch(commit) else None)


def import_diffusers() -> Any:
    """Returns the module diffusers, made to say nothing but errors.

    Raises:
        MissingExtraError: it, or transformers, is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what its modules use of torch
            diffusers, transformers = (importlib.import_module(name) for name in ("diffusers", "transformers"))
    except ImportError as error:
        raise MissingExtraError(
            "painting pictures needs diffusers, which is not installed; run: pip install 'dpseg[generate]'"
        ) from error
    for package in (diffusers, transformers):
        package.utils.logging.set_verbosity_error()
        package.utils.logging.disable_progress_bar()
    return diffusers


def _index(folder: Path) -> Mapping[str, Any]:
    """Returns what the folder's index says: the pipeline's class, and its parts by name."""
    path = folder / _INDEX
    if not path.is_file():
        raise WeightsError(
            f"{folder}: is no diffusers pipeline, it holds no {_INDEX}; give a folder that a pipeline's save_pretrained"
            " wrote"
        )
    try:
        index = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read ({one_line(error)}); get it again") from error
    if not isinstance(index, dict) or "_class_name" not in index:
        raise WeightsError(f"{path}: names no pipeline; get it again")
    return index


def _fetch(diffusers: Any, name: str) -> Path:
    """Returns the folder of a hub's pipeline: fetched, or from the cache where the hub does not answer."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        # Asked first because it does not retry: without a network, a download alone takes far longer to fail.
        HfApi().model_info(name, timeout=_TIMEOUT)
        folder = Path(diffusers.DiffusionPipeline.download(name))
    except GatedRepoError as error:
        raise WeightsError(
            f"{name}: its authors ask for consent; give it on the model's page, and log in with: hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFoundError(f"no folder and no public model on the Hugging Face hub is {name!r}") from error
    except Exception as error:  # which types mean "no network" depends on the hub client's HTTP library
        return _cached(diffusers, name, error)
    _fetch_card(name)
    return folder


def _cached(diffusers: Any, name: str, reason: Exception) -> Path:
    try:
        return Path(diffusers.DiffusionPipeline.download(name, local_files_only=True))
    except Exception as error:  # as many kinds as above
        raise WeightsError(
            f"{name}: cannot be fetched from the Hugging Face hub ({one_line(reason)}); copy its files, {_INDEX} and"
            " the folders that it names, into a folder, and give that as --generator"
        ) from error


def _fetch_card(name: str) -> None:
    """Fetches the model card, which a pipeline's download leaves out; a model may have none."""
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(name, _CARD)
    except Exception:  # as many kinds as above; then the licence is not known
        return


def _pieces(path: Path) -> bytes:
    """Returns a hash of a file's content; of a large one, of pieces that are spread over it."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if size <= _PIECES * _PIECE:
            digest.update(file.read())
        else:
            for number in range(_PIECES):
                file.seek((size - _PIECE) * number // (_PIECES - 1))
                digest.update(file.read(_PIECE))
    return digest.digest()
