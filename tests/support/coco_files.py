"""COCO files of a photo or two, written by the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image


def box(left: int, top: int, right: int, bottom: int) -> list[list[float]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def photo(path: Path, size: tuple[int, int] = (8, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


def image(number: int, file_name: str, width: int = 8, height: int = 4) -> dict[str, Any]:
    return {"id": number, "file_name": file_name, "width": width, "height": height}


def write(path: Path, images: list[Any], categories: list[Any], annotations: list[Any], **other: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"images": images, "categories": categories, "annotations": annotations, **other}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def objects(folder: Path, *shapes: tuple[str, Any]) -> Path:
    """Writes the photo a.jpg of 8 x 4 pixels, and one.json with the objects on it: name of the class, and outline."""
    photo(folder / "a.jpg")
    categories = [{"id": number, "name": name} for number, (name, _) in enumerate(shapes)]
    annotations = [
        {"id": 5 + number, "image_id": 1, "category_id": number, "segmentation": outline}
        for number, (_, outline) in enumerate(shapes)
    ]
    return write(folder / "one.json", [image(1, "a.jpg")], categories, annotations)
