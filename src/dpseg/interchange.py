"""Label maps in the formats of other programs: COCO's masks and panoptic maps, Label Studio's brush masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

BRUSH, BRUSH_IMAGE = "tag", "image"
"""Names of the brush and the picture in Label Studio's own template for semantic segmentation with masks."""

_RUN_BITS = (4, 8, 12, 16)  # in so many bits a run's length can be written: the fewest are taken


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

    Args:
        labels: (H, W), index of a class, or -1.

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


def label_studio_results(labels: Labels, names: Mapping[int, str], scores: Mapping[str, float]) -> list[dict[str, Any]]:
    """Returns the regions of a pre-annotation for Label Studio: a brush mask for each class.

    Args:
        labels: (H, W), index of a class, or -1.
        names: of the classes that are there, by index.
        scores: of each name, in [0, 1].
    """
    height, width = labels.shape
    return [
        {
            "id": f"dpseg-{index}",
            "type": "brushlabels",
            "from_name": BRUSH,
            "to_name": BRUSH_IMAGE,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": round(scores[name], 4),
            "value": {"format": "rle", "rle": brush_mask(labels == index), "brushlabels": [name]},
        }
        for index, name in names.items()
    ]


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
