"""The decoder's parts. Tensors of categories are (B, K, C, H, W); a spatial block sees them as (B * K, C, H, W)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HybridDilatedBlock(nn.Module):
    """Hybrid dilated convolution and an MLP, both with residuals: (N, C, H, W) -> (N, C, H, W).

    Depthwise 3 x 3 convolutions with dilations 1, 2, 4 one after the other (Wang et al., Understanding Convolution for
    Semantic Segmentation, WACV 2018) see 15 x 15 positions without holes. Depthwise, and the shape of the MLP: ours.
    """

    def __init__(self, width: int, dilations: tuple[int, ...] = (1, 2, 4)) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, groups=width) for dilation in dilations
        )
        self.norm = nn.GroupNorm(1, width)
        self.expand = nn.Conv2d(width, 2 * width, 1)
        self.project = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Refines (N, C, H, W)."""
        y = x
        for conv in self.convs:
            y = F.relu(conv(y))
        y = self.project(F.relu(self.expand(self.norm(y))))
        refined: Tensor = x + y
        return refined


class DepthwiseBlock(nn.Module):
    """Depthwise 9 x 9 convolution and an MLP, with a scaled residual (SED): (N, C, H, W) -> (N, C, H, W).

    The block of ConvNeXt (Liu et al., CVPR 2022) with a larger kernel.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 9, padding=4, groups=width)
        self.layer_norm = nn.LayerNorm(width, eps=1e-6)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Refines (N, C, H, W)."""
        y = self.layer_norm(self.conv(x).permute(0, 2, 3, 1))  # (N, H, W, C)
        y = self.gamma * self.narrow(F.gelu(self.widen(y)))
        refined: Tensor = x + y.permute(0, 3, 1, 2)
        return refined


class ClassAttention(nn.Module):
    """Self-attention across categories at each position, and an MLP (SED): equivariant to their order, for any K.

    Linear attention (Katharopoulos et al., Transformers are RNNs, ICML 2020): time and memory grow with K, not K^2.
    """

    def __init__(self, width: int, heads: int, train_pool: int = 1) -> None:
        super().__init__()
        self.heads = heads
        self.train_pool = train_pool
        self.norm1 = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Attends across K; x is (B, K, C, H, W)."""
        batch, count, width, height, side = x.shape
        flat = x.flatten(0, 1)
        pool = self.train_pool if self.training else 1
        pooled = F.avg_pool2d(flat, pool) if pool > 1 else flat
        small = pooled.shape[-2:]
        tokens = pooled.view(batch, count, width, -1).permute(0, 3, 1, 2).flatten(0, 1)  # (B * H * W, K, C)
        tokens = tokens + self._attend(self.norm1(tokens))
        tokens = tokens + self.mlp(self.norm2(tokens))
        pooled = tokens.view(batch, -1, count, width).permute(0, 2, 3, 1).reshape(batch * count, width, *small)
        if pool > 1:
            pooled = F.interpolate(pooled, (height, side), mode="bilinear", align_corners=True)
        mixed: Tensor = flat + pooled
        return mixed.view(x.shape)

    def _attend(self, tokens: Tensor) -> Tensor:
        size, count, width = tokens.shape
        shape = (size, count, self.heads, width // self.heads)
        query = (F.elu(self.query(tokens)) + 1).view(shape).transpose(1, 2)  # (N, heads, K, C')
        key = (F.elu(self.key(tokens)) + 1).view(shape).transpose(1, 2)
        value = self.value(tokens).view(shape).transpose(1, 2) / count
        summary = key.transpose(2, 3) @ value  # (N, heads, C', C')
        scale = 1 / (query @ key.sum(dim=2)[..., None] + 1e-6)
        attended: Tensor = query @ summary * scale * count
        return attended.transpose(1, 2).reshape(size, count, width)


class DoubleConv(nn.Sequential):
    """Twice a 3 x 3 convolution, GroupNorm and ReLU (SED): (N, C_in, H, W) -> (N, C_out, H, W)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        groups = max(1, outputs // 16)
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.GroupNorm(groups, outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.GroupNorm(groups, outputs),
            nn.ReLU(),
        )


class GuidanceProjection(nn.Sequential):
    """3 x 3 convolution and ReLU that bring guidance to a few channels (SED)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU())


class CostUpsampling(nn.Sequential):
    """Transposed convolution and ReLU that bring a cost volume to the next resolution, in a few channels (SED)."""

    def __init__(self, inputs: int, outputs: int, factor: int) -> None:
        super().__init__(nn.ConvTranspose2d(inputs, outputs, factor, stride=factor), nn.ReLU())


def resize_to(x: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Resizes (N, C, H, W) bilinearly where it is not of that size."""
    return x if x.shape[-2:] == tuple(size) else F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)
