"""Segmentations as objects of other libraries, and logits -> labels as transformers does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dpseg.errors import ConfigError, MissingExtraError
from dpseg.interchange import box_of, regions
from dpseg.model.label_map import label_map
from dpseg.result import Segmentation

if TYPE_CHECKING:
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


def post_process_semantic_segmentation(
    logits: Tensor, target_sizes: Sequence[tuple[int, int]] | Tensor | None = None
) -> list[Tensor]:
    """Returns labels as the method of that name of transformers' image processors does: the largest resized logit.

    For loops that were written for such models, around `DPSeg.forward`. `Segmenter` does more: a threshold, and the
    config's `presence` and `resize_scores`.

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
