"""Small pictures of references, as the encoder sees them: the crop, dimmed where it does not count."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from dpseg.errors import DPSegError
from dpseg.explain.prompt_report import PictureReport

SIDE = 160
"""In pixels."""

SHOWN = 8
"""So many pictures of a class are shown."""

_DIMMED = 0.45  # of the colours outside the thing


def thumbnail(picture: PictureReport) -> Image.Image | None:
    """Returns a square RGB picture of `SIDE`; None where the picture is not at hand or cannot be read any more."""
    if picture.reference is None:
        return None
    try:
        crop, mask = picture.reference.crop(SIDE)
    except DPSegError:
        return None
    dimmed = crop * (_DIMMED + (1 - _DIMMED) * mask)
    return Image.fromarray((dimmed.clamp(0, 1).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))


def jpeg(image: Image.Image) -> bytes:
    """Returns a JPEG file's content."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=78)
    return buffer.getvalue()
