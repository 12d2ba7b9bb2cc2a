"""Embeds the cost slices of a class, F_c's M templates to C channels, without the volume where that is cheaper.

With many templates, a k x k convolution over M channels costs k^2 M C multiplications a position. In the frequency
domain it is a product of M x C matrices, one a frequency. The cosine before it, F_c = <E, R>, is linear in E, so E is
transformed once for all classes, and F_c itself never exists. All steps are matrix products, exact up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

Embedding = Callable[[Tensor], Tensor]
"""Takes a block's prompt rows (k, M, D) float32 to its embedding (k, C, H, W), channels last."""

MANY_TEMPLATES = 16
"""From so many templates on, the frequency domain is the cheaper one."""


def template_embedding(embed: nn.Conv2d, dense: Tensor) -> Embedding:
    """Prepares the embedding of one image's cost volume for any number of blocks of classes.

    Args:
        embed: the decoder's convolution, M -> C channels, of an odd kernel and half of it as padding.
        dense: unit vectors of E, (D, H, W) float32.

    Returns:
        A function of the prompt rows.
    """
    if embed.in_channels >= MANY_TEMPLATES:
        return FourierEmbedding(embed, dense)
    size = dense.shape[-2:]

    def embedded(rows: Tensor) -> Tensor:
        cost = (rows @ dense.flatten(1)).unflatten(-1, size)  # F_c
        result: Tensor = embed(cost.to(embed.weight.dtype, memory_format=torch.channels_last))
        return result.contiguous(memory_format=torch.channels_last)

    return embedded


class FourierEmbedding:
    """The embedding in the frequency domain; real and imaginary parts are kept apart, in float32."""

    def __init__(self, embed: nn.Conv2d, dense: Tensor) -> None:
        """Transforms the image and the convolution; the arguments are those of `template_embedding`."""
        height, width = dense.shape[-2:]
        assert embed.bias is not None
        self.bias = embed.bias
        self.size = height, width
        reach = embed.kernel_size[0] // 2
        self.rows, columns = (
            height + reach,
            width + reach,
        )  # zeros, so that nothing wraps around
        self.columns = columns // 2 + 1  # frequencies: those of a real signal
        spectrum = torch.fft.rfft2(dense, s=(self.rows, columns)).flatten(1).T  # (F, D)
        self.image = torch.cat((spectrum.real, spectrum.imag))  # (2 F, D)
        self.kernel = self._kernel(embed.weight.float(), columns)  # (2, F, M, C)
        device = dense.device
        y = _angles(torch.arange(height), torch.arange(self.rows), self.rows).to(device)
        x = _angles(torch.arange(width), torch.arange(self.columns), columns).to(device)
        # Frequencies of the rows -> (row, real or imaginary); then those of the columns -> columns of a real signal.
        upper, lower = torch.cat((y.cos(), -y.sin()), dim=1), torch.cat((y.sin(), y.cos()), dim=1)
        self.to_rows = torch.stack((upper, lower), dim=1).flatten(0, 1) / self.rows  # (2 H, 2 rows)
        twice = torch.full((self.columns,), 2.0, device=device)  # a frequency and its mirror image
        twice[0] = 1
        if columns % 2 == 0:
            twice[-1] = 1
        self.to_columns = torch.cat((x.cos() * twice, -x.sin() * twice), dim=1) / columns  # (W, 2 columns)

    def __call__(self, rows: Tensor) -> Tensor:
        """Embeds a block: (k, M, D) -> (k, C, H, W), channels last."""
        count, templates, _ = rows.shape
        height, width = self.size
        cost = (self.image @ rows.flatten(0, 1).T).view(2, -1, count, templates)  # F_c's spectrum
        real, imaginary = self.kernel
        product = cost.new_empty(2, *cost.shape[1:3], self.bias.numel())  # (2, F, k, C)
        torch.bmm(cost[0], real, out=product[0])
        product[0].baddbmm_(cost[1], imaginary, alpha=-1)
        torch.bmm(cost[0], imaginary, out=product[1])
        product[1].baddbmm_(cost[1], real)
        lines = self.to_rows @ product.view(2 * self.rows, -1)
        lines = lines.view(height, 2 * self.columns, -1)
        image = self.to_columns.expand(height, -1, -1) @ lines  # (H, W, k * C)
        embedded = image.view(height, width, count, -1) + self.bias
        return embedded.to(self.bias.dtype).permute(2, 0, 1, 3).contiguous().permute(0, 3, 1, 2)

    def _kernel(self, weight: Tensor, columns: int) -> Tensor:
        """Returns the spectrum of the convolution, (2, F, M, C); weight is (C, M, k, k)."""
        offsets = torch.arange(weight.shape[-1]) - weight.shape[-1] // 2
        y = _angles(torch.arange(self.rows), offsets, self.rows)
        x = _angles(torch.arange(self.columns), offsets, columns)
        angles = (y[:, None, :, None] + x[None, :, None, :]).flatten(2).flatten(0, 1).to(weight.device)  # (F, k * k)
        waves = torch.cat((angles.cos(), angles.sin()))
        taps = weight.permute(2, 3, 1, 0).flatten(0, 1).flatten(1)  # (k * k, M * C)
        return (waves @ taps).view(2, -1, *weight.transpose(0, 1).shape[:2])


def unit_vectors(features: Tensor) -> Tensor:
    """Returns the unit vectors of one image's features, (1, D, H, W) -> (D, H, W) float32."""
    one = features[0].float()
    return one / one.square().sum(dim=0).sqrt().clamp_min(1e-12)  # torch's norm over this dimension is slow


def _angles(positions: Tensor, frequencies: Tensor, length: int) -> Tensor:
    """Returns 2 pi x f / length for all x and f, reduced before it is rounded: (len(x), len(f)) float32."""
    turns = torch.outer(positions, frequencies) % length
    return (turns.double() * (2 * math.pi / length)).float()
