"""What training minimises."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dpseg.model.cost_volume import cosine_volume
from dpseg.training.prompt_tables import PromptTables
from dpseg.training.sampler import IGNORE, NONE, Batch

COSINE_SCALE = 20.0
"""Inverse temperature of the cosines in the auxiliary and the retention loss."""


def to_local(labels: Tensor, classes: Tensor) -> Tensor:
    """Maps labels (B, h, w) to positions in `classes` (B, K); `IGNORE` where a name is not among them."""
    match = labels.flatten(1)[:, None] == classes[:, :, None]  # (B, K, h * w)
    found, index = match.max(dim=1)
    return torch.where(found, index, IGNORE).view(labels.shape)


def class_weights(labels: Tensor, balance: float) -> Tensor:
    """Weighs pixels so that rare classes count more: (B, h, w), 0 where a label is negative, a crop's mean is 1.

    Args:
        labels: (B, h, w).
        balance: a class with a share a of its crop's labelled pixels weighs a ** -balance.
    """
    weights = torch.zeros(labels.shape, device=labels.device)
    for one, weight in zip(labels, weights, strict=True):
        values, inverse, counts = one.unique(return_inverse=True, return_counts=True)
        share = counts / counts[values >= 0].sum().clamp_min(1)
        each = torch.where(values >= 0, share.pow(-balance), 0.0)
        weight.copy_((each * counts[values >= 0].sum() / (each * counts).sum().clamp_min(1e-6))[inverse])
    return weights


class Weighted(NamedTuple):
    """A mean in two parts, so that several processes can share it.

    Attributes:
        total: (), the weighted sum.
        weight: (), the sum of the weights, without gradient.
    """

    total: Tensor
    weight: Tensor

    @property
    def mean(self) -> Tensor:
        """The mean, (); 0 of nothing."""
        return self.total / self.weight.clamp_min(1e-6)


def cross_entropy(logits: Tensor, target: Tensor, weights: Tensor) -> Weighted:
    """Weighted softmax cross-entropy over K; pixels with a negative target do not count."""
    weights = weights * (target >= 0)
    losses = F.cross_entropy(logits, target.clamp_min(IGNORE), ignore_index=IGNORE, reduction="none")
    return Weighted((losses * weights).sum(), weights.sum())


def binary_cross_entropy(logits: Tensor, target: Tensor, batch: Batch) -> Weighted:
    """Per-pixel BCE of each category, with ignore (the paper's loss).

    A pixel says of a category: yes; no, because it has another label; no, because its data set labels that category and
    this is none of its names; or nothing.

    Args:
        logits: (B, K, h, w).
        target: (B, h, w), positions in the K categories, as `to_local` returns them.
        batch: with labels of the same size.
    """
    positions = torch.arange(logits.shape[1], device=logits.device)[None, :, None, None]
    positive = target[:, None] == positions
    known = (batch.labels[:, None] >= 0) | ((batch.labels[:, None] == NONE) & batch.own[..., None, None])
    losses = F.binary_cross_entropy_with_logits(logits, positive.to(logits.dtype), reduction="none")
    return Weighted((losses * known).sum(), known.sum().to(losses.dtype))


def auxiliary_loss(
    dense: Tensor, tables: PromptTables, allowed: Tensor, labels: Tensor, weights: Tensor, often: Tensor
) -> Weighted:
    """Cross-entropy of the plain cosines of E with T, V and R over the whole vocabulary: it shapes the joint space.

    Args:
        dense: E, (B, D, H, W).
        tables: prompts of all N names.
        allowed: (B, N) bool: the names of each crop's vocabulary.
        labels: (B, H, W) indices of names.
        weights: (B, H, W).
        often: (N,), added to the logits of each name.
    """
    text, visual = tables.text.mean(dim=1, keepdim=True), tables.visual
    target = torch.where(allowed.gather(1, labels.clamp_min(0).flatten(1)).view(labels.shape), labels, IGNORE)
    cosines = cosine_volume(dense, torch.cat([text, visual, text + visual], dim=1))  # of T, V and R
    logits = COSINE_SCALE * cosines.float() + often[:, None, None, None]
    logits = logits.masked_fill(~allowed[..., None, None, None], -1e4)
    parts = [cross_entropy(one, target, weights) for one in logits.unbind(2)]
    return Weighted(torch.stack([part.total for part in parts]).mean(), parts[0].weight)


def retention_loss(dense: Tensor, frozen: Tensor, classifier: Tensor) -> Weighted:
    """Keeps the frozen classifier's opinion at each position, so that names that training never sees lose nothing.

    Learning without Forgetting (Li and Hoiem, ECCV 2016), densely: the divergence of the cosines with the class vectors
    from what they were before training, at every other position of every other row.

    Args:
        dense: E, (B, D, H, W).
        frozen: E of the untrained encoder, (B, D, H, W).
        classifier: (C, D) class vectors.
    """
    dense, frozen = (e[:, :, ::2, ::2] for e in (dense, frozen))
    new, old = (COSINE_SCALE * cosine_volume(e, classifier[:, None])[:, :, 0].float() for e in (dense, frozen))
    divergence = F.kl_div(new.log_softmax(1), old.log_softmax(1), reduction="none", log_target=True).sum(dim=1)
    return Weighted(divergence.sum(), torch.tensor(float(divergence.numel()), device=divergence.device))
