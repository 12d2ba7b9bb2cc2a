"""Semantic-guided prompt refinement: what Inference I found in a photo becomes the visual prompts of Inference II.

No training and no second encoding of the photo: only the crops are encoded, and the decoder runs again on the same
pyramid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from dpseg.config import RefineConfig
from dpseg.model.dpseg import DPSeg
from dpseg.model.encoders import Pyramid
from dpseg.model.prompt_encoding import VisualRows, crop_rows, visual_prompts
from dpseg.prompts.prompt_set import PromptEmbeddings, PromptSet
from dpseg.prompts.visual import crop_region


@dataclass(frozen=True, eq=False)
class Region:
    """A connected region of one class.

    Attributes:
        class_index: index into the K classes.
        mask: (h, w) bool, at the resolution of the logits.
        area: fraction of the photo, in (0, 1].
        confidence: mean score in the region, in [0, 1].
    """

    class_index: int
    mask: Tensor
    area: float
    confidence: float


def find_regions(logits: Tensor, config: RefineConfig) -> list[Region]:
    """Returns the regions that are large and certain enough, by class, and the largest first within a class.

    Args:
        logits: (K, h, w) of one photo.
        config: what is enough.
    """
    best, labels = logits.float().max(dim=0)
    scores, label_map = best.sigmoid().cpu().numpy(), labels.cpu().numpy()
    smallest = max(1.0, config.min_area * label_map.size)
    counts = np.bincount(label_map.ravel())
    regions: list[Region] = []
    for class_index in np.flatnonzero(counts >= smallest):
        components, number = ndimage.label(label_map == class_index)
        index = np.arange(1, number + 1)
        sizes = np.bincount(components.ravel(), minlength=number + 1)[1:]
        confidences = np.atleast_1d(ndimage.mean(scores, components, index))
        good = [n for n in range(number) if sizes[n] >= smallest and confidences[n] >= config.min_confidence]
        for n in sorted(good, key=lambda n: -sizes[n])[: config.max_regions]:
            mask = torch.from_numpy(components == n + 1)
            regions.append(Region(int(class_index), mask, float(sizes[n] / label_map.size), float(confidences[n])))
    return regions


def refine(
    model: DPSeg,
    photos: Sequence[Tensor],
    pyramid: Pyramid,
    prompts: PromptSet,
    logits: Tensor,
    config: RefineConfig,
) -> tuple[Tensor, list[PromptSet]]:
    """Runs Inference II on photos of which Inference I is done.

    Args:
        model: the model of Inference I.
        photos: B photos (3, H_i, W_i), RGB in [0, 1], of any sizes: what the crops are cut from.
        pyramid: the B encoded photos.
        prompts: the prompts of Inference I.
        logits: (B, K, h, w), the result of Inference I.
        config: which regions become prompts.

    Returns:
        The logits of Inference II, (B, K, h, w), and each photo's prompts: classes that were not found keep theirs.
    """
    regions = [find_regions(one, config) for one in logits]
    if not any(regions):
        return logits, [prompts] * len(photos)
    rows = crop_rows(model.encoder, _crops(photos, regions, model.encoder.crop_size))
    refined, start = [], 0
    for found in regions:
        visual, stages = rows
        stop = start + len(found)
        s2, s3, s4 = (stage[start:stop] for stage in stages)
        refined.append(_replace(prompts, found, (visual[start:stop], (s2, s3, s4))))
        start = stop
    return model.decode(pyramid, stack_embeddings([one.embeddings for one in refined])), refined


def stack_embeddings(sets: Sequence[PromptEmbeddings]) -> PromptEmbeddings:
    """Adds the leading batch dimension: one set of the same classes a photo."""
    s2, s3, s4 = (torch.stack([one.stages[j] for one in sets]) for j in range(3))
    return PromptEmbeddings(
        text=torch.stack([one.text for one in sets]),
        visual=torch.stack([one.visual for one in sets]),
        stages=(s2, s3, s4),
        has_text=torch.stack([one.has_text for one in sets]),
        has_visual=torch.stack([one.has_visual for one in sets]),
    )


def _crops(photos: Sequence[Tensor], regions: Sequence[Sequence[Region]], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cuts every region out of its photo: crops (3, size, size) and masks (size, size)."""
    for photo, found in zip(photos, regions, strict=True):
        for region in found:
            mask = region.mask[None, None].float()
            soft = F.interpolate(mask, size=photo.shape[-2:], mode="bilinear", align_corners=False)[0, 0]
            yield crop_region(photo, soft >= soft.max().clamp(max=0.5), size)  # a speck in a tiny photo stays too


def _replace(prompts: PromptSet, regions: Sequence[Region], rows: VisualRows) -> PromptSet:
    """Returns the prompts with the averaged crops of each class that was found."""
    if not regions:
        return prompts
    found = sorted({region.class_index for region in regions})
    owners = [found.index(region.class_index) for region in regions]
    return prompts.replace(visual_prompts([prompts.names[k] for k in found], owners, rows, "crop"))
