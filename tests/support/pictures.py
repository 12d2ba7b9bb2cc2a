"""Pictures of plain colours, which the tiny model tells apart, and damaged ones."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Colour = tuple[int, int, int]

RED, BLUE, GREEN, WHITE = (220, 30, 20), (20, 40, 220), (10, 180, 40), (240, 240, 240)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
COFFEE, CAT = EXAMPLES / "coffee.jpg", EXAMPLES / "chelsea.jpg"


def plain(colour: Colour, side: int = 32) -> Image.Image:
    return Image.new("RGB", (side, side), colour)


def halves(width: int = 128, height: int = 64, left: Colour = RED, right: Colour = BLUE) -> Image.Image:
    """A photo whose left half is red and whose right half is blue."""
    photo = Image.new("RGB", (width, height), left)
    photo.paste(right, (width // 2, 0, width, height))
    return photo


def noisy(colour: Colour, seed: int, side: int = 40) -> Image.Image:
    """A picture of about one colour, another one for each seed."""
    noise = np.random.default_rng(seed).integers(-20, 20, (side, side, 3))
    return Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """The content of a picture's file."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def write_damaged(path: Path) -> Path:
    """Writes a PNG that ends after 80 bytes, and returns its path."""
    path.write_bytes(encoded(halves())[:80])
    return path


def write_workplace(folder: Path) -> None:
    """Writes red.png, blue.png and photos/both.png, which is half red and half blue, into a folder."""
    plain(RED).save(folder / "red.png")
    plain(BLUE).save(folder / "blue.png")
    (folder / "photos").mkdir()
    halves().save(folder / "photos" / "both.png")


COLOUR_REFERENCES = ("--ref", "red=red.png", "--ref", "blue=blue.png")
"""The options that name the two colours in a workplace."""
