"""A CLIP ConvNeXt of 4 million weights that takes the place of "base" in tests: `small_encoder` under `small_clip`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import open_clip
import torch
from torch import nn

from dpseg.config import ModelConfig
from dpseg.model.clip import ClipEncoder
from dpseg.model.clip_weights import CLIP_SOURCES, ClipSource

SMALL = {
    "embed_dim": 24,
    "vision_cfg": {
        "timm_model_name": "convnext_atto",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "mlp",
        "timm_drop_path": 0.5,
        "image_size": 64,
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


def enliven(module: nn.Module) -> None:
    """Moves every norm, bias and layer scale off its initial value, which is 1, 0 or 1e-6 and would hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) if parameter.ndim <= 1 else None
            if name.endswith("gamma"):
                parameter.copy_(0.3 * noise)
            elif noise is not None:
                parameter.add_(0.1 * noise)


@contextmanager
def small_clip(folder: Path) -> Iterator[None]:
    """Makes "base" the small model; `folder` takes its open_clip config."""
    (folder / "dpseg_small_clip.json").write_text(json.dumps(SMALL))
    open_clip.add_model_config(folder / "dpseg_small_clip.json")
    base = CLIP_SOURCES["base"]
    CLIP_SOURCES["base"] = ClipSource("dpseg_small_clip", "none")
    try:
        yield
    finally:
        CLIP_SOURCES["base"] = base


def small_encoder(weights: str = "random", tune_encoder: bool = False) -> ClipEncoder:
    encoder = ClipEncoder(ModelConfig(encoder="base", weights=weights, tune_encoder=tune_encoder))
    if weights == "random":
        enliven(encoder.clip)
        if encoder.visual_trunk is not None:
            encoder.visual_trunk.load_state_dict(encoder.clip.visual.state_dict())
    return encoder.eval()
