"""CLIP ConvNeXt as DPSeg's encoder: convnext_base_w_320 and convnext_large_d_320 of open_clip.

The pyramid is taken by calling timm's stem and stages one after another, and the dense embedding by applying CLIP's
own norm and projection at every position of the last map, in place of its average (the idea of MaskCLIP, ECCV 2022,
and, with ConvNeXt, of FC-CLIP, NeurIPS 2023, and SED, CVPR 2024).

What is checked, and with what: the tests hold the dense embedding against `encode_image`, and T against `encode_text`,
to 1e-5, for base and large, with random weights only. The pretrained weights themselves have not been run: the tags go
to the hub as open_clip names them, and the files' layout is open_clip's own state dict.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpseg.config import ModelConfig
from dpseg.model.clip_weights import CLIP_SOURCES, build_clip, colour_statistics, load_tokenizer
from dpseg.model.encoders import Pyramid, VisualFeatures
from dpseg.model.fingerprint import weights_fingerprint
from dpseg.model.pooling import masked_mean

_TEXT_BATCH = 256
_VISUAL_BATCH = 32


class ClipEncoder(nn.Module):
    """Image, text and visual prompt encoder of one CLIP ConvNeXt; see `Encoder` for the attributes.

    Text and visual prompts go through frozen weights. While the image encoder is frozen too, the visual prompt encoder
    is the image encoder itself; with `tune_encoder` it is a frozen copy, `visual_trunk`, which is then part of the
    state dict. Frozen parts stay in eval mode, so that stochastic depth never touches them; a tuned image encoder has
    open_clip's own stochastic depth (0.1) in training.
    """

    embed_dim: int
    stage_dims: tuple[int, int, int]
    strides: tuple[int, int, int, int]
    crop_size: int
    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        """Builds the encoder that `config.encoder` ("base" or "large") names, with `config.weights`.

        Raises:
            MissingExtraError: open_clip is not installed.
            WeightsError: the weights are missing, cannot be fetched, or do not fit.
        """
        super().__init__()
        source = CLIP_SOURCES[config.encoder]
        self.name = source.name
        self.tune_encoder = config.tune_encoder
        self.clip: Any = build_clip(source, config.weights).requires_grad_(False)
        _write_over(self.clip.visual.trunk)
        self.visual_trunk = deepcopy(self.clip.visual) if config.tune_encoder else None
        self.clip.visual.requires_grad_(config.tune_encoder)
        self.tokenizer = load_tokenizer(source)

        levels = self.clip.visual.trunk.feature_info
        self.stage_dims = (levels[0]["num_chs"], levels[1]["num_chs"], levels[2]["num_chs"])
        self.strides = (*(level["reduction"] for level in levels[:3]), levels[3]["reduction"])
        self.embed_dim = self.clip.text_projection.shape[1]
        self.packaged: tuple[str, ...] = ()
        self.crop_size = self.clip.visual.image_size[0]

        mean, std = colour_statistics(source)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.train(self.training)

    @property
    def fingerprint(self) -> str:
        """Depends on the architecture and on the frozen weights, those of text and visual prompts."""
        text = (weight for name, weight in self.clip.named_parameters() if not name.startswith("visual."))
        return weights_fingerprint(f"clip-1-{self.name}", [*text, *self._prompt_tower.parameters()])

    @property
    def _prompt_tower(self) -> Any:
        return self.clip.visual if self.visual_trunk is None else self.visual_trunk

    def train(self, mode: bool = True) -> ClipEncoder:
        """Sets training mode, of a tuned image encoder only."""
        super().train(mode)
        self.clip.eval()
        self.clip.visual.train(mode and self.tune_encoder)
        if self.visual_trunk is not None:
            self.visual_trunk.eval()
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes the image encoder's activations in the backward pass: less memory, more time."""
        self.clip.visual.set_grad_checkpointing(enable)

    def pyramid(self, images: Tensor) -> Pyramid:
        """See `Encoder.pyramid`."""
        return self._pyramid(self.clip.visual, images)

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """See `Encoder.text_features`: CLIP's `encode_text`, (N, D); texts beyond 77 tokens are cut."""
        tokens = self.tokenizer(list(texts)).to(self.mean.device)
        return torch.cat([self.clip.encode_text(batch) for batch in tokens.split(_TEXT_BATCH)])

    def word_pieces(self, word: str) -> tuple[str, ...]:
        """See `Encoder.word_pieces`: those of CLIP's byte pair encoding."""
        return tuple(self.tokenizer.decoder[token].removesuffix("</w>") for token in self.tokenizer.encode(word))

    def familiarity(self, features: Tensor) -> Tensor:
        """See `Encoder.familiarity`: it knows any text."""
        return features.new_ones(features.shape[:-1])

    def log_frequency(self, features: Tensor) -> Tensor:
        """See `Encoder.log_frequency`: it had no masks."""
        return features.new_zeros(features.shape[:-1])

    def project_text(self, features: Tensor) -> Tensor:
        """The identity: CLIP's texts are in the joint space."""
        return features

    @torch.no_grad()
    def visual_features(self, crops: Tensor, masks: Tensor | None = None) -> VisualFeatures:
        """See `Encoder.visual_features`.

        Without masks, V is CLIP's `encode_image` of the crop. With them, CLIP's own global average before its norm and
        projection is weighted by the mask, so a mask of ones changes nothing. The background is not dimmed: it stays in
        view of the network as context, but is not pooled. (ours)
        """
        batches = torch.split(crops, _VISUAL_BATCH)
        batch_masks = [None] * len(batches) if masks is None else torch.split(masks, _VISUAL_BATCH)
        tower = self._prompt_tower
        pooled = [
            [masked_mean(stage, mask) for stage in self._stages(tower, batch)]
            for batch, mask in zip(batches, batch_masks, strict=True)
        ]
        v2, v3, v4, v5 = (torch.cat(level) for level in zip(*pooled, strict=True))  # GAP(V_j)
        dense = _project(tower, v5[:, :, None, None])[:, :, 0, 0]  # V
        return VisualFeatures(dense=dense, stages=(v2, v3, v4))

    @torch.no_grad()
    def prompt_pyramid(self, images: Tensor, pyramid: Pyramid) -> Pyramid:
        """See `Encoder.prompt_pyramid`: of a tuned model, all of the frozen copy runs; else nothing does."""
        if self.visual_trunk is None:
            return Pyramid(pyramid.stages, pyramid.dense)
        return self._pyramid(self.visual_trunk, images)

    def project_visual(self, features: Tensor) -> Tensor:
        """The identity: CLIP's pictures are in the joint space."""
        return features

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """See `Encoder.parameter_groups`: the whole image encoder with `tune_encoder`, else nothing; no others."""
        return (list(self.clip.visual.parameters()) if self.tune_encoder else [], [])

    def _pyramid(self, tower: Any, images: Tensor) -> Pyramid:
        e2, e3, e4, e5 = self._stages(tower, images)  # E_2 .. E_5
        return Pyramid(stages=(e2, e3, e4), dense=_project(tower, e5))  # E

    def _stages(self, tower: Any, images: Tensor) -> list[Tensor]:
        """The outputs of ConvNeXt's four stages, (B, D_j, H_j, W_j), the last as it goes to the head."""
        features = tower.trunk.stem((images - self.mean) / self.std)
        outputs = []
        for stage in tower.trunk.stages:
            features = stage(features)
            outputs.append(features)
        outputs[-1] = tower.trunk.norm_pre(outputs[-1])
        return outputs


class _GELU(nn.Module):
    """GELU that writes over its input where no gradient is needed: that input is a block's largest tensor."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps a tensor of any shape."""
        if torch.is_grad_enabled() and x.requires_grad:
            return F.gelu(x)
        activated: Tensor = torch.ops.aten.gelu_(x)
        return activated


def _write_over(trunk: nn.Module) -> None:
    """Replaces the GELUs of a ConvNeXt's blocks, whose inputs nothing else reads."""
    for module in list(trunk.modules()):
        act = getattr(module, "act", None)
        if type(act).__name__ == "GELU" and getattr(act, "approximate", "none") == "none":  # torch's or timm's
            module.act = _GELU()


def _project(tower: Any, features: Tensor) -> Tensor:
    """Takes (B, D_5, H, W) to the joint space, (B, D, H, W): CLIP's head at each position, without its average."""
    head = tower.trunk.head
    positions = head.norm(features).permute(0, 2, 3, 1)
    embeddings: Tensor = tower.head(head.fc(head.drop(head.pre_logits(positions))))
    return embeddings.permute(0, 3, 1, 2)
