"""SED (Xie et al., CVPR 2024), the system that DPSeg extends: its models as configs, and its published weights as ours.

A checkpoint of SED is what detectron2 writes: a file of torch's with a dictionary whose "model" holds the tensors by
name. Its decoder is ours with `spatial: depthwise9` and `guidance: cost_chain`, and its CLIP is open_clip's, with the
image encoder fine-tuned. Two things differ and are mended here: the names, and the order of the 80 templates, which are
channels of two of the decoder's tensors.

What is checked, and with what: the tests hold the decoder against one pass of SED's own, with random weights, and
convert checkpoints that they write themselves. The published checkpoints have not been read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpseg.config import EncoderName, ModelConfig
from dpseg.errors import MissingExtraError, WeightsError
from dpseg.model.clip_weights import CLIP_SOURCES, one_line
from dpseg.model.dpseg import DPSeg
from dpseg.prompts.text import TEMPLATES, templates

SED_BASE = ModelConfig(
    encoder="base",
    image_size=768,
    shortest_edge=640,
    templates=80,
    fusion="text",
    guidance="cost_chain",
    spatial="depthwise9",
    auxiliary_heads=True,
    resize_scores=True,
    tune_encoder=False,  # it is fine-tuned already, and no picture prompts it
)

SED_MODELS = {"sed-base": SED_BASE, "sed-large": replace(SED_BASE, encoder="large")}
"""The published models, with the protocol that gave their figures."""

CLIP_PREFIX, DECODER_PREFIX = "sem_seg_head.predictor.clip_model.", "sem_seg_head.predictor.transformer."
"""What the names of a checkpoint's tensors begin with."""

_STAGE = {
    "spatial": "cnext",
    "spatial.conv": "cnext.dwconv",
    "spatial.layer_norm": "cnext.norm",
    "spatial.widen": "cnext.pwconv1",
    "spatial.narrow": "cnext.pwconv2",
    "attention.norm1": "attention.norm1",
    "attention.query": "attention.attention.q",
    "attention.key": "attention.attention.k",
    "attention.value": "attention.attention.v",
    "attention.norm2": "attention.norm2",
    "attention.mlp.0": "attention.MLP.0",
    "attention.mlp.2": "attention.MLP.2",
    "upsample": "up",
    "fuse.0": "conv.double_conv.0",
    "fuse.1": "conv.double_conv.1",
    "fuse.3": "conv.double_conv.3",
    "fuse.4": "conv.double_conv.4",
}
"""Parts of a decoder stage: our name -> SED's."""

_TEMPLATE_CHANNELS = {"decoder.embed.weight": 1, "decoder.cost_chain.0.0.weight": 0}
"""Tensors of the decoder that have a channel a template, and along which dimension."""


def load_sed(path: Path) -> DPSeg:
    """Reads a checkpoint of SED into a model, on the CPU.

    Args:
        path: the file, as SED publishes it.

    Raises:
        WeightsError: the file cannot be read, or a tensor is missing, unknown or of another shape than SED's.
        MissingExtraError: open_clip is not installed.
    """
    state = read_checkpoint(path)
    config = replace(SED_BASE, encoder=_recognise(state, path))
    model = DPSeg(replace(config, weights="random"))
    own = model.saved_state()
    names = {name: sed_name(name) for name in own}
    _check({names[name]: tuple(tensor.shape) for name, tensor in own.items()}, state, path)
    model.load_saved_state({name: reorder_templates(name, state[theirs]) for name, theirs in names.items()}, str(path))
    model.config = config
    return model.eval()


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a detectron2 checkpoint by name. No code in it is run.

    Besides what torch allows anyway, numpy's arrays and numbers of a few types may be in it, for detectron2 keeps some.

    Raises:
        WeightsError: the file is missing, damaged, holds other things than tensors, or is no such checkpoint.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; give the checkpoint that SED publishes, a .pth file")
    try:
        with torch.serialization.safe_globals(_numpy_globals()):
            checkpoint: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in many ways: pickle, zip and torch errors
        raise WeightsError(
            f"{path}: cannot be read ({one_line(error)}); the file is damaged or of another kind, so get it again"
        ) from error
    state = checkpoint.get("model") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict):
        raise WeightsError(f'{path}: holds no "model" as detectron2 writes it; give the checkpoint that SED publishes')
    tensors = {str(name): torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in state.items()}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise WeightsError(f"{path}: {name} is no tensor but {type(tensor).__name__}; get the file again")
    return tensors


def sed_name(name: str) -> str:
    """Returns what a checkpoint of SED calls a tensor of our model."""
    if name.startswith("encoder.clip."):
        return CLIP_PREFIX + name.removeprefix("encoder.clip.")
    module, _, kind = name.removeprefix("decoder.").rpartition(".")
    return f"{DECODER_PREFIX}{_decoder_modules()[module]}.{kind}"


def reorder_templates(name: str, tensor: Tensor) -> Tensor:
    """Brings a tensor of SED's, where it has a channel a template, from CLIP's order to that of `templates`.

    Args:
        name: our name of it.
        tensor: of any shape.
    """
    if name not in _TEMPLATE_CHANNELS:
        return tensor
    order = [TEMPLATES.index(template) for template in templates(len(TEMPLATES))]
    return tensor.index_select(_TEMPLATE_CHANNELS[name], torch.tensor(order))


def _decoder_modules() -> dict[str, str]:
    """Returns the parts of the decoder: our name -> SED's."""
    names = {"embed": "conv1", "head": "head"}
    for stage in range(3):
        names |= {f"stages.{stage}.{ours}": f"decoder{stage + 1}.{theirs}" for ours, theirs in _STAGE.items()}
        names |= {
            f"stages.{stage}.image.0": f"decoder_guidance_projection.{stage}.0",
            f"cost_chain.{stage}.0": f"decoder_corr_guidance_projection.{stage}.0",
            f"auxiliary.{stage}": f"head{stage}",
        }
    return names


def _recognise(state: Mapping[str, Tensor], path: Path) -> EncoderName:
    """Tells base from large by the size of CLIP's joint space."""
    try:
        from open_clip import get_model_config
    except ImportError as error:
        text = "SED's encoders need open_clip, which is not installed; run: pip install 'dpseg[clip]'"
        raise MissingExtraError(text) from error
    if not any(name.startswith(DECODER_PREFIX) for name in state):
        raise WeightsError(
            f"{path}: holds no tensor below {DECODER_PREFIX}, so it is not SED's; give a checkpoint that is"
        )
    name = f"{CLIP_PREFIX}text_projection"
    if name not in state:
        raise WeightsError(f"{path}: lacks {name}; give a whole checkpoint of SED")
    sizes: dict[EncoderName, int] = {
        encoder: get_model_config(CLIP_SOURCES[encoder].name)["embed_dim"] for encoder in ("base", "large")
    }
    for encoder, size in sizes.items():
        if state[name].shape[-1] == size:
            return encoder
    raise WeightsError(
        f"{path}: {name} is {tuple(state[name].shape)}, which is neither SED's base ({sizes['base']} columns) nor its"
        f" large ({sizes['large']}); other CLIP models are not supported"
    )


def _check(expected: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor], path: Path) -> None:
    """Raises where a tensor of SED is missing, unknown or of another shape."""
    wrong = [
        f"{n} of shape {tuple(state[n].shape)} in place of {s}" for n, s in expected.items() if _differs(state, n, s)
    ]
    missing = [name for name in expected if name not in state]
    extra = [name for name in state if name not in expected]
    for kind, names in (("has", wrong), ("lacks", missing), ("has an unknown", extra)):
        if names:
            more = f" and {len(names) - 1} more like it" if len(names) > 1 else ""
            raise WeightsError(f"{path}: {kind} {names[0]}{more}; give a checkpoint of SED as its authors publish it")


def _differs(state: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> bool:
    return name in state and tuple(state[name].shape) != shape


def _numpy_globals() -> list[Any]:
    """Returns what a checkpoint may name of numpy, under the module names of numpy 1 and 2; no type holds objects."""
    rebuild: tuple[Any, ...] = np.zeros(0).__reduce__()[0], np.float64(0).__reduce__()[0]  # _reconstruct, scalar
    places = "numpy.core.multiarray", "numpy._core.multiarray"
    types = [type(np.dtype(name)) for name in ("bool", "int32", "int64", "float16", "float32", "float64")]
    return [(function, f"{place}.{function.__name__}") for place in places for function in rebuild] + [
        np.ndarray,
        np.dtype,
        *types,
    ]
