"""Logits at some pixels of a photo, in the memory of a few classes, and the part of them that is a plain cosine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dpseg.model.blocks import resize_to
from dpseg.model.class_logits import UNDECODED, ClassLogits, lead, presence_shift, strongest
from dpseg.model.cost_volume import dual_cost_volume
from dpseg.model.dpseg import DPSeg
from dpseg.model.encoders import Pyramid
from dpseg.prompts.prompt_set import PromptSet

Point = tuple[int, int]
"""x and y of a pixel, counted from the top left corner."""


@dataclass(frozen=True, eq=False)
class PointLogits:
    """What is kept of a photo's logits, on the CPU.

    Attributes:
        logits: (P, K) of P pixels; `UNDECODED` for classes that were not decoded.
        ranks: (P, K), by which a pixel's class is chosen: the same with what classes gain when they compete, or scores
            where the model resizes those.
        presence: (K,), what each class gains by how much of the photo seems to show it; 0 where the config has none.
        adjustment: (K,), what it gains by how rare it was in training; 0 where the prompts have none.
        best: (h, w), the logit of the class that leads.
        leaders: (h, w) int64, which that is.
    """

    logits: Tensor
    ranks: Tensor
    presence: Tensor
    adjustment: Tensor
    best: Tensor
    leaders: Tensor


def decode_at(
    model: DPSeg, pyramid: Pyramid, prompts: PromptSet, points: Sequence[Point], size: tuple[int, int]
) -> PointLogits:
    """Decodes a photo, and keeps the logits of some pixels.

    Args:
        model: that decodes.
        pyramid: one encoded photo.
        prompts: of K classes, on the model's device.
        points: P pixels.
        size: width and height of the photo.
    """
    logits = torch.full((len(points), len(prompts)), UNDECODED)
    ranks, best, leaders = logits.clone(), torch.empty(0), torch.empty(0)
    blocks: Iterable[ClassLogits] = model.decode_blocks(pyramid, prompts.embeddings)
    adjustment = torch.zeros(len(prompts))
    if prompts.embeddings.adjustment is not None:
        adjustment = prompts.embeddings.adjustment.float().cpu()
    shift = adjustment
    if model.config.presence:
        blocks = strongest(blocks)
        shift = presence_shift(blocks, len(prompts), model.config.presence, prompts.embeddings.adjustment).cpu()
    for block in blocks:
        some, classes = block.logits.float().cpu(), block.classes.cpu()
        for number, point in enumerate(points):
            logits[number, classes] = sample(some, point, size)
            shown = some.sigmoid() if model.config.resize_scores else some  # what labels are made of
            ranks[number, classes] = sample(shown, point, size) + shift[classes]
        top, index = lead(some, shift[classes])
        if not best.numel():
            best, leaders = top, classes[index]
        else:
            larger = top + shift[classes[index]] > best + shift[leaders]
            best, leaders = top.where(larger, best), classes[index].where(larger, leaders)
    return PointLogits(logits, ranks, shift - adjustment, adjustment, best, leaders)


def baseline_map(model: DPSeg, pyramid: Pyramid, prompts: PromptSet, size: torch.Size) -> Tensor | None:
    """Returns the part of the logits that is a scaled cosine, averaged over views, (K, *size) on the CPU.

    Args:
        model: whose baseline it is.
        pyramid: one encoded photo.
        prompts: of K classes.
        size: of the logits.

    Returns:
        None where the model has no baseline.
    """
    if model.baseline is None:
        return None
    embeddings = prompts.embeddings.to(pyramid.dense.device)
    total = torch.zeros(1, len(prompts), *size, device=pyramid.dense.device)
    for number, view in enumerate((pyramid, *pyramid.mirrored)):
        cost = dual_cost_volume(view.dense, embeddings, model.config.fusion)
        if number == 0:
            total = total + model.baseline(cost, embeddings, size)
            continue
        stage = view.stages[model.decoder.order[-1] - 2]  # logits have the resolution of the last stage's E_j
        mirrored = model.baseline(cost, embeddings, stage.shape[-2:]).flip(-1)
        total = total + resize_to(mirrored, size)
    return (total[0] / (1 + len(pyramid.mirrored))).cpu()


def sample(maps: Tensor, point: Point, size: tuple[int, int]) -> Tensor:
    """Returns maps (C, h, w), resized bilinearly to a photo of `size` (width, height), at one of its pixels: (C,)."""
    width, height = size
    place = torch.tensor([2 * (point[0] + 0.5) / width - 1, 2 * (point[1] + 0.5) / height - 1]).view(1, 1, 1, 2)
    values = F.grid_sample(maps[None].float(), place, mode="bilinear", padding_mode="border", align_corners=False)
    return values[0, :, 0, 0]
