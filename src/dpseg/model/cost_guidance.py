"""The cost volume that guides a decoder stage, projected to a few channels, for a block of classes at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

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

    def __init__(self, decoder: Decoder, pyramid: Pyramid, prompts: PromptEmbeddings) -> None:
        """Prepares one image.

        Args:
            decoder: its weights.
            pyramid: one encoded image, a batch of one.
            prompts: of K classes, without a batch dimension.
        """
        dtype = decoder.embed.weight.dtype
        self.decoder, self.prompts = decoder, prompts
        self.dense = unit_vectors(pyramid.dense)
        self.features: dict[int, Tensor] = {}  # E_j, (D_j, H_j, W_j)
        self.lengths: dict[int, Tensor] = {}  # by which cosines with them are still to be divided
        for j in decoder.guided:
            features = pyramid.stages[j - 2][0]
            length = features.float().square().sum(dim=0).sqrt().clamp_min(1e-12)
            if dtype != torch.float32:  # unit vectors lose least when they are rounded
                features, length = (features / length).to(dtype), torch.ones_like(length)
            self.features[j], self.lengths[j] = features, length  # as they are, for a copy takes memory
        self.without: dict[int, Tensor] = {}  # what guides classes without pictures, (1, c, H_j, W_j)
        self.sizes = [pyramid.stages[j - 2].shape[-2:] for j in decoder.order]

    def __call__(
        self, number: int, classes: Classes, rows: Callable[[Classes], Tensor], at_once: int
    ) -> Iterator[Tensor | None]:
        """Yields what guides a stage, some classes at a time, so that a step's values stay in the cache.

        Args:
            number: of the stage, from 0.
            classes: k of the K classes.
            rows: gives classes' prompt rows, (k, C, D) float32.
            at_once: so many of the k classes at a time.

        Returns:
            (at_once, c, H_j, W_j), or (1, ...) where all of these classes have the same; None: nothing guides it.
        """
        decoder, stage = self.decoder, self.decoder.stages[number]
        assert isinstance(stage, DecoderStage)
        j, size = decoder.order[number], self.sizes[number]
        if decoder.guidance in ("cost_chain", "upsampled"):
            volume = rows(classes) @ self.dense.flatten(1)  # F_c
            cost: Tensor = volume.unflatten(-1, self.dense.shape[-2:])
            cost = cost.to(decoder.embed.weight.dtype, memory_format=torch.channels_last)
            if decoder.guidance == "upsampled":
                assert stage.cost is not None
                yield from (stage.cost(resize_to(part, size)) for part in cost.split(at_once))
                return
            for raised, larger in zip(decoder.cost_chain[: number + 1], self.sizes, strict=False):
                cost = resize_to(raised(cost), larger)
            yield from cost.split(at_once)
        elif j in decoder.guided:
            yield from self._visual(stage, j, classes, at_once)
        else:
            yield from itertools.repeat(None)

    def _visual(self, stage: DecoderStage, j: int, classes: Classes, at_once: int) -> Iterator[Tensor]:
        """Projects F_v^j."""
        assert isinstance(stage.cost, nn.Sequential)
        conv, features, lengths = stage.cost[0], self.features[j], self.lengths[j]
        assert isinstance(conv, nn.Conv2d)
        if not self.prompts.has_visual[classes].any():  # F_v^j is 0
            if j not in self.without:
                self.without[j] = F.relu_(conv(features.new_zeros(1, conv.in_channels, *features.shape[1:])))
            yield from itertools.repeat(self.without[j])
        rows = F.normalize(self.prompts.stages[j - 2][classes], dim=-1).to(features.dtype)  # (k, Mv, D_j)
        if rows.shape[1] > 1:
            unit = (features / lengths).to(features.dtype)
            yield from (F.relu_(_project(conv, unit, part)) for part in rows.split(at_once))
            return
        maps = (rows[:, 0] @ features.flatten(1)).unflatten(1, features.shape[1:])  # the M slices are equal
        maps = (maps / lengths).to(features.dtype)
        weight = conv.weight.sum(dim=1)
        yield from (F.relu_(_convolve_maps(part, weight, conv.bias)) for part in maps.split(at_once))


def _project(conv: nn.Conv2d, features: Tensor, rows: Tensor) -> Tensor:
    """Returns conv(F_v^j), (k, C, H, W), in the cheapest of ways that all give the same.

    Args:
        conv: M -> C channels, 3 x 3.
        features: unit vectors of E_j, (D, H, W).
        rows: visual prompts, (k, Mv, D), Mv > 1.
    """
    size, channels, prompts = features.shape[1:], conv.out_channels, rows.shape[1]
    assert conv.bias is not None
    if 9 * channels * len(features) < prompts * (len(features) + 9 * channels):  # multiplications a position
        kernels = torch.einsum("cmyx,kmd->kcdyx", conv.weight, rows).flatten(0, 1)
        whole = F.conv2d(features[None], kernels, conv.bias.repeat(len(rows)), padding=1)
        separate: Tensor = whole[0].unflatten(0, (-1, channels))
        return separate
    volume = torch.stack([features.flatten(1).T @ row.T for row in rows])  # (k, H * W, M): channels last
    projected: Tensor = conv(volume.unflatten(1, size).permute(0, 3, 1, 2))
    return projected


def _convolve_maps(maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolves single maps, (k, H, W), with 3 x 3 kernels (C, 3, 3): (k, C, H, W), channels last.

    The same as torch's convolution of one channel, which is slower. The bias is the weight of a tenth tap, which is 1.
    """
    assert bias is not None
    count, height, width = maps.shape
    padded = F.pad(maps, (1, 1, 1, 1))
    shifted = maps.new_empty(count, 10, height, width)
    shifted[:, :9].unflatten(1, (3, 3)).copy_(padded.unfold(1, height, 1).unfold(2, width, 1))
    shifted[:, 9] = 1
    taps = torch.cat((weight.flatten(1), bias[:, None]), dim=1).T  # (10, C)
    rows = shifted.flatten(2).mT @ taps
    return rows.view(count, height, width, -1).permute(0, 3, 1, 2)
