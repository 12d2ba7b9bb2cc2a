"""The outlines of a COCO file, as pycocotools draws them: polygons, and run lengths in either spelling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpseg.errors import DataError


@dataclass(frozen=True)
class Shape:
    """One object.

    Attributes:
        what: file and annotation, for errors.
        category: its category's id.
        area: pixels.
        runs: compressed run lengths, as pycocotools has them.
    """

    what: str
    category: int
    area: int
    runs: dict[str, Any]


def to_shape(annotation: dict[str, Any], height: int, width: int, file: str) -> Shape | None:
    """Reads an annotation; returns None where its outline has no area.

    Args:
        annotation: "segmentation" and "category_id". Crowds are drawn like other objects: CVAT marks each mask as one.
        height: of the photo, in pixels.
        width: of the photo, in pixels.
        file: name of the file, for errors.

    Raises:
        DataError: there is no outline, or it cannot be read.
    """
    from pycocotools import mask as cocomask

    what = f"{file}: annotation {annotation.get('id', '?')}"
    outline = annotation.get("segmentation")
    if not outline:
        raise DataError(f"{what} has no outline, only a box; export polygons or masks")
    try:
        runs = _polygons(outline, height, width) if isinstance(outline, list) else _runs(outline, height, width)
        if runs is None:
            return None
        if list(runs["size"]) != [height, width]:
            tall, wide = runs["size"]
            raise DataError(f"it is drawn on {wide} x {tall} pixels but its photo has {width} x {height}")
        return Shape(what, int(annotation["category_id"]), int(cocomask.area(runs)), runs)
    except DataError as error:
        raise DataError(f"{what}: {error}") from error
    except Exception as error:  # pycocotools raises nearly anything on a bad outline
        raise _cannot_be_drawn(what, error) from error


def decode(shape: Shape) -> NDArray[np.bool_]:
    """Returns the pixels of an object, (H, W).

    Raises:
        DataError: the run lengths are damaged.
    """
    from pycocotools import mask as cocomask

    try:
        return np.asarray(cocomask.decode(shape.runs)).astype(bool)
    except Exception as error:  # as above
        raise _cannot_be_drawn(shape.what, error) from error


def _cannot_be_drawn(what: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split())
    return DataError(f"{what} cannot be drawn ({type(error).__name__}: {reason}); export the labels again")


def _polygons(outline: list[Any], height: int, width: int) -> dict[str, Any] | None:
    """Reads [[x, y, x, y, ...], ...], in pixels; what has fewer than three corners has no area."""
    from pycocotools import mask as cocomask

    polygons = outline if isinstance(outline[0], list) else [outline]
    corners = [np.asarray(polygon, dtype=np.float64) for polygon in polygons if len(polygon) >= 6]
    if not corners:
        return None
    if any(polygon.size % 2 or not np.isfinite(polygon).all() for polygon in corners):
        raise DataError("an outline needs pairs of finite numbers, x and y; export the labels again")
    side = 2.0 * max(height, width)  # far corners would cost memory and change nothing
    runs = cocomask.frPyObjects([polygon.clip(-side, side).tolist() for polygon in corners], height, width)
    merged: dict[str, Any] = cocomask.merge(runs)
    return merged


def _runs(outline: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """Reads {"size": [H, W], "counts": numbers or compressed text}."""
    from pycocotools import mask as cocomask

    if isinstance(outline["counts"], list):
        if sum(outline["counts"]) != height * width or min(outline["counts"]) < 0:
            raise DataError(
                f"run lengths cover {sum(outline['counts'])} pixels but the photo has {width} x {height};"
                " export the labels again"
            )
        compressed: dict[str, Any] = cocomask.frPyObjects(outline, height, width)
        return compressed
    return {"size": list(outline["size"]), "counts": outline["counts"]}
