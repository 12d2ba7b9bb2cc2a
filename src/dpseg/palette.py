"""Colours for classes: as far apart as can be, the same for the same position in a list of names."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

_DARK = (0, 0, 0)
_LIGHT = (255, 255, 255)
_FIRST = (0.7, -0.05, -0.12)  # a mid blue, in OKLab


@lru_cache(maxsize=8)
def palette(count: int) -> npt.NDArray[np.uint8]:
    """Returns the colours of `count` classes, (count, 3) RGB, read-only.

    Each colour is the candidate that lies farthest from all before it, in OKLab (Ottosson 2020, "A perceptual color
    space for image processing"), so a shorter palette is the beginning of a longer one. Past the last candidate, some
    1500 of them, the colours repeat.
    """
    candidates = _candidates()
    rgb = np.rint(_oklab_to_srgb(candidates) * 255).astype(np.uint8)
    spread = candidates * np.array([0.6, 1.0, 1.0])  # hue tells regions apart better than lightness
    chosen = [int(np.square(candidates - _FIRST).sum(1).argmin())]
    nearest = np.full(len(candidates), np.inf)
    for _ in range(min(count, len(candidates)) - 1):
        nearest = np.minimum(nearest, np.square(spread - spread[chosen[-1]]).sum(1))
        chosen.append(int(nearest.argmax()))
    colours: npt.NDArray[np.uint8] = rgb[np.resize(chosen, count)]
    colours.setflags(write=False)
    return colours


def text_colour(colour: npt.NDArray[Any]) -> tuple[int, int, int]:
    """Returns black or white, whichever reads better on `colour`, an RGB triple; the contrast is at least 4.5 to 1."""
    return _DARK if contrast(colour, _DARK) >= contrast(colour, _LIGHT) else _LIGHT


def contrast(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Returns the contrast ratio of two RGB triples, 1 to 21 (WCAG 2.1)."""
    low, high = sorted((_luminance(first), _luminance(second)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: npt.ArrayLike) -> float:
    values = np.asarray(colour, dtype=np.float64) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ np.array([0.2126, 0.7152, 0.0722]))


def _candidates() -> npt.NDArray[np.float64]:
    """Returns vivid, neither dark nor pale OKLab colours that sRGB can show, (N, 3)."""
    lightness, chroma, hue = np.meshgrid(
        np.linspace(0.55, 0.87, 9), np.linspace(0.1, 0.19, 5), np.arange(0, 360, 6), indexing="ij"
    )
    angle = np.deg2rad(hue)
    grid = np.stack([lightness, chroma * np.cos(angle), chroma * np.sin(angle)], -1).reshape(-1, 3)
    rgb = _oklab_to_srgb(grid)
    kept: npt.NDArray[np.float64] = grid[((rgb >= 0) & (rgb <= 1)).all(1)]
    return kept


def _oklab_to_srgb(lab: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns sRGB (N, 3), in [0, 1] where the colour can be shown; the matrices are Ottosson's."""
    to_lms = np.array(
        [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = (lab @ to_lms.T) ** 3 @ to_rgb.T
    srgb: npt.NDArray[np.float64] = np.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055
    )
    return srgb
