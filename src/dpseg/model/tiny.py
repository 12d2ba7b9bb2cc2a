"""A random encoder of a few thousand weights: the whole protocol within milliseconds, for tests."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from dpseg.config import ModelConfig
from dpseg.model.encoders import Pyramid, VisualFeatures
from dpseg.model.fingerprint import weights_fingerprint
from dpseg.model.pooling import masked_mean

_STAGE_DIMS = (8, 12, 16)  # D_2, D_3, D_4
_EMBED_DIM = 24  # D
_TEXT_DIM = 20  # F_t, unlike D, so that a missing project_text shows
_BUCKETS = 1024  # rows of the text table


class TinyTrunk(nn.Module):
    """Four strided convolutions and a projection, with no view beyond a position's own pixels."""

    def __init__(self) -> None:
        super().__init__()
        dims = (3, *_STAGE_DIMS, 2 * _EMBED_DIM)
        self.stages = nn.ModuleList(
            nn.Conv2d(before, after, kernel_size=size, stride=size)
            for before, after, size in zip(dims, dims[1:], (4, 2, 2, 2), strict=False)
        )
        self.projection = nn.Conv2d(2 * _EMBED_DIM, _EMBED_DIM, kernel_size=1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Takes (B, 3, H, W) in [0, 1] to E_2, E_3, E_4 and E."""
        features = (images - 0.5) / 0.25
        outputs = []
        for stage in self.stages:
            features = torch.tanh(stage(features))
            outputs.append(features)
        return outputs[0], outputs[1], outputs[2], self.projection(features)


class TinyEncoder(nn.Module):
    """Encoder with strides 4, 8, 16 and 32 whose weights depend on the seed alone; see `Encoder` for the attributes.

    Of the config it reads `tune_encoder` only, and treats it as `ClipEncoder` does.
    """

    embed_dim: int = _EMBED_DIM
    stage_dims: tuple[int, int, int] = _STAGE_DIMS
    strides: tuple[int, int, int, int] = (4, 8, 16, 32)
    crop_size: int = 32
    packaged: tuple[str, ...] = ()
    table: Tensor

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        """Draws the weights; torch's global generator is left as it was."""
        super().__init__()
        self.tune_encoder = config.tune_encoder
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.trunk = TinyTrunk().requires_grad_(config.tune_encoder)
            self.text_projection = nn.Linear(_TEXT_DIM, _EMBED_DIM)
            self.register_buffer("table", torch.randn(_BUCKETS, _TEXT_DIM), persistent=False)
        self.visual_trunk = deepcopy(self.trunk).requires_grad_(False) if config.tune_encoder else None

    @property
    def fingerprint(self) -> str:
        """Depends on the weights that visual prompts and texts go through before they are projected."""
        return weights_fingerprint("tiny-1", [self.table, *self._prompt_trunk.parameters()])

    @property
    def _prompt_trunk(self) -> TinyTrunk:
        return self.trunk if self.visual_trunk is None else self.visual_trunk

    def pyramid(self, images: Tensor) -> Pyramid:
        """See `Encoder.pyramid`."""
        e2, e3, e4, dense = self.trunk(images)
        return Pyramid(stages=(e2, e3, e4), dense=dense)

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """See `Encoder.text_features`: the average of a fixed random vector for the text, its words and its trigrams.

        Equal texts get equal features, and texts that share words get similar ones, whatever the process or machine.
        """
        features = self.table.new_zeros(len(texts), _TEXT_DIM)
        for row, text in zip(features, texts, strict=True):
            row += self.table[_buckets(text)].mean(dim=0)
        return features

    def word_pieces(self, word: str) -> tuple[str, ...]:
        """See `Encoder.word_pieces`: it knows any word."""
        return (word,)

    def familiarity(self, features: Tensor) -> Tensor:
        """See `Encoder.familiarity`: it knows any text."""
        return features.new_ones(features.shape[:-1])

    def log_frequency(self, features: Tensor) -> Tensor:
        """See `Encoder.log_frequency`: it had no masks."""
        return features.new_zeros(features.shape[:-1])

    def project_text(self, features: Tensor) -> Tensor:
        """See `Encoder.project_text`: linear, trainable."""
        projected: Tensor = self.text_projection(features)
        return projected

    @torch.no_grad()
    def visual_features(self, crops: Tensor, masks: Tensor | None = None) -> VisualFeatures:
        """See `Encoder.visual_features`; F = D."""
        v2, v3, v4, dense = self._prompt_trunk(crops)
        stages = (masked_mean(v2, masks), masked_mean(v3, masks), masked_mean(v4, masks))
        return VisualFeatures(dense=masked_mean(dense, masks), stages=stages)

    @torch.no_grad()
    def prompt_pyramid(self, images: Tensor, pyramid: Pyramid) -> Pyramid:
        """See `Encoder.prompt_pyramid`: nothing is computed unless the trunk is tuned."""
        if self.visual_trunk is None:
            return Pyramid(pyramid.stages, pyramid.dense)
        v2, v3, v4, dense = self.visual_trunk(images)
        return Pyramid((v2, v3, v4), dense)

    def project_visual(self, features: Tensor) -> Tensor:
        """The identity."""
        return features

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Does nothing: its trained part keeps few activations."""

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """See `Encoder.parameter_groups`: the trunk with `tune_encoder`, and the text projection."""
        return (list(self.trunk.parameters()) if self.tune_encoder else [], list(self.text_projection.parameters()))


def _buckets(text: str) -> list[int]:
    """Rows of the table for a text: itself, its words, and the trigrams of its characters."""
    text = " ".join(text.lower().split())
    padded = f" {text} "
    trigrams = [padded[start : start + 3] for start in range(len(padded) - 2)]
    return [zlib.crc32(part.encode()) % _BUCKETS for part in (text, *text.split(), *trigrams)]
