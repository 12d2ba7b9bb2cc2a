"""Checkpoints under SED's names, written by tests: the decoder's tensors as SED defines them, and a CLIP's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CLIP, DECODER = "sem_seg_head.predictor.clip_model.", "sem_seg_head.predictor.transformer."

Shapes = dict[str, tuple[int, ...]]


def layer(name: str, outputs: int, *others: int) -> Shapes:
    """Weight and bias of a layer with so many outputs."""
    return {f"{name}.weight": (outputs, *others), f"{name}.bias": (outputs,)}


def stage_shapes(width: int, outputs: int, guidance: int) -> Shapes:
    """One of SED's "Up" modules."""
    shapes = layer("cnext.dwconv", width, 1, 9, 9) | {"cnext.gamma": (width,)}
    for wide, narrow in (("cnext.pwconv1", "cnext.pwconv2"), ("attention.MLP.0", "attention.MLP.2")):
        shapes |= layer(wide, 4 * width, width) | layer(narrow, width, 4 * width)
    for projection in "qkv":
        shapes |= layer(f"attention.attention.{projection}", width, width)
    for norm in ("cnext.norm", "attention.norm1", "attention.norm2"):
        shapes |= layer(norm, width)
    shapes |= {"up.weight": (width, width - guidance, 2, 2), "up.bias": (width - guidance,)}
    for number, inputs in ((0, width + guidance), (3, outputs)):
        shapes[f"conv.double_conv.{number}.weight"] = (outputs, inputs, 3, 3)
        shapes |= layer(f"conv.double_conv.{number + 1}", outputs)
    return shapes


def decoder_shapes(stage_dims: tuple[int, ...]) -> Shapes:
    """SED's decoder for an encoder with D_2, D_3, D_4."""
    widths, guidance, corr = (128, 64, 32, 16), (32, 16, 8), (80, 32, 16)
    shapes = layer("conv1", 128, 80, 7, 7) | layer("head", 1, 16, 3, 3)
    for i in range(3):
        stage = stage_shapes(widths[i], widths[i + 1], guidance[i])
        shapes |= {f"decoder{i + 1}.{name}": shape for name, shape in stage.items()}
        shapes |= layer(f"decoder_guidance_projection.{i}.0", guidance[i], stage_dims[2 - i], 3, 3)
        shapes |= layer(f"head{i}", 1, widths[i], 3, 3)
        shapes[f"decoder_corr_guidance_projection.{i}.0.weight"] = (corr[i], guidance[i], 2, 2)
        shapes[f"decoder_corr_guidance_projection.{i}.0.bias"] = (guidance[i],)
    return shapes


def checkpoint(clip: dict[str, Tensor], stage_dims: tuple[int, ...]) -> dict[str, Any]:
    """What SED's training saves: the model, and what else detectron2 puts beside it."""
    random = torch.Generator().manual_seed(0)
    model = {CLIP + name: tensor for name, tensor in clip.items()}
    for name, shape in decoder_shapes(stage_dims).items():
        model[DECODER + name] = torch.randn(shape, generator=random) * 0.1
    optimizer: dict[str, Any] = {"state": {}, "param_groups": []}
    return {"model": model, "optimizer": optimizer, "scheduler": {"last_epoch": 7}, "iteration": 7}
