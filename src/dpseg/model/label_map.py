"""Logits of K classes at the model's resolution -> one label for each pixel of the photo, in little memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

TILE = 256
"""Side in pixels of the squares that are labelled one after the other."""


BLOCK = 64
"""Classes that are resized at a time."""


@torch.inference_mode()
def label_map(
    logits: Tensor, size: tuple[int, int], background: float | None = None, resize_scores: bool = False
) -> NDArray[np.int32]:
    """Labels each pixel with the class whose bilinearly resized logit is largest.

    Args:
        logits: (K, h, w).
        size: as for `LabelMap`.
        background: as for `LabelMap`.
        resize_scores: as for `LabelMap`.

    Returns:
        (H, W) labels in [0, K), or -1.
    """
    labelling = LabelMap(size, background, resize_scores)
    labelling.add_all(logits)
    return labelling.labels()


class LabelMap:
    """Labels each pixel with the class whose bilinearly resized logit is largest; classes come in blocks.

    Resizing all classes at once takes 40 GB for 847 classes on 12 megapixels. So the photo is labelled tile by tile,
    and in each tile only the classes that can win there are resized, which changes nothing. Memory is that of a few
    photos, whatever K is.

    Attributes:
        shift: (K,), added to each class's logits when classes compete, and no part of its score; not with
            `resize_scores`. None: nothing is. It is set before classes are added.
    """

    def __init__(self, size: tuple[int, int], background: float | None = None, resize_scores: bool = False) -> None:
        """Makes an empty map.

        Args:
            size: height and width of the photo in pixels.
            background: in [0, 1]; pixels whose best score, sigmoid(logit), is below it get the label -1. None: no
                such pixels.
            resize_scores: resize the scores, sigmoid(logit), in place of the logits (SED's protocol).
        """
        self.size, self.resize_scores = size, resize_scores
        self.shift: Tensor | None = None
        self._limit = -math.inf
        if background is not None and background > 0:
            self._limit = math.inf if background >= 1 else math.log(background / (1 - background))
            if resize_scores and background < 1:
                self._limit = background
        self._best: Tensor | None = None  # (H, W)
        self._labels: Tensor | None = None  # (H, W) int32
        self._floor: Tensor | None = None  # (h + 1, w + 1): what the best class has at least around there

    @property
    def begun(self) -> bool:
        """Whether classes were added."""
        return self._best is not None

    @torch.inference_mode()
    def add_all(self, logits: Tensor, classes: Tensor | None = None) -> None:
        """Adds all classes that there are; quicker than `add` block by block.

        Args:
            logits: (k, h, w).
            classes: (k,) their labels, ascending; None: 0 to k - 1.
        """
        values = self._values(logits, classes)
        blocks = values.split(BLOCK)
        for block in blocks:
            self._raise_floor(block)
        labels = torch.arange(len(values), device=values.device) if classes is None else classes
        self._add(labels, values, torch.cat([self._able(block) for block in blocks]))

    @torch.inference_mode()
    def add(self, classes: Tensor, logits: Tensor) -> None:
        """Adds some classes; where logits are equal, the class that was added first stays.

        Args:
            classes: (k,) their labels.
            logits: (k, h, w).
        """
        values = self._values(logits, classes)
        self._raise_floor(values)
        self._add(classes, values, self._able(values))

    def labels(self) -> NDArray[np.int32]:
        """Returns (H, W) labels of the classes that were added, or -1."""
        if self._best is None or self._labels is None:
            return np.full(self.size, -1, dtype=np.int32)
        labels: NDArray[np.int32] = torch.where(self._plain_best() < self._limit, -1, self._labels).cpu().numpy()
        return labels

    def mean_scores(self, count: int) -> NDArray[np.float32]:
        """Returns the mean score of each class over the pixels that it labels, (count,) in [0, 1], 0 without any."""
        labels = torch.from_numpy(self.labels()).flatten().long() + 1
        best = self._plain_best().flatten().cpu()
        scores = (best if self.resize_scores else best.sigmoid()).double()
        sums = torch.zeros(count + 1, dtype=torch.float64).index_add_(0, labels, scores)
        sizes = torch.bincount(labels, minlength=count + 1)
        means: NDArray[np.float32] = (sums / sizes.clamp_min(1))[1:].float().numpy()
        return means

    def _values(self, logits: Tensor, classes: Tensor | None) -> Tensor:
        """Returns what is resized: finite, for -inf (a class that was not decoded) cannot be interpolated."""
        if self.resize_scores:
            return logits.float().sigmoid()
        values = logits.float().clamp(min=-1e4)
        if self.shift is None:
            return values
        return values + (self.shift if classes is None else self.shift[classes])[:, None, None]

    def _plain_best(self) -> Tensor:
        """Returns the best class's values without the shift, (H, W)."""
        assert self._best is not None
        assert self._labels is not None
        return self._best if self.shift is None else self._best - self.shift[self._labels.clamp_min(0)]

    def _raise_floor(self, values: Tensor) -> None:
        """Takes a block into account for what a class must reach at least to win, (h + 1, w + 1).

        A resized value lies between the smallest and the largest of the (at most) 2 x 2 values around it. A class whose
        largest is everywhere below another class's smallest never wins.
        """
        lowest = _around(values, torch.minimum).amax(dim=0)
        self._floor = lowest if self._floor is None else torch.maximum(self._floor, lowest)

    def _able(self, values: Tensor) -> Tensor:
        """Returns where each class may win: (k, h + 1, w + 1) bool."""
        assert self._floor is not None
        return _around(values, torch.maximum) >= self._floor

    def _add(self, classes: Tensor, values: Tensor, able: Tensor) -> None:
        """Labels each tile anew."""
        height, width = self.size
        if self._best is None or self._labels is None:
            self._best = values.new_full(self.size, -math.inf)
            self._labels = torch.full(self.size, -1, dtype=torch.int32, device=values.device)
        if not able.any():
            return
        columns = _taps(width, values.shape[2])
        for down, high, row_weights in _taps(height, values.shape[1]):
            for across, wide, column_weights in columns:
                around = able[:, high.start : high.stop + 1, wide.start : wide.stop + 1]
                for here in around.flatten(1).any(dim=1).nonzero()[:, 0].split(BLOCK):
                    part = _resized(values[here, high, wide], row_weights, column_weights)
                    self._take(down, across, classes[here], part)

    def _take(self, down: slice, across: slice, classes: Tensor, values: Tensor) -> None:
        """Labels a tile's pixels where one of these classes, (k, rows, columns), is larger than those before."""
        assert self._best is not None
        assert self._labels is not None
        if len(classes) == 0:
            return
        best, index = _leading(values)
        known, labels = self._best[down, across], self._labels[down, across]
        larger = best > known
        torch.where(larger, classes[index].to(torch.int32), labels, out=labels)
        torch.where(larger, best, known, out=known)


def _resized(part: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Resizes the positions that a tile needs, (k, h, w), to its pixels; the weights are those of `_taps`."""
    return rows.to(part.device) @ (part @ columns.to(part.device).T)


def _leading(values: Tensor) -> tuple[Tensor, Tensor]:
    """Returns values.max(dim=0) of finite (k, h, w), on a CPU in less time.

    torch looks for each pixel's index by itself. Here the first class has the rank k where its value is the maximum,
    the second k - 1, and all ranks lie far below 0 elsewhere, which is arithmetic on whole maps.
    """
    count = len(values)
    if values.device.type != "cpu" or values.dtype != torch.float32:
        best, index = values.max(dim=0)
        return best, index
    best = values.amax(dim=0)
    ranks, rank = torch.zeros_like(best), torch.empty_like(best)
    for number, one in enumerate(values):
        torch.sub(one, best, out=rank).mul_(1e30).add_(count - number)
        torch.maximum(ranks, rank, out=ranks)
    return best, (count - ranks).long()


def _around(values: Tensor, extreme: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Returns the largest or smallest of the 2 x 2 values around each pixel: (k, h, w) -> (k, h + 1, w + 1)."""
    padded = F.pad(values[None], (1, 1, 1, 1), mode="replicate")[0]
    lines = extreme(padded[:, :-1], padded[:, 1:])
    return extreme(lines[:, :, :-1], lines[:, :, 1:])


def _taps(length: int, source: int) -> list[tuple[slice, slice, Tensor]]:
    """Cuts a side into tiles.

    Args:
        length: of the photo's side, in pixels.
        source: of the logits' side.

    Returns:
        For each tile its pixels, the positions of the logits that they lie between, and the weights with which each
        pixel takes them, (pixels, positions): those of torch's bilinear resizing without aligned corners.
    """
    tiles = []
    for start in range(0, length, TILE):
        stop = min(start + TILE, length)
        centres = ((torch.arange(start, stop) + 0.5) * (source / length) - 0.5).clamp(min=0)
        low = centres.floor().long().clamp(max=source - 1)
        first, last = int(low[0]), min(int(low[-1]) + 2, source)
        pixels, after = torch.arange(stop - start), (low + 1).clamp(max=source - 1) - first
        share = (centres - low).float().clamp(max=1)
        weights = torch.zeros(stop - start, last - first)
        weights[pixels, low - first] = 1 - share
        weights[pixels, after] += share
        tiles.append((slice(start, stop), slice(first, last), weights))
    return tiles
