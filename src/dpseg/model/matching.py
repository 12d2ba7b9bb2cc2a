"""Classes that look alike: what tells their pictures apart, what a photo shows as a whole, what their words are worth.

All of it is (ours), needs no training, and changes only what goes into the cost volume. V of 32 circuit boards differ
little from each other, and a position of a photo sees a part of a board that many of them have.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from dpseg.config import Fusion
from dpseg.model.cost_volume import prompt_rows
from dpseg.model.encoders import Encoder, Pyramid
from dpseg.prompts.prompt_set import PromptEmbeddings

RIDGE = 1.0
"""Added to the scatter within classes, as a multiple of its mean variance: there are fewer pictures than dimensions."""

FOCUS = 30.0
"""Of the softmax over a photo's positions, of their largest cosine with any class: how much the likeliest count."""

TURNS = 4
"""Quarters in which a picture is turned."""

_AT_ONCE = 256  # prompts compared at a time


@torch.no_grad()
def contrast_rows(encoder: Encoder, classes: Iterable[Iterable[tuple[Tensor, Tensor]]], turned: bool = False) -> Tensor:
    """Returns for each class the direction of E that tells its pictures from the other classes' pictures.

    It is that of Fisher's linear discriminant (Fisher, 1936), with a ridge: the mean of the class less the mean of all
    classes, divided by the scatter of positions within the classes. So what varies within a thing, or between pictures
    of it, counts less. Along the mean of all classes it is 0, for a cosine has no bias that would take that away.

    Args:
        encoder: whose image encoder; features are those that the prompts are compared with.
        classes: C classes, each with one picture or more: (3, s, s), RGB in [0, 1], and mask (s, s) in [0, 1].
        turned: pictures are also seen turned by one, two and three quarters; all four count as one picture.

    Returns:
        (C, D) unit vectors; zeros where there is a single class.
    """
    means: list[Tensor] = []
    scatter: Tensor | None = None
    for pictures in classes:
        parts = [_positions(encoder, crop, mask, TURNS if turned else 1) for crop, mask in pictures]
        mean = F.normalize(torch.stack([part.mean(dim=0) for part in parts]), dim=-1).mean(dim=0)
        spread = torch.cat([(part - mean) / (len(part) * len(parts)) ** 0.5 for part in parts])  # pictures weigh alike
        scatter = spread.T @ spread + (0 if scatter is None else scatter)
        means.append(mean)
    assert scatter is not None
    every, size = torch.stack(means), scatter.shape[0]
    centre = every.mean(dim=0)
    within = scatter / len(means)
    ridge = (RIDGE * within.trace() / size).clamp_min(1e-6)
    directions = torch.linalg.solve(within + ridge * torch.eye(size).to(within), (every - centre).T).T
    axis = F.normalize(centre, dim=0)
    directions = directions - (directions @ axis)[:, None] * axis
    return F.normalize(directions, dim=-1) if len(means) > 1 else torch.zeros_like(directions)


def words_worth(text: Tensor, own: Sequence[int], pictures: Tensor) -> float:
    """Returns how much better than chance words rank pictures: Somers' D of right and wrong names, in [0, 1].

    For each picture it is the share of the other classes whose words are farther from it than its own class's, times
    2, less 1; averaged over the classes. 1: the right word is always the nearest; 0: the words say nothing.

    Args:
        text: T, (K, M, D).
        own: for each of N pictures its class, an index into T.
        pictures: V of each picture, (N, D).
    """
    if len(text) < 2:
        return 1.0
    cosines = F.normalize(pictures, dim=-1) @ F.normalize(text.mean(dim=1), dim=-1).T  # (N, K)
    index = torch.tensor(list(own), device=cosines.device)
    mine = cosines.gather(1, index[:, None])
    beaten = (cosines < mine).sum(dim=1) + 0.5 * ((cosines == mine).sum(dim=1) - 1)
    shares = beaten / (len(text) - 1)
    each = torch.stack([shares[index == k].mean() for k in index.unique()])
    return max(0.0, 2 * float(each.mean()) - 1)


def with_whole(pyramid: Pyramid, prompts: PromptEmbeddings, fusion: Fusion, weight: float) -> Pyramid:
    """Adds to every position of E what the photo shows as a whole: E averaged over what looks most like any class.

    Args:
        pyramid: one encoded image, a batch of one.
        prompts: of K categories, without a batch dimension.
        fusion: how T and V meet.
        weight: of the average, in unit vectors, where each position weighs 1; 0: E stays as it is.
    """
    if not weight:
        return pyramid
    dense = F.normalize(pyramid.dense, dim=1)  # (1, D, H, W)
    columns = dense[0].flatten(1)  # (D, H W)
    best = columns.new_full((columns.shape[1],), -1.0)
    for rows in prompt_rows(prompts, fusion).flatten(0, -2).split(_AT_ONCE):
        best = torch.maximum(best, (rows @ columns).amax(dim=0))
    whole = F.normalize(columns @ torch.softmax(FOCUS * best, dim=0), dim=0)
    views = tuple(with_whole(view, prompts, fusion, weight) for view in pyramid.mirrored)
    return replace(pyramid, dense=dense + weight * whole[None, :, None, None], mirrored=views)


def _positions(encoder: Encoder, crop: Tensor, mask: Tensor, turns: int) -> Tensor:
    """Returns E of a picture, and of it turned, where the mask covers it: (P, D) unit vectors, P at least 1."""
    assert isinstance(encoder, torch.nn.Module)
    place = next(encoder.parameters())
    crops = torch.stack([crop.rot90(turn, (-2, -1)) for turn in range(turns)])
    masks = torch.stack([mask.rot90(turn, (-2, -1)) for turn in range(turns)])
    dense = F.normalize(encoder.pyramid(crops.to(place)).dense.float(), dim=1)  # (turns, D, H, W)
    cover = F.adaptive_avg_pool2d(masks.to(dense), (dense.shape[2], dense.shape[3]))
    return dense.movedim(1, -1)[cover >= cover.amax(dim=(1, 2), keepdim=True).clamp(max=0.5)]
