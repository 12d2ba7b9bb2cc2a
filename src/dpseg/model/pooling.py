"""Average pooling over a picture's object, shared by the encoders."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def masked_mean(features: Tensor, masks: Tensor | None = None) -> Tensor:
    """Averages each feature map over its positions: GAP, weighted by a mask where there is one.

    Each position counts by the share of its pixels that the mask covers, so the smallest object still has a weight,
    and a mask of ones is the same as none. (ours: the paper crops, and says nothing of masks)

    Args:
        features: (N, D, H, W).
        masks: (N, h, w) float in [0, 1] of the pictures, of any size. A mask of zeros counts as none.

    Returns:
        (N, D).
    """
    if masks is None:
        return features.mean(dim=(2, 3))
    height, width = features.shape[2:]
    weights = F.adaptive_avg_pool2d(masks.to(features.dtype).unsqueeze(1), (height, width))  # (N, 1, H, W)
    empty = weights.sum(dim=(2, 3), keepdim=True) == 0
    weights = torch.where(empty, torch.ones_like(weights), weights)
    return (features * weights).sum(dim=(2, 3)) / weights.sum(dim=(2, 3))
