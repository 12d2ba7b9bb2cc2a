"""Photos -> what a graph takes, and logits -> labels, in numpy and Pillow.

These are the formulas of `model.preprocess`, `model.class_logits` and `model.label_map` a second time, because this has
to run without torch. A test compares them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from dpseg.exporting.about import About
from dpseg.model.preprocess import edge_size, encoder_size, scaled_size

Floats: TypeAlias = npt.NDArray[np.float32]
Labels: TypeAlias = npt.NDArray[np.int32]

TILE = 256
"""Side in pixels of the squares that are labelled one after the other."""

BLOCK = 64
"""Classes that are resized at a time."""

_LEAST_SHARE = 1e-4
_STEPS = 2
"""As in `model.class_logits`: what a photo shows at least of any class."""


def input_of(photo: Image.Image, about: About, size: int | None = None) -> Floats:
    """Returns what the graph takes of a photo, (1, 3, h, w), RGB in [0, 1].

    Args:
        photo: RGB.
        about: of the model.
        size: another input size than the model's own, in pixels.

    Raises:
        ConfigError: The size is out of range.
    """
    wanted = encoder_size(photo.width, photo.height, size or about.image_size, about.keep_aspect, about.stride)
    edge = about.shortest_edge
    first = wanted if edge is None else edge_size(photo.width, photo.height, edge)
    resized = photo if photo.size == first else photo.resize(first, Image.Resampling.BILINEAR)
    values = np.asarray(resized, dtype=np.float32).transpose(2, 0, 1) / np.float32(255)
    return np.ascontiguousarray(values if first == wanted else resize(values, (wanted[1], wanted[0])))[None]


def mirrored_views(image: Floats, about: About) -> Iterator[Floats]:
    """Yields the mirrored views of an input (1, 3, h, w), at the model's scales, antialiased."""
    mirrored = np.ascontiguousarray(image[0, :, :, ::-1])
    for scale in about.mirrored_scales:
        height, width = scaled_size(image.shape[-2:], scale, about.stride)
        channels = (Image.fromarray(channel) for channel in mirrored)
        resized = [np.asarray(channel.resize((width, height), Image.Resampling.BILINEAR)) for channel in channels]
        yield np.stack(resized).astype(np.float32)[None]


def resize(values: Floats, size: tuple[int, int]) -> Floats:
    """Resizes (k, h, w) bilinearly to (height, width) as torch does without aligned corners and antialiasing."""
    if values.shape[-2:] == size:
        return values
    (_, high, rows), (_, wide, columns) = _taps(size[0], values.shape[1])[0], _taps(size[1], values.shape[2])[0]
    resized: Floats = rows @ (values[:, high, wide] @ columns.T)
    return resized


def presence_shift(logits: Floats, strength: float, adjustment: Floats | None = None) -> Floats:
    """Returns what each class's logits gain when classes compete, (K,); see `model.class_logits.presence_shift`.

    Args:
        logits: (K, h, w).
        strength: 0 or more.
        adjustment: (K,), of the prompts, or None.
    """
    fixed: Floats = np.zeros(len(logits), dtype=np.float32) if adjustment is None else adjustment.astype(np.float32)
    shift = fixed
    for _ in range(_STEPS if strength else 0):
        shifted = logits + shift[:, None, None]
        shares = np.exp(shifted - shifted.max(axis=0))
        shares = (shares / shares.sum(axis=0)).mean(axis=(1, 2))
        shift = fixed + (strength * np.log(np.minimum(shares + _LEAST_SHARE, 1))).astype(np.float32)
    return shift


def label_map(
    logits: Floats,
    size: tuple[int, int],
    about: About,
    background: float | None = None,
    adjustment: Floats | None = None,
) -> tuple[Labels, Floats]:
    """Labels each pixel with the class whose bilinearly resized logit is largest, tile by tile.

    Args:
        logits: (K, h, w).
        size: height and width of the photo in pixels.
        about: of the model: `presence` and `resize_scores`.
        background: in [0, 1]; pixels whose best score, sigmoid(logit), is below it get -1. None: there are none.
        adjustment: (K,), of the prompts, see `PromptEmbeddings`; None: there is none.

    Returns:
        Labels (H, W) in [0, K), or -1; and each class's mean score over the pixels that it labels, (K,), 0 without any.
    """
    values = _sigmoid(logits) if about.resize_scores else logits
    shift = presence_shift(logits, about.presence, adjustment)
    values = values + shift[:, None, None]
    labels, best = np.empty(size, dtype=np.int32), np.empty(size, dtype=np.float32)
    columns = _taps(size[1], values.shape[2], TILE)
    for down, high, rows in _taps(size[0], values.shape[1], TILE):
        for across, wide, column_weights in columns:
            labels[down, across], best[down, across] = _tile(values[:, high, wide], rows, column_weights)
    best -= shift[labels]
    scores = best if about.resize_scores else _sigmoid(best)
    if background is not None and background > 0:
        labels[scores < background if background < 1 else np.ones(size, dtype=bool)] = -1
    flat = labels.ravel() + 1
    sums = np.bincount(flat, scores.ravel(), minlength=len(logits) + 1)
    counts = np.bincount(flat, minlength=len(logits) + 1)
    return labels, (sums / np.maximum(counts, 1))[1:].astype(np.float32)


def _tile(part: Floats, rows: Floats, columns: Floats) -> tuple[Labels, Floats]:
    """Labels one tile.

    A resized value lies between the smallest and the largest of those around it, so a class whose largest is below
    another's smallest never wins, and is not resized.

    Args:
        part: (K, h, w), the positions that the tile lies between.
        rows: (pixels, h).
        columns: (pixels, w).

    Returns:
        Labels and their values, (pixels, pixels).
    """
    floor = part.min(axis=(1, 2)).max()
    able = np.flatnonzero(part.max(axis=(1, 2)) >= floor)
    labels = np.zeros((len(rows), len(columns)), dtype=np.int32)
    best = np.full(labels.shape, -math.inf, dtype=np.float32)
    for start in range(0, len(able), BLOCK):
        classes = able[start : start + BLOCK]
        resized = rows @ (part[classes] @ columns.T)
        index = resized.argmax(axis=0)
        values = np.take_along_axis(resized, index[None], axis=0)[0]
        larger = values > best
        labels[larger], best[larger] = classes[index][larger], values[larger]
    return labels, best


def _taps(length: int, source: int, tile: int | None = None) -> list[tuple[slice, slice, Floats]]:
    """Cuts a side into tiles; as `model.label_map`, see there.

    Args:
        length: of the result's side, in pixels.
        source: of the side of what is resized.
        tile: pixels a tile; None: there is one.
    """
    tiles = []
    for start in range(0, length, tile or length):
        stop = min(start + (tile or length), length)
        centres = ((np.arange(start, stop) + 0.5) * (source / length) - 0.5).clip(min=0)
        low = np.floor(centres).astype(int).clip(max=source - 1)
        first, last = int(low[0]), min(int(low[-1]) + 2, source)
        pixels, after = np.arange(stop - start), (low + 1).clip(max=source - 1) - first
        share = (centres - low).astype(np.float32).clip(max=1)
        weights = np.zeros((stop - start, last - first), dtype=np.float32)
        weights[pixels, low - first] = 1 - share
        weights[pixels, after] += share
        tiles.append((slice(start, stop), slice(first, last), weights))
    return tiles


def _sigmoid(values: Floats) -> Floats:
    scores: Floats = 1 / (1 + np.exp(-values.clip(-60, 60)))
    return scores
