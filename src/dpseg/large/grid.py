"""Where the tiles of a large picture lie, and how much each counts at a pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dpseg.errors import ConfigError

SMALLEST, LARGEST = 64, 8192
"""Limits in pixels of a tile's side."""

MOST_OVERLAP = 0.5
"""Of the share of a tile's side that its neighbour covers too."""


@dataclass(frozen=True)
class Tiling:
    """How a large picture is cut.

    Attributes:
        pixels: side of a tile in pixels of the picture; each is segmented at the encoder's input size.
        overlap: share of that side that a neighbour covers too, at least; in [0, 0.5].
    """

    pixels: int = 1024
    overlap: float = 0.25

    def __post_init__(self) -> None:
        if not SMALLEST <= self.pixels <= LARGEST:
            raise ConfigError(f"tile {self.pixels} is out of range; give {SMALLEST} to {LARGEST} pixels of the picture")
        if not 0 <= self.overlap <= MOST_OVERLAP:
            raise ConfigError(f"tile overlap {self.overlap} is out of range; give a share from 0 to {MOST_OVERLAP}")


@dataclass(frozen=True)
class Axis:
    """The tiles along one side of a picture: evenly spaced, the first at its beginning and the last at its end.

    Attributes:
        length: of the picture's side, in pixels.
        size: of the tiles' sides, in pixels; not above `length`.
        starts: the first pixel of each tile, ascending.
    """

    length: int
    size: int
    starts: tuple[int, ...]

    @classmethod
    def cut(cls, length: int, tiling: Tiling) -> Axis:
        """Cuts a side of so many pixels; a side that is no longer than a tile has one, of its own length."""
        size = min(length, tiling.pixels)
        step = max(1, int(size * (1 - tiling.overlap)))
        gaps = math.ceil((length - size) / step)
        return cls(length, size, (*(round(number * (length - size) / gaps) for number in range(gaps)), length - size))

    def own(self, number: int) -> tuple[int, int]:
        """Returns the pixels, from and to, that are finished with a tile: none of the next ones covers them."""
        last = number == len(self.starts) - 1
        return self.starts[number], self.length if last else self.starts[number + 1]

    def covering(self, start: int, stop: int, until: int) -> list[int]:
        """Returns the tiles, none after `until`, that cover any of some pixels."""
        tiles = range(until + 1)
        return [number for number in tiles if self.starts[number] < stop and self.starts[number] + self.size > start]

    def weights(self, number: int) -> NDArray[np.float32]:
        """Returns how much a tile counts at each of its pixels, (size,) in (0, 1].

        It is a Hann window, smallest at the tile's ends, divided by the sum over all tiles at that pixel: so the
        weights of all tiles add up to 1 everywhere. What a tile says near its ends, where it sees only one side of
        things, hardly counts, except at the picture's own ends.
        """
        start = self.starts[number]
        shares: NDArray[np.float32] = (self._window / self._total[start : start + self.size]).astype(np.float32)
        return shares

    @cached_property
    def _window(self) -> NDArray[np.float64]:
        return np.sin(np.pi * (np.arange(self.size) + 0.5) / self.size) ** 2

    @cached_property
    def _total(self) -> NDArray[np.float64]:
        total = np.zeros(self.length)
        for start in self.starts:
            total[start : start + self.size] += self._window
        return total
