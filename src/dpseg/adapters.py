"""Segmentations as objects of other libraries, and logits -> labels as transformers does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dpseg.errors import ConfigError, MissingExtraError
from dpseg.interchange import box_of, regions
from dpseg.model.label_map import label_map
from dpseg.result import Segmentation

if TYPE_CHECKING:
    import fiftyone
    import supervision


def to_supervision(segmentation: Segmentation, by_region: bool = False) -> supervision.Detections:
    """Returns a segmentation for the annotators and tools of supervision (Roboflow).

    Args:
        segmentation: of one photo.
        by_region: one detection for each connected region (8 neighbours) instead of one for each class.

    Returns:
        N detections, largest class first: the box, the mask (H, W), the class's index and its mean score, and its name
        under `data["class_name"]`.

    Raises:
        MissingExtraError: supervision is missing.
    """
    try:
        from supervision import Detections
    except ImportError as error:
        raise MissingExtraError("this needs the package supervision; pip install 'dpseg[supervision]'") from error
    names = segmentation.names
    masks = [
        (names.index(name), mask)
        for name in segmentation.areas
        for mask in (regions(segmentation.mask(name)) if by_region else [segmentation.mask(name)])
    ]
    if not masks:
        return Detections.empty()
    return Detections(
        xyxy=np.array([box_of(mask) for _, mask in masks], dtype=np.float32),
        mask=np.stack([mask for _, mask in masks]),
        confidence=np.array([segmentation.confidences[names[index]] for index, _ in masks], dtype=np.float32),
        class_id=np.array([index for index, _ in masks]),
        data={"class_name": np.array([names[index] for index, _ in masks])},
    )


def to_fiftyone(segmentation: Segmentation) -> fiftyone.Segmentation:
    """Returns a segmentation as a field of a FiftyOne sample.

    FiftyOne keeps 0 for what is none of the classes, so that class k of `segmentation.names` is k + 1; see
    `fiftyone_targets`.

    Args:
        segmentation: of one photo.

    Raises:
        MissingExtraError: fiftyone is missing.
    """
    mask = (segmentation.labels + 1).astype(np.uint8 if len(segmentation.names) < 256 else np.uint16)
    return _fiftyone().Segmentation(mask=mask)


def to_fiftyone_detections(segmentation: Segmentation) -> fiftyone.Detections:
    """Returns the connected regions of a segmentation, 8 neighbours, as instances of a FiftyOne sample.

    Args:
        segmentation: of one photo.

    Returns:
        One detection a region, those of the largest class first: its name, the class's mean score, the box as left,
        top, width and height in fractions of the photo, and the mask within the box.

    Raises:
        MissingExtraError: fiftyone is missing.
    """
    library = _fiftyone()
    height, width = segmentation.labels.shape
    found = []
    for name in segmentation.areas:
        for mask in regions(segmentation.mask(name)):
            left, top, right, bottom = box_of(mask)
            box = [left / width, top / height, (right - left) / width, (bottom - top) / height]
            inside = mask[top:bottom, left:right]
            score = segmentation.confidences[name]
            found.append(library.Detection(label=name, bounding_box=box, mask=inside, confidence=score))
    return library.Detections(detections=found)


def fiftyone_targets(names: Sequence[str]) -> dict[int, str]:
    """Returns what the values of `to_fiftyone` mean, for a data set's `default_mask_targets`.

    Args:
        names: of the segmentations.
    """
    return dict(enumerate(names, start=1))


def _fiftyone() -> Any:
    try:
        import fiftyone
    except ImportError as error:
        raise MissingExtraError("this needs the package fiftyone; pip install 'dpseg[fiftyone]'") from error
    return fiftyone


def post_process_semantic_segmentation(
    logits: Tensor, target_sizes: Sequence[tuple[int, int]] | Tensor | None = None
) -> list[Tensor]:
    """Returns labels as the method of that name of transformers' image processors does: the largest resized logit.

    For loops that were written for such models, around `DPSeg.forward`. `Segmenter` does more: a threshold, and the
    config's `presence` and `resize_scores`, and what prompts adjust.

    Args:
        logits: (B, K, h, w).
        target_sizes: height and width in pixels of each image, B of them, or (B, 2); None: labels of the logits' size.

    Returns:
        B label maps, (H, W) int64 in [0, K).

    Raises:
        ConfigError: there is not one size for each image.
    """
    if target_sizes is None:
        return list(logits.argmax(dim=1))
    sizes = [(int(height), int(width)) for height, width in target_sizes]
    if len(sizes) != len(logits):
        raise ConfigError(f"{len(sizes)} target sizes for {len(logits)} images; give one (height, width) for each")
    return [
        torch.from_numpy(label_map(one, size)).long().to(logits.device) for one, size in zip(logits, sizes, strict=True)
    ]
