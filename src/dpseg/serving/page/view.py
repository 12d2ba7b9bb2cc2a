"""A segmentation -> what the page draws: the photo, a map of classes and scores, and the legend.

Pictures travel as data URIs, so nothing of them is left on the server's disk.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dpseg.draw import found_entries
from dpseg.result import Segmentation

SHOWN_SIDE = 1400
"""The page shows a photo at this longer side in pixels, or its own where that is smaller."""

_QUALITY = 88


def view_of(result: Segmentation) -> dict[str, Any]:
    """Returns what the page's viewer shows, as JSON values.

    Args:
        result: with its photo.

    Returns:
        width and height, of the pictures in pixels; `photo`, a JPEG; `map`, a PNG whose red and green are the place in
        `entries` plus 1 (green counts 256; 0: no class), and whose blue is the score in per cent; `entries`, largest
        first, each with name, color, area and score in [0, 1], and where its prompts came from.
    """
    assert result.image is not None
    size = shown_size(result.image.size)
    entries = [entry for entry in found_entries(result.labels, result.names) if entry.index >= 0]
    places = np.zeros(len(result.names) + 1, dtype=np.int32)  # label -1 takes the last, 0
    places[[entry.index for entry in entries]] = np.arange(1, len(entries) + 1)
    labels = _nearest(result.labels, size)
    scores = _scores(result, labels, [entry.index for entry in entries])
    ranks = places[labels]
    picture = Image.fromarray(np.stack([ranks & 255, ranks >> 8, scores], axis=2).astype(np.uint8))
    return {
        "width": size[0],
        "height": size[1],
        "photo": photo_uri(result.image),
        "map": data_uri(picture, "PNG"),
        "entries": [
            {
                "name": entry.name,
                "color": list(entry.colour),
                "area": round(entry.area, 4),
                "score": round(result.confidences[entry.name], 4),
                "prompts": list(result.prompts[entry.index]) if result.prompts else [],
            }
            for entry in entries
        ],
    }


def photo_uri(photo: Image.Image) -> str:
    """Returns a photo as the page shows it: a JPEG as a data URI."""
    return data_uri(photo.resize(shown_size(photo.size), Image.Resampling.LANCZOS), "JPEG")


def overlay_of(result: Segmentation) -> Image.Image:
    """Returns the photo with tinted and named regions, without the legend, at the size in which the page shows it."""
    height, width = result.labels.shape
    return result.plot().crop((0, 0, width, height)).resize(shown_size((width, height)), Image.Resampling.LANCZOS)


def shown_size(size: tuple[int, int]) -> tuple[int, int]:
    """Returns the size, width and height, at which the page shows a photo."""
    scale = min(1.0, SHOWN_SIDE / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def data_uri(picture: Image.Image, form: str) -> str:
    """Returns a picture as a data URI, form "PNG" or "JPEG"."""
    buffer = io.BytesIO()
    picture.save(buffer, form, **({"quality": _QUALITY} if form == "JPEG" else {"compress_level": 4}))
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _nearest(labels: npt.NDArray[np.int32], size: tuple[int, int]) -> npt.NDArray[np.int32]:
    """Returns labels (H, W) at another size, width and height."""
    (height, width), (new_width, new_height) = labels.shape, size
    rows = ((np.arange(new_height) + 0.5) * height / new_height).astype(int)
    columns = ((np.arange(new_width) + 0.5) * width / new_width).astype(int)
    picked: npt.NDArray[np.int32] = labels[rows][:, columns]
    return picked


def _scores(result: Segmentation, labels: npt.NDArray[np.int32], classes: list[int]) -> npt.NDArray[np.float32]:
    """Returns each pixel's score for its own class, in per cent."""
    scores = np.zeros(labels.shape, dtype=np.float32)
    logits = result.logits_of([result.names[index] for index in classes]).astype(np.float32).clip(-60, 60)
    for index, rows in zip(classes, logits, strict=True):
        large = np.asarray(Image.fromarray(rows).resize(labels.shape[::-1], Image.Resampling.BILINEAR))
        mine = labels == index
        scores[mine] = 100 / (1 + np.exp(-large[mine]))
    return scores.round()
