"""Cost volumes: how much each position of an image looks like each category's prompts. Pure functions.

`PAPER.md`'s first part: R = Avg(V + T), F_c = cosine(E, R), F_v^j = cosine(E_j, GAP(V_j)). A category may lack text or
pictures (ours): R is then the average of what is there, and the cosine with a missing prompt is 0.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from dpseg.config import Fusion
from dpseg.model.template_embedding import unit_vectors
from dpseg.prompts.prompt_set import PromptEmbeddings

_AT_ONCE = 256  # classes whose cosines are compared at a time


def cosine_volume(features: Tensor, prompts: Tensor) -> Tensor:
    """Returns the cosine between every position and every prompt.

    Args:
        features: (B, D, H, W).
        prompts: (K, M, D), or (B, K, M, D) where each image has prompts of its own. Zero rows give zeros.

    Returns:
        (B, K, M, H, W) in [-1, 1].
    """
    features = F.normalize(features, dim=1)
    prompts = F.normalize(prompts, dim=-1)
    batch, _, height, width = features.shape
    count, templates, size = prompts.shape[-3:]
    rows = prompts.reshape(-1, count * templates, size) if prompts.dim() == 4 else prompts.reshape(1, -1, size)
    volume = torch.matmul(rows, features.flatten(2))  # (B, K * M, H * W)
    return volume.view(batch, count, templates, height, width)


def dual_prompt(prompts: PromptEmbeddings) -> Tensor:
    """Returns R = (V + T) / 2 of unit vectors, (..., K, M, D); T or V alone where the other is missing."""
    text, visual = _both(prompts)
    count = prompts.has_text.to(text.dtype) + prompts.has_visual.to(text.dtype)
    return (text + visual) / count.clamp_min(1.0)[..., None, None]


def dual_cost_volume(dense: Tensor, prompts: PromptEmbeddings, fusion: Fusion) -> Tensor:
    """Returns the cost volume that the decoder reads.

    Args:
        dense: E, (B, D, H, W).
        prompts: of K categories.
        fusion: "average" is the paper's F_c; the others are its ablations.

    Returns:
        (B, K, C, H, W) in [-1, 1]; C = M, or 2 M for "cost_concat".
    """
    if fusion == "average":
        return cosine_volume(dense, dual_prompt(prompts))  # F_c
    text, visual = _both(prompts)
    if fusion == "text":
        return cosine_volume(dense, text)
    if fusion == "visual":
        return cosine_volume(dense, visual)
    volumes = cosine_volume(dense, text), cosine_volume(dense, visual)
    if fusion == "cost_concat":
        return torch.cat(volumes, dim=2)
    count = prompts.has_text.to(dense.dtype) + prompts.has_visual.to(dense.dtype)
    return (volumes[0] + volumes[1]) / count.clamp_min(1.0)[..., None, None, None]


def prompt_rows(prompts: PromptEmbeddings, fusion: Fusion) -> Tensor:
    """Returns what `dual_cost_volume` multiplies E's unit vectors with, (..., K, C, D): it is linear in them."""
    if fusion == "average":
        return F.normalize(dual_prompt(prompts), dim=-1)  # R
    text, visual = (F.normalize(rows, dim=-1) for rows in _both(prompts))
    if fusion == "text":
        return text
    if fusion == "visual":
        return visual
    if fusion == "cost_concat":
        return torch.cat((text, visual), dim=-2)
    count = prompts.has_text.to(text.dtype) + prompts.has_visual.to(text.dtype)
    return (text + visual) / count.clamp_min(1.0)[..., None, None]


def visual_cost_volumes(
    stages: tuple[Tensor, Tensor, Tensor], prompts: PromptEmbeddings, wanted: tuple[int, ...]
) -> dict[int, Tensor]:
    """Returns F_v^j, (B, K, M, H_j, W_j), for each wanted j in 2, 3, 4, computed afresh at that stage's resolution.

    Args:
        stages: E_2, E_3, E_4.
        prompts: of K categories, with GAP(V_j).
        wanted: which j.
    """
    templates = prompts.text.shape[-2]
    return {j: cosine_volume(stages[j - 2], _repeat(prompts.stages[j - 2], templates)) for j in wanted}


def _both(prompts: PromptEmbeddings) -> tuple[Tensor, Tensor]:
    """Returns T and V with the same M."""
    return prompts.text, _repeat(prompts.visual, prompts.text.shape[-2])


def _repeat(visual: Tensor, templates: int) -> Tensor:
    """Gives one embedding for all templates to each template: (..., K, Mv, D) -> (..., K, M, D)."""
    return visual.expand(*visual.shape[:-2], templates, visual.shape[-1])


@torch.no_grad()
def best_classes(dense: Tensor, prompts: PromptEmbeddings, fusion: Fusion, count: int) -> Tensor:
    """Returns the classes with the best maximum of F_c, averaged over its channels, best first: (count,) int64.

    Args:
        dense: E of one image, (1, D, H, W).
        prompts: of K classes, without a batch dimension.
        fusion: how T and V meet.
        count: so many, K at most.
    """
    maxima = [cosines.flatten(1).amax(dim=1) for _, cosines in mean_cosines(dense, prompts, fusion)]
    return torch.cat(maxima).topk(count).indices


@torch.no_grad()
def mean_cosines(dense: Tensor, prompts: PromptEmbeddings, fusion: Fusion) -> Iterator[tuple[slice, Tensor]]:
    """Yields F_c averaged over its channels, some classes at a time: (classes, (k, H, W) in [-1, 1]).

    Args:
        dense: E of one image, (1, D, H, W).
        prompts: of K classes, without a batch dimension.
        fusion: how T and V meet.
    """
    features = unit_vectors(dense)
    for start in range(0, len(prompts.text), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        rows = prompt_rows(prompts.map(lambda t, part=part: t[part]), fusion).float()  # type: ignore[misc]
        yield part, (rows.mean(dim=1) @ features.flatten(1)).unflatten(1, features.shape[1:])
