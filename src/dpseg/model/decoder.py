"""Cost-volume-guided decoder (CVGD): cost volume (B, K, M, H, W) -> one logit a category and position.

Each stage refines every category's embedding, exchanges between categories, raises the resolution to that of the next
finer image features E_j, and is guided there by E_j and by a visual cost volume F_v^j computed at that very scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpseg.config import ModelConfig
from dpseg.model.blocks import ClassAttention, DoubleConv, GuidanceProjection, HybridDilatedBlock, resize_to

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
        factor: int,
        heads: int,
        pool: int,
    ) -> None:
        """Builds a stage.

        Args:
            width: C.
            outputs: C'.
            image_dim: D_j.
            image_width: channels to which E_j and F_v^j are projected.
            cost_channels: M of the guiding cost volume; 0: there is none.
            factor: H_j / H.
            heads: of the attention across categories.
            pool: side of the pooling before that attention in training.
        """
        super().__init__()
        self.spatial = HybridDilatedBlock(width)
        self.attention = ClassAttention(width, heads, pool)
        kept = width - image_width
        self.upsample = nn.ConvTranspose2d(width, kept, factor, stride=factor)
        self.image = GuidanceProjection(image_dim, image_width)
        self.cost = GuidanceProjection(cost_channels, image_width) if cost_channels else None
        self.fuse = DoubleConv(kept + image_width * (2 if cost_channels else 1), outputs)

    def forward(self, x: Tensor, image: Tensor, cost: Tensor | None) -> Tensor:
        """Runs the stage.

        Args:
            x: (B, K, C, H, W).
            image: E_j, (B, D_j, H_j, W_j).
            cost: F_v^j, (B, K, M, H_j, W_j), where the stage was built with one.
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
        self.upsampled_guidance = config.guidance == "upsampled"
        self.guided = guided_stages(config)
        self.image_cost = config.image_cost
        self.embed = nn.Conv2d(channels * (3 if config.image_cost else 1), config.widths[0], 7, padding=3)
        self.order = STAGE_ORDER[: len(config.widths) - 1]
        self.stages = nn.ModuleList()
        stride = encoder.strides[3]
        for number, j in enumerate(self.order):
            cost = channels if self.upsampled_guidance else config.templates * (j in self.guided)
            self.stages.append(
                DecoderStage(
                    config.widths[number],
                    config.widths[number + 1],
                    encoder.stage_dims[j - 2],
                    config.image_widths[number],
                    cost,
                    stride // encoder.strides[j - 2],
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

    def forward(self, cost: Tensor, stages: tuple[Tensor, Tensor, Tensor], visual: dict[int, Tensor]) -> Tensor:
        """Decodes a cost volume.

        Args:
            cost: F_c, (B, K, M, H, W).
            stages: E_2, E_3, E_4.
            visual: F_v^j by j.

        Returns:
            Logits (B, K, h, w) at the stride of the last stage's E_j.
        """
        batch, count = cost.shape[:2]
        x = self.embed(self._with_image_cost(cost).flatten(0, 1)).view(batch, count, -1, *cost.shape[-2:])
        for j, stage in zip(self.order, self.stages, strict=True):
            image = stages[j - 2]
            guidance = visual.get(j)
            if self.upsampled_guidance:  # the ablation: F_c itself, resized
                guidance = resize_to(cost.flatten(0, 1), image.shape[-2:]).view(batch, count, -1, *image.shape[-2:])
            x = stage(x, image, guidance)
        logits: Tensor = self.head(x.flatten(0, 1))
        return logits.view(batch, count, *logits.shape[-2:])

    def _with_image_cost(self, cost: Tensor) -> Tensor:
        """Appends the maximum and the mean over positions, (B, K, M, H, W) -> (B, K, 3 M, H, W)."""
        if not self.image_cost:
            return cost
        whole = cost.amax(dim=(3, 4), keepdim=True), cost.mean(dim=(3, 4), keepdim=True)
        return torch.cat([cost, *(part.expand_as(cost) for part in whole)], dim=2)
