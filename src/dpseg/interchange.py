"""Label maps in the formats of other programs: palette PNG, COCO's masks and panoptic maps, Label Studio's brushes.

Everywhere labels are int32 (H, W): index of a class, or -1 where there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dpseg import __version__
from dpseg.palette import palette

Labels = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

BRUSH, BRUSH_IMAGE = "tag", "image"
"""Names of the brush and the picture in Label Studio's own template for semantic segmentation with masks."""

_RUN_BITS = (4, 8, 12, 16)  # in so many bits a run's length can be written: the fewest are taken


def label_picture(labels: Labels, count: int) -> Image.Image:
    """Returns the labels of so many classes as a palette picture, 255 = none.

    Where 8 bits cannot hold the classes and none, it is a 16-bit grey one, 65535 = none.
    """
    if count > 255:
        return Image.fromarray(np.where(labels < 0, 65535, labels).astype(np.uint16))
    picture = Image.fromarray(np.where(labels < 0, 255, labels).astype(np.uint8)).convert("L")
    colours = np.zeros((256, 3), dtype=np.uint8)
    colours[:count] = palette(max(1, count))[:count]
    picture.putpalette(colours.tobytes())
    return picture


def coco_file(
    size: tuple[int, ...], source: str | None, annotations: list[dict[str, Any]], categories: list[dict[str, Any]]
) -> dict[str, Any]:
    """Returns a COCO file of one picture.

    Args:
        size: height and width in pixels.
        source: path of the picture, of which the name is written; None: it has none.
        annotations: of image 1.
        categories: that they are of.
    """
    return {
        "info": {"description": f"Segmented by dpseg {__version__}"},
        "images": [{"id": 1, "file_name": Path(source or "image").name, "width": size[1], "height": size[0]}],
        "annotations": annotations,
        "categories": categories,
    }


def coco_categories(names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns all classes as COCO's categories: an id is the label plus 1."""
    return [{"id": index + 1, "name": name} for index, name in enumerate(names)]


def coco_annotations(
    labels: Labels, found: Mapping[int, str], scores: Mapping[str, float], by_region: bool
) -> list[dict[str, Any]]:
    """Returns a mask for each class, or for each of its connected regions, as COCO's annotations of image 1.

    Args:
        labels: as above.
        found: names of the classes that are there, by index.
        scores: of each name, in [0, 1].
        by_region: one for each region, largest first.
    """
    annotations: list[dict[str, Any]] = []
    for index, name in found.items():
        mask = labels == index
        for part in regions(mask) if by_region else [mask]:
            shape = {"id": len(annotations) + 1, "image_id": 1, "category_id": index + 1, "iscrowd": 0}
            annotations.append(shape | coco_mask(part) | {"score": round(scores[name], 4)})
    return annotations


def regions(mask: Mask) -> list[Mask]:
    """Returns the connected regions (8 neighbours) of a mask (H, W), largest first."""
    from scipy import ndimage

    numbered, count = ndimage.label(mask, structure=np.ones((3, 3), dtype=int))
    sizes = np.bincount(numbered.ravel(), minlength=count + 1)[1:]
    return [numbered == number + 1 for number in np.argsort(-sizes, kind="stable")]


def coco_mask(mask: Mask) -> dict[str, Any]:
    """Returns a mask as COCO's segmentation (run lengths), bbox (x, y, width, height) and area in pixels."""
    from pycocotools import mask as coco

    run_lengths = coco.encode(np.asfortranarray(mask.view(np.uint8)))
    return {
        "segmentation": {"size": list(run_lengths["size"]), "counts": run_lengths["counts"].decode("ascii")},
        "bbox": [float(value) for value in coco.toBbox(run_lengths)],
        "area": int(mask.sum()),
    }


def box_of(mask: Mask) -> tuple[int, int, int, int]:
    """Returns the box around a mask that is not empty: first column and row, and those after the last."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def panoptic_map(labels: Labels) -> npt.NDArray[np.uint8]:
    """Returns COCO's panoptic map, (H, W, 3): R + 256 G + 65536 B is a segment's id, here its label + 1; 0 = none."""
    ids = labels + 1
    return np.stack([ids & 255, (ids >> 8) & 255, (ids >> 16) & 255], axis=-1).astype(np.uint8)


def panoptic_segments(labels: Labels) -> list[dict[str, Any]]:
    """Lists the segments of `panoptic_map`: one for each class that is there, whatever its regions, as of stuff.

    Returns:
        For each its id, category_id (the label + 1), area in pixels, bbox (x, y, width, height) and iscrowd, 0.
    """
    segments = []
    for index in np.unique(labels[labels >= 0]).tolist():
        mask = labels == index
        left, top, right, bottom = box_of(mask)
        segments.append(
            {
                "id": index + 1,
                "category_id": index + 1,
                "area": int(mask.sum()),
                "bbox": [left, top, right - left, bottom - top],
                "iscrowd": 0,
            }
        )
    return segments


def panoptic_categories(names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns all classes as categories of a panoptic file, none of them a thing."""
    colours = palette(max(1, len(names))).tolist()
    more = [{"supercategory": name, "isthing": 0, "color": colours[index]} for index, name in enumerate(names)]
    return [category | rest for category, rest in zip(coco_categories(names), more, strict=True)]


def label_studio_task(
    labels: Labels, found: Mapping[int, str], scores: Mapping[str, float], source: str | None
) -> dict[str, Any]:
    """Returns a task for Label Studio whose pre-annotation is a brush mask for each class.

    Args:
        labels: as above.
        found: names of the classes that are there, by index.
        scores: of each name, in [0, 1].
        source: path of the picture, of which the name is written; None: it has none.
    """
    results = [
        {
            "id": f"dpseg-{index}",
            "type": "brushlabels",
            "from_name": BRUSH,
            "to_name": BRUSH_IMAGE,
            "original_width": labels.shape[1],
            "original_height": labels.shape[0],
            "image_rotation": 0,
            "score": round(scores[name], 4),
            "value": {"format": "rle", "rle": brush_mask(labels == index), "brushlabels": [name]},
        }
        for index, name in found.items()
    ]
    prediction = {"model_version": f"dpseg {__version__}", "result": results}
    return {"data": {BRUSH_IMAGE: Path(source or "image").name}, "predictions": [prediction]}


def brush_mask(mask: Mask) -> list[int]:
    """Returns a mask (H, W) as Label Studio's run lengths: bytes of the rle-pack format (thi.ng), of an RGBA picture.

    It is a stream of bits: the number of values in 32, bits of a value less one in 5, and four numbers of bits for
    lengths, less one, in 4 each. Then, run by run: 1, which of the four in 2, the length less one, and the value. A
    pixel is four values, all 255 in the mask and all 0 elsewhere.
    """
    flat = mask.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.concatenate([[0], edges])
    lengths = 4 * np.diff(np.concatenate([starts, [flat.size]]))
    bits = [f"{4 * flat.size:032b}{8 - 1:05b}", *(f"{size - 1:04b}" for size in _RUN_BITS)]
    for length, inside in zip(lengths.tolist(), flat[starts].tolist(), strict=True):
        value = "1" * 8 if inside else "0" * 8
        while length:
            part = min(length, 1 << _RUN_BITS[-1])
            kind = next(number for number, size in enumerate(_RUN_BITS) if part <= 1 << size)
            bits.append(f"1{kind:02b}{part - 1:0{_RUN_BITS[kind]}b}{value}")
            length -= part
    text = "".join(bits)
    whole = text + "0" * (-len(text) % 8)
    return list(int(whole, 2).to_bytes(len(whole) // 8, "big"))
