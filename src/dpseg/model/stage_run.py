"""A decoder stage on one image, for testing: a block of classes at a time, the same result as `DecoderStage`.

What it saves, all of it exact up to rounding:

- what the image says is convolved once, not once a class: a convolution over [class, image, cost] is a sum of three;
- the transposed convolution and the 3 x 3 convolution after it, both linear, are one with the product of their kernels;
- attention across classes is linear, so it needs two sums over all classes and then one class at a time;
- tensors are channels last, and pieces of them are small enough for the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpseg.model.blocks import ClassAttention, HybridDilatedBlock, resize_to
from dpseg.model.decoder import DecoderStage

CACHED = 2**19
"""Values that a step writes at a time on a CPU, 2 MB: they stay in the cache until the next step reads them."""

UNCACHED = 2**27
"""The same on other devices, where only memory bounds it."""


class StageRun:
    """One stage, prepared for one image. Tensors of a block of k classes are (k, C, H, W), channels last."""

    def __init__(self, stage: DecoderStage, image: Tensor, size: torch.Size, count: int, cached: int = CACHED) -> None:
        """Computes what is the same for all classes.

        Args:
            stage: its weights.
            image: E_j, (1, D_j, H_j, W_j).
            size: H and W of the stage's input.
            count: K.
            cached: see `CACHED`.
        """
        self.stage, self.cached = stage, cached
        self.size = image.shape[-2:]
        self.values = stage.upsample.in_channels * size.numel()  # of one class's input
        self.attention = _AttentionRun(stage.attention, size.numel(), count)
        up, (conv, *rest) = stage.upsample, stage.fuse
        assert isinstance(conv, nn.Conv2d)
        self.outputs, self.rest = conv.out_channels, rest
        self.step = self._classes(self.outputs * self.size.numel())  # classes that `rise` takes at a time
        guidance = stage.image(image)
        widths = [up.out_channels, guidance.shape[1], conv.in_channels - up.out_channels - guidance.shape[1]]
        self.own, image_part, cost_part = conv.weight.split(widths, dim=1)
        self.cost = cost_part.contiguous(memory_format=torch.channels_last)
        shared = F.conv2d(guidance, image_part, padding=1)
        self.kernel: Tensor | None = None
        if (size[0] * up.stride[0], size[1] * up.stride[1]) == tuple(self.size):
            # z = own * (up * x + bias) = (own * up) * x + own * bias, where bias is a map that ends at the border.
            self.kernel = F.conv2d(up.weight, self.own, padding=2).contiguous(memory_format=torch.channels_last)
            assert up.bias is not None
            shared = shared + F.conv2d(up.bias.view(1, -1, 1, 1).expand(1, -1, *self.size), self.own, padding=1)
        self.shared = shared.contiguous(memory_format=torch.channels_last)
        self.without: Tensor | None = None  # `shared`, and the guidance's part, of classes without pictures

    def spatial(self, x: Tensor) -> Tensor:
        """Looks at each class's surroundings: (k, C, H, W) -> the same shape; the block is written over."""
        block = self.stage.spatial
        for part in x.split(self._classes(2 * x[0].numel())):
            if isinstance(block, HybridDilatedBlock):
                part += _hybrid_dilated(block, part)
            else:
                part.copy_(block(part))
        return x

    def add(self, x: Tensor) -> None:
        """Adds a block, as `spatial` returned it, to the sums of the attention; all blocks are added before `mix`."""
        self.attention.add(_rows(x), self.cached)

    def mix(self, x: Tensor) -> Tensor:
        """Attends across all classes, and runs the MLP: (k, C, H, W) -> the same shape; the block is written over."""
        rows = _rows(x)
        self.attention.mix_(rows, self.cached)
        return _image(rows, x)

    def rise(self, x: Tensor, guidance: Tensor | None, for_all: Tensor | None = None) -> Tensor:
        """Raises the resolution and fuses: (k, C, H, W) -> (k, C', H_j, W_j).

        Args:
            x: some classes of a block, as `mix` returned it; best `step` of them.
            guidance: the projected cost volume, (k or 1, c, H_j, W_j), where the stage has one.
            for_all: what guides all classes without pictures, (1, c, H_j, W_j): convolved once an image.
        """
        fused = self._raised(x)
        if guidance is None:
            fused += self.shared
        elif guidance is for_all:
            if self.without is None:
                self.without = self.shared + F.conv2d(guidance, self.cost, padding=1)
            fused += self.without
        else:
            fused += F.conv2d(guidance, self.cost, padding=1)
            fused += self.shared
        for layer in self.rest:
            fused = F.relu_(fused) if isinstance(layer, nn.ReLU) else layer(fused)
        return fused

    def _raised(self, x: Tensor) -> Tensor:
        """Returns the part of the first convolution that depends on the class's own embedding."""
        if self.kernel is None:
            return F.conv2d(resize_to(self.stage.upsample(x), self.size), self.own, padding=1)
        raised: Tensor = F.conv_transpose2d(x, self.kernel, None, self.stage.upsample.stride, 1)
        return raised

    def _classes(self, values: int) -> int:
        """Returns how many classes of so many values each are worked on at a time."""
        return max(1, self.cached // values)


class _AttentionRun:
    """Linear attention across classes in two passes: sums over all classes, then each class by itself."""

    def __init__(self, attention: ClassAttention, positions: int, count: int) -> None:
        self.attention, self.count = attention, count
        self.heads, self.width = attention.heads, attention.query.in_features
        size = self.width // self.heads
        device = attention.query.weight.device
        self.summary = torch.zeros(positions * self.heads, size, size, device=device)  # sum of key^T value
        self.keys = torch.zeros(positions, self.width, device=device)  # sum of keys
        self.both: Tensor | None = None  # the two together, when all classes were added

    def add(self, rows: Tensor, cached: int) -> None:
        """Adds the classes of a block, (k, N, C)."""
        attention = self.attention
        for start, part in self._pieces(rows, cached, 3 * self.width):
            tokens = attention.norm1(part)
            key, value = _positive(attention.key(tokens)), attention.value(tokens)
            self.keys[start : start + part.shape[1]] += key.sum(dim=0, dtype=torch.float32)
            summary = self.summary[start * self.heads : (start + part.shape[1]) * self.heads]
            left, right = self._by_head(key).mT, self._by_head(value)
            if summary.dtype == left.dtype:
                summary.baddbmm_(left, right)
            else:
                summary += left @ right

    def mix_(self, rows: Tensor, cached: int) -> None:
        """Writes x + t + mlp(norm(t)), t = x + attention(x), over a block x, (k, N, C)."""
        attention = self.attention
        widen, _, narrow = attention.mlp
        for start, part in self._pieces(rows, cached, 4 * self.width):
            query = self._by_head(_positive(attention.query(attention.norm1(part))))
            tokens = self._attend(query, start, part.shape[1]).add_(part)
            hidden = F.relu_(widen(attention.norm2(tokens)))
            tokens += part
            tokens += narrow(hidden)
            rows[:, start : start + part.shape[1]] = tokens

    def _attend(self, query: Tensor, start: int, length: int) -> Tensor:
        """Returns the attention's result (k, length, C) for queries (length * heads, k, C / heads)."""
        size = query.shape[2]
        if self.both is None:  # with the keys in every column, so that the denominator has the numerator's shape
            keys = self.keys.view(-1, size, 1).expand_as(self.summary)
            self.both = torch.cat((self.summary, keys), dim=2).to(query.dtype)
            self.summary = self.keys = self.both.new_empty(0)  # nothing is added any more
        both = query @ self.both[start * self.heads : (start + length) * self.heads]
        attended = both[..., :size] / (both[..., size:] + 1e-6)
        tokens: Tensor = attended.view(length, self.heads, -1, size).permute(2, 0, 1, 3).flatten(2)
        return tokens

    def _pieces(self, rows: Tensor, cached: int, values: int) -> Iterator[tuple[int, Tensor]]:
        """Cuts (k, N, C) into ranges of positions: (first position, contiguous (k, n, C))."""
        step = max(1, cached // (len(rows) * values))
        for start in range(0, rows.shape[1], step):
            yield start, rows[:, start : start + step].contiguous()

    def _by_head(self, rows: Tensor) -> Tensor:
        """Views (k, n, C) as (n * heads, k, C / heads)."""
        heads: Tensor = rows.unflatten(2, (self.heads, -1)).permute(1, 2, 0, 3).flatten(0, 1)
        return heads


def _hybrid_dilated(block: HybridDilatedBlock, x: Tensor) -> Tensor:
    """Returns what the block adds; its 1 x 1 convolutions are matrix products, and ReLUs write over their input."""
    y = x
    for conv in block.convs:
        y = F.relu_(conv(y))
    rows = _rows(block.norm(y))
    hidden = F.relu_(F.linear(rows, block.expand.weight.flatten(1), block.expand.bias))
    rows = F.linear(hidden, block.project.weight.flatten(1), block.project.bias)
    return _image(rows, x)


def _positive(x: Tensor) -> Tensor:
    """Returns elu(x) + 1, which is exp(x) below 0 and x + 1 above; torch's elu is eight times as slow on a CPU."""
    return x.clamp_max(0).exp_().add_(x.clamp_min_(0))


def _rows(x: Tensor) -> Tensor:
    """Views (k, C, H, W), channels last, as (k, H * W, C)."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _image(rows: Tensor, like: Tensor) -> Tensor:
    """Views (k, H * W, C) as (k, C, H, W), with the H and W of another tensor."""
    image: Tensor = rows.unflatten(1, like.shape[-2:]).permute(0, 3, 1, 2)
    return image
