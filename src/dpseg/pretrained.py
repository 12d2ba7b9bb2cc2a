"""Names of models -> models: those that ship, saved folders, and the Hugging Face hub."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib import resources
from pathlib import Path

import torch

from dpseg.config import ModelConfig
from dpseg.errors import ConfigError, ModelNotFoundError, WeightsError, did_you_mean
from dpseg.matching import Matching
from dpseg.model.dpseg import DPSeg
from dpseg.model.sed import SED_MODELS
from dpseg.prompts.bank import Bank
from dpseg.rejection import Rejection

MODELS = {
    "dpseg-lite": "ships with dpseg: EfficientNet-Lite0 and MiniLM, made for CPUs",
    "dpseg-base": "CLIP ConvNeXt-B, fetched when first used, without a trained decoder; needs the extra 'clip'",
    "dpseg-large": "CLIP ConvNeXt-L, fetched when first used, without a trained decoder; needs the extra 'clip'",
    "sed-base": "SED on CLIP ConvNeXt-B, from its published checkpoint by 'dpseg convert sed'; needs the extra 'clip'",
    "sed-large": "SED on CLIP ConvNeXt-L, from its published checkpoint by 'dpseg convert sed'; needs the extra 'clip'",
}
"""Name -> what it is."""

UNTRAINED_SCALE = 20.0
"""Of the cosine, as a logit, where a model has no scale of its own."""

_UNTRAINED = {
    "dpseg-base": ModelConfig(encoder="base", logit_scale=UNTRAINED_SCALE, tune_encoder=False),
    "dpseg-large": ModelConfig(encoder="large", logit_scale=UNTRAINED_SCALE, tune_encoder=False),
}
"""Models of which no trained weights are published: until somebody trains them, the plain cosine of R and E."""

_FILES = ("config.json", "model.safetensors")
_BANK = "bank.safetensors"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def load_pretrained(
    name_or_path: str | Path, matching: Matching | None = None, rejection: Rejection | None = None
) -> tuple[DPSeg, Bank | None]:
    """Loads a model and, where there is one beside it, its bank, onto the CPU.

    Args:
        name_or_path: a key of `MODELS`, a folder that `DPSeg.save_pretrained` wrote, or "user/model" on the hub.
        matching: how it compares prompts with a photo; None: as its config says.
        rejection: which classes of a long list it gives up, in place of its `decode_classes`; None: as its config says.

    Raises:
        ModelNotFoundError: there is no such model.
        WeightsError: its weights are missing, damaged, or cannot be fetched.
        MissingExtraError: it needs an extra that is not installed.
    """
    model, bank = _load(name_or_path)
    if matching is not None:
        model.config = replace(model.config, matching=matching)
    if rejection is not None:
        model.config = replace(model.config, rejection=rejection, decode_classes=None)
    return model, bank


def _load(name_or_path: str | Path) -> tuple[DPSeg, Bank | None]:
    if str(name_or_path) in _UNTRAINED:
        return DPSeg(_UNTRAINED[str(name_or_path)]).eval(), None
    if str(name_or_path) in SED_MODELS and not Path(name_or_path).is_dir():
        raise WeightsError(
            f"{name_or_path}: its weights are SED's; get the checkpoint that github.com/xb534/SED links to, run"
            f" dpseg convert sed CHECKPOINT.pth --out {name_or_path}, and give that folder"
        )
    folder = model_folder(name_or_path)
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise WeightsError(f"{folder}: holds no {' and no '.join(missing)}; give a folder that save_pretrained wrote")
    bank = folder / _BANK
    return DPSeg.from_pretrained(folder), Bank.load(bank) if bank.is_file() else None


def untrained(model: DPSeg) -> DPSeg:
    """Returns what the model was before training: the plain cosine with R of its encoder, as logits.

    What the encoder was fitted with, its buffers, is kept; everything that a gradient moves starts again. Labels are
    those of the cosine alone, without the config's `presence`, and no words are better known or more frequent than
    others.
    """
    config = model.config
    matching = replace(config.matching, prior=0.0, logit_adjustment=0.0)
    scale = config.logit_scale or UNTRAINED_SCALE
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same weights each time: an evaluation that goes on knows the model again
        fresh = DPSeg(replace(config, logit_scale=scale, presence=0.0, matching=matching))
    fitted = dict(model.named_buffers())
    for name, buffer in fresh.named_buffers():
        buffer.copy_(fitted[name])
    return fresh.eval()


def model_folder(name_or_path: str | Path) -> Path:
    """Returns the folder of a model's files; from the hub they are fetched first.

    Raises:
        ModelNotFoundError: there is no such model.
        WeightsError: the hub cannot be reached.
    """
    name = str(name_or_path)
    if name == "dpseg-lite":
        return Path(str(resources.files("dpseg"))) / "weights" / name
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise WeightsError(f"{name}: is a file; give the folder that holds {' and '.join(_FILES)}")
    if isinstance(name_or_path, str) and _HUB_ID.fullmatch(name):
        return _fetch(name)
    raise ModelNotFoundError(f"no model and no folder is called {name!r}; {did_you_mean(name, MODELS)}")


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """Returns the device to use.

    Args:
        device: e.g. "cpu", "cuda", "cuda:1", "mps"; None: CUDA where there is a GPU, else the CPU.

    Raises:
        ConfigError: there is no such device here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # what torch raises where CUDA is missing
        have = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        raise ConfigError(f"device {str(device)!r} cannot be used here; {did_you_mean(str(device), have)}") from error
    return place


def _fetch(hub_id: str) -> Path:
    """Fetches a model's files from the hub, or finds them in its cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=[*_FILES, _BANK, "names.txt"]))
    except RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"no folder and no public model on the Hugging Face hub is {hub_id!r}; {did_you_mean(hub_id, MODELS)}"
        ) from error
    except Exception as error:  # the hub's client has many kinds for a network that does not answer
        raise WeightsError(
            f"model {hub_id!r} cannot be fetched from the Hugging Face hub ({type(error).__name__}); check the network,"
            f" or give a folder with {' and '.join(_FILES)}"
        ) from error
