"""A CLIP ConvNeXt of 4 million weights that takes the place of "base" in tests: `small_encoder` under `small_clip`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from dpseg.config import ModelConfig
from dpseg.model.clip import ClipEncoder
from dpseg.model.clip_weights import CLIP_SOURCES, ClipSource

NAME, STAGE_DIMS = "dpseg_small_clip", (40, 80, 160)
VISION = {"timm_model_name": "convnext_atto", "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "mlp"}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
SMALL = {"embed_dim": 24, "vision_cfg": {**VISION, "timm_drop_path": 0.5, "image_size": 64}, "text_cfg": TEXT}

needs_clip = pytest.mark.skipif(not find_spec("open_clip"), reason="needs the extra: pip install 'dpseg[clip]'")


class Code:
    """What a pickle would run: it makes the file "ran"."""

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return (Path.touch, (Path("ran"),))


def enliven(module: nn.Module) -> None:
    """Moves every norm, bias and layer scale off its initial value, which is 1, 0 or 1e-6 and would hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1 and not name.endswith("gamma"):
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.3 * noise) if name.endswith("gamma") else parameter.add_(0.1 * noise)


@contextmanager
def small_clip(folder: Path) -> Iterator[None]:
    """Makes "base" the small model; `folder` takes its open_clip config."""
    import open_clip

    (folder / f"{NAME}.json").write_text(json.dumps(SMALL))
    open_clip.add_model_config(folder / f"{NAME}.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CLIP_SOURCES, "base", ClipSource(NAME, "none"))
        yield


def small_encoder(weights: str = "random", tune_encoder: bool = False) -> ClipEncoder:
    """The small model, with lively weights where they are random."""
    encoder = ClipEncoder(ModelConfig(encoder="base", weights=weights, tune_encoder=tune_encoder))
    if weights == "random":
        enliven(encoder.clip)
        if encoder.visual_trunk is not None:
            encoder.visual_trunk.load_state_dict(encoder.clip.visual.state_dict())
    return encoder.eval()
