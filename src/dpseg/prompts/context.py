"""What surrounds the thing in the crop of a reference: kept, blurred, or replaced by the crop's mean colour.

Blurring what surrounds the thing is one of the ways of Lüddecke and Ecker (CLIPSeg, CVPR 2022) to tell CLIP where to
look. Here features are averaged over the thing in any case; this decides what the encoder sees beside it.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from dpseg.config import Context

BLUR = 1 / 16
"""Standard deviation of the blur, as a fraction of the crop's side."""


def with_context(crop: Tensor, mask: Tensor, context: Context) -> Tensor:
    """Returns a crop with other surroundings, (3, s, s); the thing itself is unchanged.

    Args:
        crop: (3, s, s), RGB in [0, 1], on the CPU.
        mask: (s, s) in [0, 1], 1 on the thing; in between, old and new colours are mixed.
        context: "keep": as it is; "blur": blurred, the thing's colours included; "mean": the crop's mean colour.
    """
    if context == "keep":
        return crop
    if context == "mean":
        around = crop.mean((1, 2), keepdim=True)
    else:
        sigma = BLUR * crop.shape[-1]
        around = torch.from_numpy(np.stack([ndimage.gaussian_filter(c, sigma, mode="nearest") for c in crop.numpy()]))
    return mask * crop + (1 - mask) * around
