"""What happens to the pixels of a training crop."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def uniform(random: torch.Generator) -> float:
    """Draws from [0, 1)."""
    return float(torch.rand((), generator=random))


def resize_crop(image: Tensor, side: int) -> Tensor:
    """Resizes a crop (3, H, W) to a square."""
    return F.interpolate(image[None], (side, side), mode="bilinear", antialias=True)[0].clamp_(0, 1)


def resize_labels(labels: Tensor, side: int) -> Tensor:
    """Resizes labels (H, W) to a square: the nearest of them."""
    rows = ((torch.arange(side) + 0.5) * labels.shape[0] / side).long()
    columns = ((torch.arange(side) + 0.5) * labels.shape[1] / side).long()
    return labels[rows][:, columns]


def jitter_colours(image: Tensor, strength: float, random: torch.Generator) -> Tensor:
    """Changes brightness, contrast and saturation, each with probability one half (SSD, Liu et al., ECCV 2016).

    Args:
        image: (3, H, W) in [0, 1].
        strength: factors lie between 1 - strength and 1 + strength.
        random: of the draws.
    """
    for kind in ("brightness", "contrast", "saturation"):
        if uniform(random) < 0.5:
            continue
        factor = 1 + strength * (2 * uniform(random) - 1)
        match kind:
            case "brightness":
                image = image * factor
            case "contrast":
                image = torch.lerp(image.mean(), image, factor)
            case _:
                image = torch.lerp(image.mean(dim=0, keepdim=True), image, factor)
    return image.clamp(0, 1)
