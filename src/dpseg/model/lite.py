"""The encoder of dpseg-lite: EfficientNet-Lite0 and MiniLM, both from registry packages, in one joint space.

It is ImageNet-supervised with text regression, not CLIP. The joint space is that of the classifier's 1280 features,
less their mean. A text gets there by kernel ridge regression from its MiniLM embedding to the classifier's weight
vectors, on the 1000 pairs (ImageNet name, weight vector); a picture gets there by itself. What training adds starts at
zero, so that an untrained encoder is exactly this.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpseg.config import ModelConfig
from dpseg.model import efficientnet_lite0 as lite0
from dpseg.model.encoders import Pyramid, VisualFeatures
from dpseg.model.fingerprint import weights_fingerprint
from dpseg.model.minilm import FEATURES, MiniLM
from dpseg.model.pooling import masked_mean

KERNEL_GAMMA = 2.0
"""Of the kernel exp(-gamma |a - b|^2) between unit vectors, for the regression on ImageNet's names."""

RIDGE = 0.1
"""Ridge of that regression."""

LOCAL_GAMMA = 8.0
"""Of the kernel of the trained residual: so narrow that a name far from every trained name keeps its regression."""

ADAPTER_RANK = 64


class TextMap(nn.Module):
    """MiniLM embeddings -> the joint space: a fixed kernel regression and a trained local residual.

    The residual is a kernel expansion on the names that training saw. With one vector a name it can move those names
    freely, and their neighbours in meaning with them, while unseen names far away keep what the regression gives them.
    """

    support: Tensor
    vectors: Tensor
    coefficients: Tensor
    local_support: Tensor
    log_frequencies: Tensor

    def __init__(self, vectors: Tensor, local_names: int) -> None:
        """Makes room for the names.

        Args:
            vectors: (1000, 1280) weight vectors of ImageNet's classes; they come from the package and are not saved.
            local_names: names on which the residual stands; whoever trains it sets `local_support`, and in
                `log_frequencies` how often masks showed them.
        """
        super().__init__()
        self.register_buffer("support", torch.zeros(len(vectors), FEATURES))
        self.register_buffer("vectors", vectors - vectors.mean(dim=0), persistent=False)
        self.register_buffer("coefficients", torch.zeros_like(vectors), persistent=False)
        self.register_buffer("local_support", torch.zeros(local_names, FEATURES))
        self.register_buffer("log_frequencies", torch.zeros(local_names))
        self.local_coefficients = nn.Parameter(torch.zeros(local_names, vectors.shape[1]))
        self.register_load_state_dict_post_hook(_solve_after_loading)  # type: ignore[no-untyped-call]

    def fit(self, names: Tensor) -> None:
        """Solves the kernel ridge regression on (1000, 384) unit text features of ImageNet's names.

        A saved model holds these features alone; the coefficients are solved for again when it is loaded.
        """
        self.support.copy_(names)
        gram = _kernel(self.support, self.support, KERNEL_GAMMA)
        gram.diagonal().add_(RIDGE)
        self.coefficients.copy_(torch.linalg.solve(gram, self.vectors))

    def regress(self, features: Tensor) -> Tensor:
        """Maps (..., 384) unit text features to (..., 1280) without the residual: unit vectors."""
        return F.normalize(_kernel(features, self.support, KERNEL_GAMMA) @ self.coefficients, dim=-1)

    def familiarity(self, features: Tensor) -> Tensor:
        """Returns the largest share that the residual of one name has in a text's: (..., 384) -> (...) in [0, 1]."""
        if len(self.local_support) == 0:
            return features.new_zeros(features.shape[:-1])
        return _kernel(features, self.local_support, LOCAL_GAMMA).amax(dim=-1).clamp(max=1.0)

    def log_frequency(self, features: Tensor) -> Tensor:
        """Returns the log frequency of the nearest name, as far as the text is familiar: (..., 384) -> (...).

        Far from all names it is that of the rarest one.
        """
        if len(self.local_support) == 0:
            return features.new_zeros(features.shape[:-1])
        nearness, nearest = _kernel(features, self.local_support, LOCAL_GAMMA).max(dim=-1)
        return torch.lerp(self.log_frequencies.min(), self.log_frequencies[nearest], nearness.clamp(max=1.0))

    def forward(self, features: Tensor) -> Tensor:
        """Maps (..., 384) unit text features to (..., 1280)."""
        x = self.regress(features)
        if len(self.local_support) == 0:
            return x
        return x + _kernel(features, self.local_support, LOCAL_GAMMA) @ self.local_coefficients


class LowRankAdapter(nn.Module):
    """x + up(down(x)), a linear map of low rank that starts as the identity (as LoRA, Hu et al., ICLR 2022)."""

    def __init__(self, size: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(size, rank, bias=False)
        self.up = nn.Linear(rank, size, bias=False)
        nn.init.normal_(self.down.weight, std=size**-0.5)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., size) to the same."""
        return x + torch.as_tensor(self.up(self.down(x)))


class LiteEncoder(nn.Module):
    """The `Encoder` protocol on EfficientNet-Lite0 at stride 16 and MiniLM.

    E_2, E_3, E_4 stand at strides 4, 8, 16, and the dense embedding at stride 16 too, for the last stages are dilated.
    """

    centre: Tensor

    def __init__(self, config: ModelConfig) -> None:
        """Loads both packaged networks' places; MiniLM's weights are read when a text is first encoded.

        Raises:
            WeightsError: The packages are not installed.
        """
        super().__init__()
        self.embed_dim = lite0.EMBED_DIM
        self.stage_dims = lite0.STAGE_DIMS
        self.strides = (4, 8, 16, 16)
        self.crop_size = 224
        self.packaged: tuple[str, ...] = ("early.", "late.")
        weights = lite0.load_weights()
        self.early = lite0.Lite0Early()
        self.early.load_state_dict(weights.early)
        self.late = lite0.Lite0Late()
        self.late.load_state_dict(weights.late)
        self.early.requires_grad_(False)
        self.late.requires_grad_(False)
        self.tuned = lite0.Lite0Late() if config.tune_encoder else None
        if self.tuned is not None:
            self.tuned.load_state_dict(weights.late)
        self.register_buffer("centre", torch.zeros(lite0.EMBED_DIM))
        self.adapter = LowRankAdapter(lite0.EMBED_DIM, ADAPTER_RANK)
        self.text_map = TextMap(weights.classifier, config.text_names)

    @cached_property
    def _minilm(self) -> MiniLM:
        return MiniLM()

    @property
    def fingerprint(self) -> str:
        """Of the frozen networks: text features and pooled visual features before the projections."""
        frozen = (*self.early.state_dict().values(), *self.late.state_dict().values())
        return weights_fingerprint(f"lite0-{self.crop_size}-minilm", frozen)

    def pyramid(self, images: Tensor) -> Pyramid:
        """Encodes images (B, 3, H, W), sides multiples of 16, RGB in [0, 1]."""
        with torch.no_grad():
            stages = self.early(images)
        dense = (self.late if self.tuned is None else self.tuned)(stages[2])
        dense = self.project_visual(dense.movedim(1, -1)).movedim(-1, 1)
        return Pyramid(stages, dense)

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Encodes N texts: (N, 384) unit vectors."""
        return self._minilm(texts).to(self.centre.device)

    def word_pieces(self, word: str) -> tuple[str, ...]:
        """See `Encoder.word_pieces`."""
        return self._minilm.pieces(word)

    def project_text(self, features: Tensor) -> Tensor:
        """Maps (..., 384) text features to (..., 1280)."""
        mapped: Tensor = self.text_map(features)
        return mapped

    def familiarity(self, features: Tensor) -> Tensor:
        """See `Encoder.familiarity`: 1 for a name of the training, near 0 far from all of them."""
        return self.text_map.familiarity(features)

    def log_frequency(self, features: Tensor) -> Tensor:
        """See `Encoder.log_frequency`: that of the nearest name of the training, as far as the text is familiar."""
        return self.text_map.log_frequency(features)

    @torch.no_grad()
    def visual_features(self, crops: Tensor, masks: Tensor | None = None) -> VisualFeatures:
        """Encodes N crops (N, 3, h, w) with the frozen networks and averages over the object."""
        stages = self.early(crops)
        s2, s3, s4 = (masked_mean(stage, masks) for stage in stages)
        return VisualFeatures(masked_mean(self.late(stages[2]), masks), (s2, s3, s4))

    @torch.no_grad()
    def prompt_pyramid(self, images: Tensor, pyramid: Pyramid) -> Pyramid:
        """See `Encoder.prompt_pyramid`: E_2, E_3, E_4 are frozen already; of a tuned model the frozen rest runs too."""
        if self.tuned is None:
            return Pyramid(pyramid.stages, pyramid.dense)
        dense = self.late(pyramid.stages[2])
        return Pyramid(pyramid.stages, self.project_visual(dense.movedim(1, -1)).movedim(-1, 1))

    def project_visual(self, features: Tensor) -> Tensor:
        """Maps (..., 1280) features to the joint space."""
        adapted: Tensor = self.adapter(features - self.centre)
        return adapted

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Does nothing: its trained part keeps few activations."""

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Returns (the fine-tuned last stages, adapter and text residual)."""
        tuned = [] if self.tuned is None else list(self.tuned.parameters())
        return tuned, [*self.adapter.parameters(), *self.text_map.parameters()]


def _solve_after_loading(module: nn.Module, _keys: object) -> None:
    assert isinstance(module, TextMap)
    module.fit(module.support.clone())


def _kernel(a: Tensor, b: Tensor, gamma: float) -> Tensor:
    """exp(-gamma |a - b|^2) of unit vectors (..., F) and (N, F): (..., N)."""
    return torch.exp(2 * gamma * (a @ b.T - 1))
