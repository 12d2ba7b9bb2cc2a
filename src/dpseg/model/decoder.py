"""Cost-volume-guided decoder (CVGD): cost volume (B, K, M, H, W) -> one logit a category and position.

Each stage refines every category's embedding, exchanges between categories, raises the resolution to that of the next
finer image features E_j, and is guided there by E_j and by a visual cost volume F_v^j computed at that very scale.

SED's decoder is the same with two differences (`ModelConfig.spatial`, `ModelConfig.guidance`): a depthwise block, and
guidance by F_c, which a chain of transposed convolutions upsamples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dpseg.config import ModelConfig, Spatial
from dpseg.model.blocks import (
    ClassAttention,
    CostUpsampling,
    DepthwiseBlock,
    DoubleConv,
    GuidanceProjection,
    HybridDilatedBlock,
    resize_to,
)

STAGE_ORDER = (4, 3, 2)
"""Which E_j and F_v^j guide the first, second and third stage."""


@dataclass(frozen=True)
class EncoderShape:
    """What the decoder must know of the encoder.

    Attributes:
        stage_dims: D_2, D_3, D_4.
        strides: of E_2, E_3, E_4 and of the dense embedding, in pixels.
    """

    stage_dims: tuple[int, int, int]
    strides: tuple[int, int, int, int]


def guided_stages(config: ModelConfig) -> tuple[int, ...]:
    """Returns the j of the visual cost volumes F_v^j that the config asks for, coarsest first."""
    order = STAGE_ORDER[: len(config.widths) - 1]
    if config.guidance == "visual234":
        return order
    return (order[-1],) if config.guidance == "visual2" else ()  # the finest alone, or none


class DecoderStage(nn.Module):
    """One stage of the decoder: (B, K, C, H, W) -> (B, K, C', H_j, W_j)."""

    def __init__(
        self,
        width: int,
        outputs: int,
        image_dim: int,
        image_width: int,
        cost_channels: int,
        chained: bool,
        factor: int,
        spatial: Spatial,
        heads: int,
        pool: int,
    ) -> None:
        """Builds a stage.

        Args:
            width: C.
            outputs: C'.
            image_dim: D_j.
            image_width: channels to which E_j and F_v^j are projected.
            cost_channels: of the guiding cost volume; 0: there is none.
            chained: that cost volume comes from the chain, in `image_width` channels, and is not projected again.
            factor: H_j / H.
            spatial: which block looks at a category's surroundings.
            heads: of the attention across categories.
            pool: side of the pooling before that attention in training.
        """
        super().__init__()
        self.spatial = DepthwiseBlock(width) if spatial == "depthwise9" else HybridDilatedBlock(width)
        self.attention = ClassAttention(width, heads, pool)
        kept = width - image_width
        self.upsample = nn.ConvTranspose2d(width, kept, factor, stride=factor)
        self.image = GuidanceProjection(image_dim, image_width)
        self.cost: nn.Module | None = None
        if cost_channels:
            self.cost = nn.Identity() if chained else GuidanceProjection(cost_channels, image_width)
        self.fuse = DoubleConv(kept + image_width * (2 if cost_channels else 1), outputs)

    def forward(self, x: Tensor, image: Tensor, cost: Tensor | None) -> Tensor:
        """Runs the stage.

        Args:
            x: (B, K, C, H, W).
            image: E_j, (B, D_j, H_j, W_j).
            cost: F_v^j, or what else guides, (B, K, M, H_j, W_j), where the stage was built with one.
        """
        batch, count = x.shape[:2]
        x = self.spatial(x.flatten(0, 1)).view(x.shape)
        x = self.attention(x)
        x = resize_to(self.upsample(x.flatten(0, 1)), image.shape[-2:])
        guidance = self.image(image)[:, None].expand(-1, count, -1, -1, -1).flatten(0, 1)
        parts = [x, guidance]
        if self.cost is not None and cost is not None:
            parts.append(self.cost(cost.flatten(0, 1)))
        fused: Tensor = self.fuse(torch.cat(parts, dim=1))
        return fused.view(batch, count, *fused.shape[1:])


class Decoder(nn.Module):
    """Cost-volume-guided decoder; equivariant to the order of categories, for any K."""

    def __init__(self, config: ModelConfig, encoder: EncoderShape) -> None:
        super().__init__()
        channels = config.templates * (2 if config.fusion == "cost_concat" else 1)
        self.grad_checkpointing = False
        self.guidance = config.guidance
        self.guided = guided_stages(config)
        self.embed = nn.Conv2d(channels, config.widths[0], 7, padding=3)
        self.order = STAGE_ORDER[: len(config.widths) - 1]
        self.stages = nn.ModuleList()
        stride = encoder.strides[3]
        for number, j in enumerate(self.order):
            cost = config.templates * (j in self.guided)
            if config.guidance in ("upsampled", "cost_chain"):
                cost = channels
            self.stages.append(
                DecoderStage(
                    config.widths[number],
                    config.widths[number + 1],
                    encoder.stage_dims[j - 2],
                    config.image_widths[number],
                    cost,
                    config.guidance == "cost_chain",
                    stride // encoder.strides[j - 2],
                    config.spatial,
                    config.heads,
                    config.train_pool,
                )
            )
            stride = encoder.strides[j - 2]
        self.head = nn.Conv2d(config.widths[-1], 1, 3, padding=1)
        if config.logit_scale > 0:
            nn.init.zeros_(self.head.weight)
            assert self.head.bias is not None
            nn.init.zeros_(self.head.bias)
        self.cost_chain = _cost_chain(config, encoder, channels) if config.guidance == "cost_chain" else nn.ModuleList()
        self.auxiliary = nn.ModuleList(
            nn.Conv2d(width, 1, 3, padding=1) for width in config.widths[:-1] if config.auxiliary_heads
        )

    def forward(self, cost: Tensor, stages: tuple[Tensor, Tensor, Tensor], visual: dict[int, Tensor]) -> Tensor:
        """Decodes a cost volume.

        Args:
            cost: F_c, (B, K, M, H, W).
            stages: E_2, E_3, E_4.
            visual: F_v^j by j.

        Returns:
            Logits (B, K, h, w) at the stride of the last stage's E_j.
        """
        x = self._embeddings(cost)
        for j, stage, guidance in zip(self.order, self.stages, self._guidance(cost, stages, visual), strict=True):
            x = self._run(stage, x, stages[j - 2], guidance)
        return _logits(self.head, x)

    def with_auxiliary(
        self, cost: Tensor, stages: tuple[Tensor, Tensor, Tensor], visual: dict[int, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Decodes a cost volume, and predicts from each stage's input too; the arguments are those of `forward`.

        Returns:
            The logits of `forward`; and those of the auxiliary heads, (B, K, H, W) at each stage's input resolution,
            the coarsest first. The inputs are detached (SED): a loss on these logits trains the heads and nothing
            else. Without `auxiliary_heads` there are none.
        """
        x, inputs = self._embeddings(cost), []
        for j, stage, guidance in zip(self.order, self.stages, self._guidance(cost, stages, visual), strict=True):
            inputs.append(x.detach())
            x = self._run(stage, x, stages[j - 2], guidance)
        auxiliary = (_logits(head, part) for head, part in zip(self.auxiliary, inputs, strict=False))
        return _logits(self.head, x), tuple(auxiliary)

    def _run(self, stage: nn.Module, x: Tensor, image: Tensor, guidance: Tensor | None) -> Tensor:
        """Runs a stage, and forgets its activations where they shall be computed again."""
        if self.grad_checkpointing and self.training:
            return torch.as_tensor(checkpoint(stage, x, image, guidance, use_reentrant=False))
        return torch.as_tensor(stage(x, image, guidance))

    def _embeddings(self, cost: Tensor) -> Tensor:
        """Embeds each category's cost slices, (B, K, M, H, W) -> (B, K, C, H, W)."""
        embedded: Tensor = self.embed(cost.flatten(0, 1))
        return embedded.view(*cost.shape[:2], *embedded.shape[1:])

    def _guidance(
        self, cost: Tensor, stages: tuple[Tensor, Tensor, Tensor], visual: dict[int, Tensor]
    ) -> Iterator[Tensor | None]:
        """Yields the cost volume that guides each stage, (B, K, M, H_j, W_j), or None."""
        batch, count = cost.shape[:2]
        chained = cost
        for number, j in enumerate(self.order):
            size = stages[j - 2].shape[-2:]
            if self.guidance == "cost_chain":
                raised = resize_to(self.cost_chain[number](chained.flatten(0, 1)), size)
                chained = raised.view(batch, count, *raised.shape[1:])
                yield chained
            elif self.guidance == "upsampled":  # the ablation: F_c itself, resized
                yield resize_to(cost.flatten(0, 1), size).view(batch, count, -1, *size)
            else:
                yield visual.get(j)  # F_v^j


def _cost_chain(config: ModelConfig, encoder: EncoderShape, channels: int) -> nn.ModuleList:
    """Makes the transposed convolutions that take F_c from stage to stage: M -> 32 -> 16 -> 8 channels in SED."""
    inputs = (channels, *config.image_widths)
    strides = (encoder.strides[3], *(encoder.strides[j - 2] for j in STAGE_ORDER))
    return nn.ModuleList(
        CostUpsampling(inputs[number], inputs[number + 1], strides[number] // strides[number + 1])
        for number in range(len(config.widths) - 1)
    )


def _logits(head: nn.Module, x: Tensor) -> Tensor:
    """Applies a head to each category: (B, K, C, H, W) -> (B, K, H, W)."""
    logits: Tensor = head(x.flatten(0, 1))
    return logits.view(*x.shape[:2], *logits.shape[-2:])
