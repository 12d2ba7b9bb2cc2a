"""What the model needs of an encoder: the protocol, and the values that it passes on.

An encoder turns an image into a pyramid E_2..E_5 and a dense embedding E in a joint space, texts into T and pictures
into V and V_j in the same space. It normalises colours itself: images go in as float RGB in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@dataclass(frozen=True)
class Pyramid:
    """An encoded image.

    Attributes:
        stages: E_2, E_3, E_4: tensors (B, D_j, H_j, W_j), finest first.
        dense: E, (B, D, H_5, W_5): the embedding of each position in the joint space, not normalised.
        mirrored: the same images left-right mirrored at other sizes, for testing with several views.
    """

    stages: tuple[Tensor, Tensor, Tensor]
    dense: Tensor
    mirrored: tuple[Pyramid, ...] = ()

    def image(self, index: int) -> Pyramid:
        """Returns one of the B images, as a batch of one."""
        one = slice(index, index + 1)
        e2, e3, e4 = (stage[one] for stage in self.stages)
        return Pyramid((e2, e3, e4), self.dense[one], tuple(view.image(index) for view in self.mirrored))

    def float(self) -> Pyramid:
        """Returns it in single precision."""
        e2, e3, e4 = (stage.float() for stage in self.stages)
        return Pyramid((e2, e3, e4), self.dense.float(), tuple(view.float() for view in self.mirrored))


@dataclass(frozen=True)
class VisualFeatures:
    """Encoded prompt pictures, pooled over their pixels.

    Attributes:
        dense: (N, F), pooled features before `project_visual`.
        stages: GAP(V_j) for j = 2, 3, 4: tensors (N, D_j), not normalised.
    """

    dense: Tensor
    stages: tuple[Tensor, Tensor, Tensor]


@runtime_checkable
class Encoder(Protocol):
    """Image, text and visual prompt encoder with one joint space of `embed_dim` dimensions.

    Attributes:
        embed_dim: D.
        stage_dims: D_2, D_3, D_4.
        strides: pixels a position of E_2, E_3, E_4 and of the dense embedding.
        crop_size: side in pixels at which prompt pictures are encoded.
        packaged: prefixes of state dict names whose tensors come from registry packages, and are not saved.
        fingerprint: changes whenever the embeddings of the same prompt would.
    """

    embed_dim: int
    stage_dims: tuple[int, int, int]
    strides: tuple[int, int, int, int]
    crop_size: int
    packaged: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Of everything that prompt features depend on."""
        ...

    def pyramid(self, images: Tensor) -> Pyramid:
        """Encodes images (B, 3, H, W), H and W multiples of the coarsest stride, RGB in [0, 1]."""
        ...

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Encodes N texts with the frozen text encoder: (N, F_t), no gradient."""
        ...

    def word_pieces(self, word: str) -> tuple[str, ...]:
        """Returns the pieces into which the text encoder's tokenizer cuts a word: many of what it has hardly seen."""
        ...

    def project_text(self, features: Tensor) -> Tensor:
        """Maps text features (..., F_t) to the joint space: T, (..., D), not normalised. The identity for CLIP."""
        ...

    def familiarity(self, features: Tensor) -> Tensor:
        """Returns how near texts lie to those that training put into the joint space: (..., F_t) -> (...) in [0, 1].

        1 for CLIP, which has learned from texts of all kinds.
        """
        ...

    def log_frequency(self, features: Tensor) -> Tensor:
        """Returns how often the training's masks showed what texts name, (..., F_t) -> (...), as a logarithm.

        0 for what they showed as often as a typical name; what training never saw counts as its rarest name. 0 for all
        texts with CLIP, which saw no masks.
        """
        ...

    def visual_features(self, crops: Tensor, masks: Tensor | None = None) -> VisualFeatures:
        """Encodes N prompt pictures with the frozen visual prompt encoder, no gradient.

        Args:
            crops: (N, 3, h, w) RGB in [0, 1].
            masks: (N, h, w) float in [0, 1], 1 on the object; pooling is weighted by it. None: the whole picture.
        """
        ...

    def prompt_pyramid(self, images: Tensor, pyramid: Pyramid) -> Pyramid:
        """Encodes whole photos with the frozen visual prompt encoder, no gradient: what prompts can be pooled from.

        Args:
            images: (B, 3, H, W), as for `pyramid`.
            pyramid: what `pyramid` returned of them; what it has of the frozen network is not computed again.

        Returns:
            The maps V_j, and that of V in the joint space; without mirrored views.
        """
        ...

    def project_visual(self, features: Tensor) -> Tensor:
        """Maps pooled visual features (..., F) to the joint space: V, (..., D). The identity for CLIP."""
        ...

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Computes the image encoder's activations again in the backward pass, where it can: less memory, more time."""
        ...

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Returns (image encoder's parameters that a recipe may fine-tune, other trainable parameters)."""
        ...
