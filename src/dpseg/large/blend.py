"""Logits of overlapping tiles -> one label for each pixel, without seams, in memory that the picture does not fill."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpseg.large.grid import Axis
from dpseg.model.class_logits import ClassLogits

BLOCK = 128
"""Side in pixels of the squares that are labelled one after the other."""

TILE_CLASSES = 64
"""Of each tile the logits of so many classes are kept at most: those that come nearest to leading somewhere."""


@dataclass(frozen=True, eq=False)
class TileLogits:
    """What is kept of a tile.

    Attributes:
        classes: (k,) int64, ascending.
        values: (k + 1, h, w), what is blended of each class, at the decoder's resolution; the last is the smallest of
            the others at each position, and stands for every class that the tile did not decode or keep.
        above: so many of the tile's rows of positions, counted from its top, have been dropped.
        height: rows of positions of the whole tile.
    """

    classes: Tensor
    values: Tensor
    above: int
    height: int

    @classmethod
    def of(cls, blocks: Iterable[ClassLogits], scores: bool, adjustment: Tensor | None = None) -> TileLogits:
        """Keeps of a tile's blocks of classes what may matter.

        Args:
            blocks: one or more.
            scores: blend the scores, sigmoid(logit), in place of the logits.
            adjustment: (K,), added to the logits, see `PromptEmbeddings`; not with `scores`.
        """
        if adjustment is not None:
            blocks = (ClassLogits(b.classes, b.logits + adjustment[b.classes, None, None]) for b in blocks)
        classes, values = _nearest(blocks)
        values = values.sigmoid() if scores else values.clamp(min=-1e4)
        values = torch.cat([values, values.amin(dim=0, keepdim=True)])
        return cls(classes, values, 0, values.shape[1])

    def below(self, pixel: int, size: int) -> TileLogits:
        """Returns what pixels from this one on need, counted from the tile's top.

        Args:
            pixel: in [0, size).
            size: height of the tile in pixels.
        """
        first = max(0, int(((pixel + 0.5) * self.height / size - 0.5) // 1))
        kept = self.values[:, max(0, first - self.above) :].clone()
        return TileLogits(self.classes, kept, max(first, self.above), self.height)


class Blender:
    """Labels the pixels of a picture whose tiles come row by row, each row from left to right.

    At each pixel the tiles' logits, bilinearly resized, are averaged with the weights of `Axis.weights`. A class that
    one tile decoded and another did not has in the other the smallest value of those that were, so that its average
    falls smoothly to where it cannot win, and there is no edge where a tile begins or ends. Of the tiles above, only
    the rows that the next ones cover are kept.
    """

    def __init__(
        self, down: Axis, across: Axis, background: float | None, scores: bool, adjustment: Tensor | None = None
    ) -> None:
        """Begins a picture.

        Args:
            down: tiles along its height.
            across: tiles along its width.
            background: in [0, 1]; pixels whose best score is below it get the label -1. None: no such pixels.
            scores: what is blended are scores, not logits.
            adjustment: (K,), what the logits of tiles were adjusted by; it is no part of a pixel's score.
        """
        self.down, self.across, self.scores, self.adjustment = down, across, scores, adjustment
        self._limit = background if background is not None and background > 0 else -math.inf
        self._limit = math.inf if self._limit >= 1 else self._limit
        self._tiles: dict[tuple[int, int], TileLogits] = {}

    def rows_before(self, row: int) -> list[int]:
        """Returns the rows of tiles that must be known before a row's tiles come, ascending."""
        return [i for i in range(row) if self.down.starts[i] + self.down.size > self.down.starts[row]]

    def add(self, row: int, column: int, tile: TileLogits) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Takes the next tile, and returns what it finishes: the pixels that no later tile covers.

        Args:
            row: of the tile, from 0.
            column: of the tile, from 0.
            tile: its logits.

        Returns:
            Labels and scores of the best class, (h, w), of the pixels `down.own(row)` and `across.own(column)`.
        """
        self.keep(row, column, tile)
        rows, columns = self.down.own(row), self.across.own(column)
        labels = np.empty((rows[1] - rows[0], columns[1] - columns[0]), dtype=np.int32)
        scores = np.empty(labels.shape, dtype=np.float32)
        for top in range(0, labels.shape[0], BLOCK):
            for left in range(0, labels.shape[1], BLOCK):
                place = slice(top, top + BLOCK), slice(left, left + BLOCK)
                high, wide = labels[place].shape
                square = (rows[0] + top, columns[0] + left, high, wide)
                labels[place], scores[place] = self._label(square, row, column)
        self.drop(row, column)
        return labels, scores

    def keep(self, row: int, column: int, tile: TileLogits) -> None:
        """Takes a tile without labelling what it finishes, as when another run has done that."""
        self._tiles[row, column] = tile

    def drop(self, row: int, column: int) -> None:
        """Forgets what no tile after this one meets."""
        done = self.down.own(row)[1]
        right = self.across.own(column)[1]
        last = column == len(self.across.starts) - 1
        for (down, across), tile in list(self._tiles.items()):
            if not last and self.across.starts[across] + self.across.size > right:
                continue  # the next tile of this row still meets it
            start = self.down.starts[down]
            if start + self.down.size <= done:
                del self._tiles[down, across]
            elif done > start:
                self._tiles[down, across] = tile.below(done - start, self.down.size)

    def _label(
        self, square: tuple[int, int, int, int], row: int, column: int
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Labels a square (top, left, height, width), none of whose tiles comes after this row and column."""
        top, left, high, wide = square
        parts = [
            _Part.of(self._tiles[i, j], self.down, self.across, (i, j), square)
            for i in self.down.covering(top, top + high, row)
            for j in self.across.covering(left, left + wide, len(self.across.starts) - 1 if i < row else column)
        ]
        classes = torch.cat([part.classes for part in parts]).unique()
        rows = [part.rows_of(classes) for part in parts]
        able = _able([part.values[mine] for part, mine in zip(parts, rows, strict=True)])
        blended = sum(part.weighted(mine[able]) for part, mine in zip(parts, rows, strict=True))
        assert isinstance(blended, Tensor)
        best, index = blended.max(dim=0)
        leaders = classes[able][index]
        if self.adjustment is not None:
            best = best - self.adjustment[leaders]
        score = best if self.scores else best.sigmoid()
        labels = leaders.to(torch.int32)
        labels[score < self._limit] = -1
        return labels.cpu().numpy(), score.cpu().numpy()


@dataclass(frozen=True, eq=False)
class _Part:
    """A tile's share of a square of H x W pixels.

    Attributes:
        classes: (k,), ascending.
        values: (k + 1, h, w), at the positions between which the square lies.
        rows: (H, h), with which rows of positions, and how much, each row of pixels is made of them.
        columns: (W, w), likewise.
    """

    classes: Tensor
    values: Tensor
    rows: Tensor
    columns: Tensor

    @classmethod
    def of(
        cls, tile: TileLogits, down: Axis, across: Axis, place: tuple[int, int], square: tuple[int, int, int, int]
    ) -> _Part:
        """Cuts it from the tile at a place, row and column of tiles; the square is top, left, height and width."""
        top, left, high, wide = square
        kept = tile.values
        first, last, rows = _taps(down, place[0], (top, top + high), tile.height)
        before, after, columns = _taps(across, place[1], (left, left + wide), kept.shape[2])
        values = kept[:, first - tile.above : last - tile.above, before:after]
        return cls(tile.classes, values, rows.to(kept.device), columns.to(kept.device))

    def rows_of(self, classes: Tensor) -> Tensor:
        """Returns where the values of some classes, ascending and this tile's among them, stand: (n,)."""
        rows = torch.full((len(classes),), len(self.classes), device=classes.device)
        rows[torch.searchsorted(classes, self.classes)] = torch.arange(len(self.classes), device=classes.device)
        return rows

    def weighted(self, rows: Tensor) -> Tensor:
        """Returns some rows of the values, resized to the square and times the tile's weights: (n, H, W)."""
        return self.rows @ (self.values[rows] @ self.columns.T)


def _taps(axis: Axis, number: int, pixels: tuple[int, int], positions: int) -> tuple[int, int, Tensor]:
    """Returns how pixels of the picture are made of a tile's positions along one side.

    Args:
        axis: the tiles along that side.
        number: of the tile.
        pixels: from and to; some may lie outside the tile.
        positions: of the tile's logits along that side.

    Returns:
        The first and the last position that are needed, the latter excluded, and (pixels, positions) weights: those of
        torch's bilinear resizing without aligned corners, times the tile's own weight at the pixel; 0 outside the tile.
    """
    start = axis.starts[number]
    inside = torch.arange(max(pixels[0], start), min(pixels[1], start + axis.size)) - start
    centres = ((inside + 0.5) * (positions / axis.size) - 0.5).clamp(min=0)
    low = centres.floor().long().clamp(max=positions - 1)
    first, last = int(low[0]), min(int(low[-1]) + 2, positions)
    share = (centres - low).float().clamp(max=1)
    own = torch.from_numpy(axis.weights(number))[inside]
    lines, after = inside + start - pixels[0], (low + 1).clamp(max=positions - 1) - first
    weights = torch.zeros(pixels[1] - pixels[0], last - first)
    weights[lines, low - first] = (1 - share) * own
    weights[lines, after] += share * own
    return first, last, weights


def _able(parts: list[Tensor]) -> Tensor:
    """Returns which classes may win somewhere in a square, (n,) bool; at least one may.

    A resized value lies between the smallest and the largest of its positions. A class whose largest is below another's
    smallest in every tile is below it in any average of the tiles.

    Args:
        parts: of each tile (n, h, w), the same n classes.
    """
    beaten: Tensor | bool = True
    for part in parts:
        low, high = part.amin(dim=(1, 2)), part.amax(dim=(1, 2))
        beaten = (high[:, None] < low[None, :]) & beaten
    assert isinstance(beaten, Tensor)
    return ~beaten.any(dim=1)


def _nearest(blocks: Iterable[ClassLogits]) -> tuple[Tensor, Tensor]:
    """Returns the classes that come nearest to leading somewhere, ascending, and their logits (k, h, w)."""
    parts: list[ClassLogits] = []
    best: Tensor | None = None
    for block in blocks:
        most = block.logits.amax(dim=0)
        best = most if best is None else torch.maximum(best, most)
        parts.append(block)
        if sum(len(part.classes) for part in parts) > 4 * TILE_CLASSES:
            parts = [_nearest_of(parts, best)]
    assert best is not None
    kept = _nearest_of(parts, best)
    return kept.classes, kept.logits.float()


def _nearest_of(parts: list[ClassLogits], best: Tensor) -> ClassLogits:
    classes, logits = torch.cat([part.classes for part in parts]), torch.cat([part.logits for part in parts])
    behind = (best - logits).flatten(1).amin(dim=1)
    kept = behind.topk(min(TILE_CLASSES, len(behind)), largest=False).indices
    kept = kept[classes[kept].argsort()]
    return ClassLogits(classes[kept], logits[kept])
