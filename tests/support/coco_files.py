"""COCO files of a photo or two, written by the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from dpseg.data.coco import CocoSet


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


def one(tmp_path: Path, segmentation: Any, **fields: Any) -> CocoSet:
    """Writes a file with one photo and one annotation."""
    photo(tmp_path / "a.jpg")
    annotation = {"id": 5, "image_id": 1, "category_id": 3, "segmentation": segmentation, **fields}
    return CocoSet(write(tmp_path / "one.json", [image(1, "a.jpg")], [{"id": 3, "name": "cat"}], [annotation]))
