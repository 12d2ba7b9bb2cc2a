"""The cost volume that guides a decoder stage, projected to a few channels, for a block of classes at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpseg.model.blocks import resize_to
from dpseg.model.decoder import Decoder, DecoderStage
from dpseg.model.encoders import Pyramid
from dpseg.model.template_embedding import unit_vectors
from dpseg.prompts.prompt_set import PromptEmbeddings

Classes = slice | Tensor
"""Some of the K classes: a range of them, or (k,) int64 indices."""


class CostGuidance:
    """Guides each stage of one image's decoding, as `Decoder.forward` does with whole volumes.

    Attributes:
        dense: unit vectors of E, (D, H, W) float32.
    """

    def __init__(self, decoder: Decoder, pyramid: Pyramid, prompts: PromptEmbeddings, cached: int) -> None:
        """Prepares one image.

        Args:
            decoder: its weights.
            pyramid: one encoded image, a batch of one.
            prompts: of K classes, without a batch dimension.
            cached: values that a step writes at a time; see `stage_run.CACHED`.
        """
        dtype = decoder.embed.weight.dtype
        self.decoder, self.prompts, self.cached = decoder, prompts, cached
        self.dense = unit_vectors(pyramid.dense)
        self.features = {j: unit_vectors(pyramid.stages[j - 2]).to(dtype) for j in decoder.guided}
        self.sizes = [pyramid.stages[j - 2].shape[-2:] for j in decoder.order]

    def __call__(self, number: int, classes: Classes, rows: Callable[[Classes], Tensor]) -> Tensor | None:
        """Returns what guides a stage, (k, c, H_j, W_j); (1, ...) where all classes have the same; None: nothing does.

        Args:
            number: of the stage, from 0.
            classes: k of the K classes.
            rows: gives classes' prompt rows, (k, C, D) float32.
        """
        decoder, stage = self.decoder, self.decoder.stages[number]
        assert isinstance(stage, DecoderStage)
        if decoder.guidance in ("cost_chain", "upsampled"):
            volume = rows(classes) @ self.dense.flatten(1)  # F_c
            cost: Tensor = volume.unflatten(-1, self.dense.shape[-2:])
            cost = cost.to(decoder.embed.weight.dtype, memory_format=torch.channels_last)
            if decoder.guidance == "cost_chain":
                for raised, size in zip(decoder.cost_chain[: number + 1], self.sizes, strict=False):
                    cost = resize_to(raised(cost), size)
                return cost
            assert stage.cost is not None
            step = max(1, self.cached // (cost.shape[1] * self.sizes[number].numel()))
            return torch.cat([stage.cost(resize_to(part, self.sizes[number])) for part in cost.split(step)])
        j = decoder.order[number]
        return self._visual(stage, j, classes) if j in decoder.guided else None

    def _visual(self, stage: DecoderStage, j: int, classes: Classes) -> Tensor:
        """Projects F_v^j."""
        assert isinstance(stage.cost, nn.Sequential)
        conv, features = stage.cost[0], self.features[j]
        assert isinstance(conv, nn.Conv2d)
        if not self.prompts.has_visual[classes].any():  # F_v^j is 0
            return F.relu_(conv(features.new_zeros(1, conv.in_channels, *features.shape[1:])))
        rows = F.normalize(self.prompts.stages[j - 2][classes], dim=-1).to(features.dtype)  # (k, Mv, D_j)
        project = _projection(conv, features, rows.shape[1])
        step = max(1, self.cached // (rows.shape[1] * features[0].numel()))
        guidance = features.new_empty(len(rows), *features.shape[1:], conv.out_channels).permute(0, 3, 1, 2)
        for start in range(0, len(rows), step):
            guidance[start : start + step] = F.relu_(project(rows[start : start + step]))
        return guidance


def _projection(conv: nn.Conv2d, features: Tensor, prompts: int) -> Callable[[Tensor], Tensor]:
    """Returns the cheapest way from visual prompts (k, Mv, D) to conv(F_v^j), (k, C, H, W); all give the same.

    Args:
        conv: M -> C channels, 3 x 3.
        features: unit vectors of E_j, (D, H, W).
        prompts: Mv.
    """
    size, channels, bias = features.shape[1:], conv.out_channels, conv.bias
    assert bias is not None
    if prompts == 1:  # the M slices are equal
        weight = conv.weight.sum(dim=1)
        return lambda rows: _convolve_maps((rows[:, 0] @ features.flatten(1)).unflatten(1, size), weight, bias)
    if 9 * channels * len(features) < prompts * (len(features) + 9 * channels):  # multiplications a position

        def contracted(rows: Tensor) -> Tensor:
            kernels = torch.einsum("cmyx,kmd->kcdyx", conv.weight, rows).flatten(0, 1)
            whole = F.conv2d(features[None], kernels, bias.repeat(len(rows)), padding=1)
            separate: Tensor = whole[0].unflatten(0, (-1, channels))
            return separate

        return contracted

    def plain(rows: Tensor) -> Tensor:
        volume = torch.stack([features.flatten(1).T @ row.T for row in rows])  # (k, H * W, M): channels last
        projected: Tensor = conv(volume.unflatten(1, size).permute(0, 3, 1, 2))
        return projected

    return plain


def _convolve_maps(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolves single maps, (k, H, W), with 3 x 3 kernels (C, 3, 3): (k, C, H, W), channels last.

    The same as torch's convolution of one channel, which is slower.
    """
    height, width = maps.shape[-2:]
    shifted = F.pad(maps, (1, 1, 1, 1)).unfold(1, height, 1).unfold(2, width, 1)  # (k, 3, 3, H, W), a view
    taps = weight.flatten(1).T.expand(len(maps), -1, -1)
    rows = torch.baddbmm(bias, shifted.flatten(1, 2).flatten(2).mT, taps).view(-1, height, width, len(weight))
    return rows.permute(0, 3, 1, 2)
