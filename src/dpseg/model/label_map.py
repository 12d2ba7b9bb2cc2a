"""Logits of K classes at the model's resolution -> one label for each pixel of the photo, in little memory."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

TILE = 256
"""Side in pixels of the squares that are labelled one after the other."""


@torch.inference_mode()
def label_map(
    logits: Tensor, size: tuple[int, int], background: float | None = None, resize_scores: bool = False
) -> NDArray[np.int32]:
    """Labels each pixel with the class whose bilinearly resized logit is largest.

    Resizing all classes at once takes 40 GB for 847 classes on 12 megapixels. So the photo is labelled tile by tile,
    and in each tile only the classes that can win there are resized, which changes nothing.

    Args:
        logits: (K, h, w).
        size: height and width of the photo in pixels.
        background: in [0, 1]; pixels whose best score, sigmoid(logit), is below it get the label -1. None: no
            such pixels.
        resize_scores: resize the scores, sigmoid(logit), in place of the logits (SED's protocol).

    Returns:
        (H, W) labels in [0, K), or -1.
    """
    height, width = size
    logits = logits.float().clamp(min=-1e4)  # -inf (a class that was not decoded) cannot be interpolated
    limit = -math.inf
    if background is not None and background > 0:
        limit = math.inf if background >= 1 else math.log(background / (1 - background))
    if resize_scores:
        logits = logits.sigmoid()
        limit = background if background is not None and 0 < background < 1 else limit
    rows = [_taps(top, min(top + TILE, height), height, logits.shape[1]) for top in range(0, height, TILE)]
    columns = [_taps(left, min(left + TILE, width), width, logits.shape[2]) for left in range(0, width, TILE)]
    labels = np.empty(size, dtype=np.int32)
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            tile = _label_tile(logits, row, column, limit).cpu().numpy()
            labels[y * TILE : y * TILE + tile.shape[0], x * TILE : x * TILE + tile.shape[1]] = tile
    return labels


def _label_tile(logits: Tensor, rows: _Taps, columns: _Taps, limit: float) -> Tensor:
    """Labels the pixels of one tile: (rows, columns) int32, -1 where the best logit is below `limit`."""
    (top, bottom), low_rows, row_weight = rows
    (left, right), low_columns, column_weight = columns
    part = logits[:, top:bottom, left:right]
    able = _can_win(part)
    part = part[able]
    # The lower neighbour of the last position is itself, as in torch's bilinear resizing without aligned corners.
    part = F.pad(part[None], (0, 1, 0, 1), mode="replicate")[0]
    device = logits.device
    low_rows, row_weight = low_rows.to(device), row_weight.to(device)[:, None]
    low_columns, column_weight = low_columns.to(device), column_weight.to(device)
    part = torch.lerp(part[:, low_rows], part[:, low_rows + 1], row_weight)
    part = torch.lerp(part[:, :, low_columns], part[:, :, low_columns + 1], column_weight)
    best, index = part.max(dim=0)
    return torch.where(best < limit, -1, able[index]).to(torch.int32)


_Taps = tuple[tuple[int, int], Tensor, Tensor]


def _taps(start: int, stop: int, length: int, source: int) -> _Taps:
    """Where the pixels [start, stop) of a side of `length` pixels lie between the `source` positions of the logits.

    Returns:
        The range of positions that they need; for each pixel the position before it, counted from the range's start;
        and the weight in [0, 1) of the position after it.
    """
    centres = ((torch.arange(start, stop) + 0.5) * (source / length) - 0.5).clamp(min=0)
    low = centres.floor().long().clamp(max=source - 1)
    first = int(low[0])
    return (first, min(int(low[-1]) + 2, source)), low - first, (centres - low).float().clamp(max=1)


def _can_win(logits: Tensor) -> Tensor:
    """Returns the indices of the classes that are the largest at some pixel, and maybe some more.

    A resized logit lies between the smallest and the largest of the (at most) 2 x 2 logits around it. A class whose
    largest is everywhere below another class's smallest never wins.
    """
    padded = F.pad(logits[None], (1, 1, 1, 1), mode="replicate")
    highest = F.max_pool2d(padded, kernel_size=2, stride=1)[0]
    lowest = -F.max_pool2d(-padded, kernel_size=2, stride=1)[0]
    return (highest >= lowest.amax(dim=0)).flatten(1).any(dim=1).nonzero()[:, 0]
