"""Which CLIP models there are, and where their weights come from: open_clip's pretrained tags, or a local file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpseg.errors import MissingExtraError, WeightsError, did_you_mean

_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # open_clip's names, in order of preference
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_TIMEOUT = 10.0  # seconds to wait for the hub's first answer


@dataclass(frozen=True)
class ClipSource:
    """A CLIP model as open_clip names it.

    Attributes:
        name: of open_clip's model config.
        tag: the pretrained weights that are used where the config names none.
    """

    name: str
    tag: str


CLIP_SOURCES = {
    "base": ClipSource("convnext_base_w_320", "laion_aesthetic_s13b_b82k"),
    "large": ClipSource("convnext_large_d_320", "laion2b_s29b_b131k_ft_soup"),
}


def build_clip(source: ClipSource, weights: str | None) -> Any:
    """Makes an open_clip CLIP model on the CPU and loads its weights.

    Args:
        source: the model, and its default tag.
        weights: a pretrained tag of that model, a path to a weights file, "random" for torch's own random
            initialisation, or None for the default tag.

    Raises:
        MissingExtraError: open_clip is not installed.
        WeightsError: no such tag or file, nothing to fetch it with, a damaged file, or weights of another model.
    """
    try:
        from open_clip import CLIP, get_model_config
    except ImportError as error:
        text = f"the encoder {source.name} needs open_clip, which is not installed; run: pip install 'dpseg[clip]'"
        raise MissingExtraError(text) from error

    path = None if weights == "random" else find_weights(source, weights or source.tag)
    clip = CLIP(**get_model_config(source.name))
    if path is not None:
        load_weights(clip, path)
    return clip


def load_tokenizer(source: ClipSource) -> Any:
    """Returns open_clip's tokenizer of that model: a list of N texts -> (N, 77) token ids."""
    from open_clip import get_tokenizer

    return get_tokenizer(source.name)


def colour_statistics(source: ClipSource) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the mean and the standard deviation of red, green and blue in [0, 1] that the model was trained with."""
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
    from open_clip.pretrained import get_pretrained_cfg

    pretrained = get_pretrained_cfg(source.name, source.tag)
    return tuple(pretrained.get("mean", OPENAI_DATASET_MEAN)), tuple(pretrained.get("std", OPENAI_DATASET_STD))


def find_weights(source: ClipSource, weights: str) -> Path:
    """Returns the path of a weights file: of the tag, from the Hugging Face cache or hub, or `weights` itself.

    Raises:
        WeightsError: no such tag or file, or it cannot be fetched; the text says which file to put where.
    """
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    pretrained = get_pretrained_cfg(source.name, weights)
    if pretrained:
        return _fetch(pretrained["hf_hub"].rstrip("/"))
    path = Path(weights).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise WeightsError(f"the weights {weights!r} are a folder; name the file in it, such as {_FILES[0]}")
    hint = did_you_mean(weights, [*list_pretrained_tags_by_model(source.name), "random"])
    raise WeightsError(f"{source.name} has no weights {weights!r}, and no file has that path; {hint}")


def _fetch(repo: str) -> Path:
    """Returns a repo's weights file from the Hugging Face cache, else from the hub. Offline it fails within seconds."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    for name in _FILES:
        cached = try_to_load_from_cache(repo, name)
        if isinstance(cached, str):
            return Path(cached)
    reason = ""
    for name in _FILES:
        try:
            # Asked first because it does not retry: without a network, hf_hub_download alone would take 23 s a file.
            get_hf_file_metadata(hf_hub_url(repo, name), timeout=_TIMEOUT)
            return Path(hf_hub_download(repo, name))
        except EntryNotFoundError as error:
            reason = one_line(error)  # a file that this repo lacks: try the next
        except Exception as error:  # which types mean "no network" depends on the hub client's HTTP library
            reason = one_line(error)
            break
    raise WeightsError(
        f"cannot fetch the CLIP weights ({reason}); get {_FILES[0]} or {_FILES[1]} of the Hugging Face repo {repo}, "
        "put it anywhere, and give its path as the model's `weights`"
    )


def load_weights(clip: Any, path: Path) -> None:
    """Reads a weights file into a CLIP model: every tensor must be there, with its shape.

    Args:
        clip: open_clip's CLIP.
        path: .safetensors, or .pt, .pth or .bin, which are read with weights_only=True: no code in them is run. A
            checkpoint of open_clip's training (`state_dict`, `module.` prefixes) will do.

    Raises:
        WeightsError: the file cannot be read, or its tensors do not fit; the text names the file and the first misfit.
    """
    state = _read(path)
    expected: dict[str, Tensor] = clip.state_dict()
    missing = [name for name in expected if name not in state]
    extra = [name for name in state if name not in expected]
    misfits = [name for name in expected if name in state and state[name].shape != expected[name].shape]
    if missing or extra or misfits:
        first = (misfits or missing or extra)[0]
        raise WeightsError(
            f"the weights in {path} are of another model: {len(missing)} tensors missing, {len(extra)} unknown, "
            f"{len(misfits)} of another shape, the first {first!r}; choose the encoder that they belong to"
        )
    clip.load_state_dict(state)


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix not in _SUFFIXES:
        raise WeightsError(f"cannot read weights from {path}: the name must end in one of {', '.join(_SUFFIXES)}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in many ways: pickle, zip, json and torch errors
        reason = f"cannot read the weights in {path} ({one_line(error)})"
        raise WeightsError(f"{reason}; the file is damaged or of another kind, so get it again") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} holds no weights by name; save a model's state_dict there")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def one_line(error: Exception) -> str:
    """The first sentence of an error's text, with its type."""
    text = " ".join(str(error).split()).split(". ")[0]
    return f"{type(error).__name__}: {text[:160]}"
