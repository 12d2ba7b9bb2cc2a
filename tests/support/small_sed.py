"""Checkpoints under SED's names, written by tests: the decoder's tensors as SED defines them, and a CLIP's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CLIP, DECODER = "sem_seg_head.predictor.clip_model.", "sem_seg_head.predictor.transformer."

Shapes = dict[str, tuple[int, ...]]


def linear(name: str, outputs: int, *others: int) -> Shapes:
    """Weight and bias of a layer with so many outputs."""
    return {f"{name}.weight": (outputs, *others), f"{name}.bias": (outputs,)}


def stage_shapes(name: str, width: int, outputs: int, guidance: int) -> Shapes:
    """One of SED's "Up" modules."""
    return {
        **linear(f"{name}.cnext.dwconv", width, 1, 9, 9),
        **linear(f"{name}.cnext.norm", width),
        **linear(f"{name}.cnext.pwconv1", 4 * width, width),
        **linear(f"{name}.cnext.pwconv2", width, 4 * width),
        f"{name}.cnext.gamma": (width,),
        **linear(f"{name}.attention.attention.q", width, width),
        **linear(f"{name}.attention.attention.k", width, width),
        **linear(f"{name}.attention.attention.v", width, width),
        **linear(f"{name}.attention.MLP.0", 4 * width, width),
        **linear(f"{name}.attention.MLP.2", width, 4 * width),
        **linear(f"{name}.attention.norm1", width),
        **linear(f"{name}.attention.norm2", width),
        f"{name}.up.weight": (width, width - guidance, 2, 2),
        f"{name}.up.bias": (width - guidance,),
        f"{name}.conv.double_conv.0.weight": (outputs, width + guidance, 3, 3),
        **linear(f"{name}.conv.double_conv.1", outputs),
        f"{name}.conv.double_conv.3.weight": (outputs, outputs, 3, 3),
        **linear(f"{name}.conv.double_conv.4", outputs),
    }


def decoder_shapes(stage_dims: tuple[int, ...]) -> Shapes:
    """SED's decoder for an encoder with D_2, D_3, D_4."""
    widths, guidance, corr = (128, 64, 32, 16), (32, 16, 8), (80, 32, 16)
    shapes = linear("conv1", 128, 80, 7, 7) | linear("head", 1, 16, 3, 3)
    for i in range(3):
        shapes |= stage_shapes(f"decoder{i + 1}", widths[i], widths[i + 1], guidance[i])
        shapes |= linear(f"decoder_guidance_projection.{i}.0", guidance[i], stage_dims[2 - i], 3, 3)
        shapes |= linear(f"head{i}", 1, widths[i], 3, 3)
        shapes[f"decoder_corr_guidance_projection.{i}.0.weight"] = (corr[i], guidance[i], 2, 2)
        shapes[f"decoder_corr_guidance_projection.{i}.0.bias"] = (guidance[i],)
    return shapes


def checkpoint(clip: dict[str, Tensor], stage_dims: tuple[int, ...]) -> dict[str, Any]:
    """What SED's training saves: the model, and what else detectron2 puts beside it."""
    random = torch.Generator().manual_seed(0)
    model = {CLIP + name: tensor for name, tensor in clip.items()}
    for name, shape in decoder_shapes(stage_dims).items():
        model[DECODER + name] = torch.randn(shape, generator=random) * 0.1
    return {
        "model": model,
        "optimizer": {"state": {}, "param_groups": []},
        "scheduler": {"last_epoch": 7},
        "iteration": 7,
    }
