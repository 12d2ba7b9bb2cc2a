"""Semantic-guided prompt refinement: what Inference I found in a photo becomes the visual prompts of Inference II.

No training and no second encoding of the photo: only the crops are encoded, or features of the photo are pooled, and
the decoder runs again on the same pyramid. What of a region counts, and how what was found meets the pictures that its
class had, are options (ours; the paper has whole masks, crops and replacing).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from dpseg.config import RefineConfig
from dpseg.model.dpseg import DPSeg
from dpseg.model.encoders import Encoder
from dpseg.model.pooling import masked_mean
from dpseg.model.prompt_encoding import VisualRows, crop_rows, visual_prompts
from dpseg.photos import Encoded
from dpseg.prompts.prompt_set import PromptSet, VisualPrompts
from dpseg.prompts.visual import crop_region


@dataclass(frozen=True, eq=False)
class Region:
    """A connected region of one class.

    Attributes:
        class_index: index into the K classes.
        mask: (h, w) bool, at the resolution of the logits: the region's core, all of it where that is what counts.
        area: fraction of the photo that the whole region covers, in (0, 1].
        confidence: mean score in the core, in [0, 1].
    """

    class_index: int
    mask: Tensor
    area: float
    confidence: float


def find_regions(best: Tensor, leaders: Tensor, config: RefineConfig) -> list[Region]:
    """Returns the regions that are large and certain enough, by class, and the largest first within a class.

    Args:
        best: (h, w), the largest logit at each position of one photo.
        leaders: (h, w) int64, the class that has it.
        config: what is enough.
    """
    scores, label_map = best.float().sigmoid().cpu().numpy(), leaders.cpu().numpy()
    smallest = max(1.0, config.min_area * label_map.size)
    counts = np.bincount(label_map.ravel())
    regions: list[Region] = []
    for class_index in np.flatnonzero(counts >= smallest):
        components, number = ndimage.label(label_map == class_index)
        index = np.arange(1, number + 1)
        sizes = np.bincount(components.ravel(), minlength=number + 1)[1:]
        cores = components if config.core == 1 else _cores(scores, components, index, config.core)
        confidences = np.atleast_1d(ndimage.mean(scores, cores, index))
        good = [n for n in range(number) if sizes[n] >= smallest and confidences[n] >= config.min_confidence]
        for n in sorted(good, key=lambda n: -sizes[n])[: config.max_regions]:
            mask = torch.from_numpy(cores == n + 1)
            regions.append(Region(int(class_index), mask, float(sizes[n] / label_map.size), float(confidences[n])))
    return regions


def _cores(
    scores: NDArray[np.float32], components: NDArray[np.int32], index: NDArray[np.int64], share: float
) -> NDArray[np.int32]:
    """Leaves of each component, (h, w) from 1 on, the share of its pixels with the highest scores; the rest is 0."""
    limits = ndimage.labeled_comprehension(
        scores, components, index, lambda mine: np.quantile(mine, 1 - share, method="higher"), np.float32, 0
    )
    return np.where(scores >= np.concatenate(([np.inf], limits))[components], components, 0)


def refine(
    model: DPSeg, encoded: Encoded, prompts: PromptSet, regions: Sequence[Sequence[Region]], config: RefineConfig
) -> list[PromptSet]:
    """Makes the prompts of Inference II for photos of which Inference I is done.

    Args:
        model: the model of Inference I.
        encoded: B photos.
        prompts: the prompts of Inference I.
        regions: for each photo what Inference I found in it.
        config: what is made of the regions.

    Returns:
        Each photo's prompts: classes that were not found keep theirs. A photo in which nothing was found has `prompts`
        itself, and Inference II would only repeat Inference I.
    """
    found = prompts_of(model.encoder, encoded, prompts.names, regions, config)
    return [prompts if one is None else meet(prompts, one, config.blend) for one in found]


def prompts_of(
    encoder: Encoder,
    encoded: Encoded,
    names: Sequence[str],
    regions: Sequence[Sequence[Region]],
    config: RefineConfig,
) -> list[VisualPrompts | None]:
    """Makes visual prompts of regions: the average of each class's; None for a photo in which nothing was found.

    Args:
        encoder: whose visual prompt encoder and joint space.
        encoded: B photos.
        names: K classes.
        regions: of each photo.
        config: whether crops are encoded or features pooled.
    """
    if not any(regions):
        return [None] * len(regions)
    if config.features == "pooled":
        visual, stages = _pooled_rows(encoder, encoded, regions)
    else:
        photos = [photo.crop_source() for photo in encoded.photos]
        visual, stages = crop_rows(encoder, _crops(photos, regions, encoder.crop_size))
    found: list[VisualPrompts | None] = []
    start = 0
    for mine in regions:
        stop = start + len(mine)
        s2, s3, s4 = (stage[start:stop] for stage in stages)
        classes = sorted({region.class_index for region in mine})
        owners = [classes.index(region.class_index) for region in mine]
        rows = visual[start:stop], (s2, s3, s4)
        found.append(visual_prompts([names[k] for k in classes], owners, rows, config.features) if mine else None)
        start = stop
    return found


def meet(prompts: PromptSet, found: VisualPrompts, blend: float) -> PromptSet:
    """Returns prompts in which what was found stands in place of a class's pictures, or is averaged with them.

    Args:
        prompts: K classes.
        found: C of them.
        blend: weight of what was found, see `RefineConfig`.
    """
    if blend == 1:
        return prompts.replace(found)
    old, index = prompts.embeddings, torch.tensor([prompts.names.index(name) for name in found.names])
    has = old.has_visual[index.to(old.has_visual.device)][:, None, None]

    def mixed(before: Tensor, now: Tensor) -> Tensor:
        before = before[index.to(before.device)]
        return torch.where(has, F.normalize((1 - blend) * before + blend * now.to(before), dim=-1), now.to(before))

    s2, s3, s4 = (mixed(before, now) for before, now in zip(old.stages, found.stages, strict=True))
    blended = replace(found, visual=mixed(old.visual, found.visual), stages=(s2, s3, s4))
    refined = prompts.replace(blended)
    sources = list(refined.sources)
    for k in index[has.flatten().cpu()].tolist():
        sources[k] = (*dict.fromkeys((*prompts.sources[k], found.source)),)
    return replace(refined, sources=tuple(sources))


def _crops(photos: Sequence[Tensor], regions: Sequence[Sequence[Region]], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cuts every region out of its photo: crops (3, size, size) and masks (size, size)."""
    for photo, found in zip(photos, regions, strict=True):
        for region in found:
            mask = region.mask[None, None].float()
            soft = F.interpolate(mask, size=photo.shape[-2:], mode="bilinear", align_corners=False)[0, 0]
            yield crop_region(photo, soft >= soft.max().clamp(max=0.5), size)  # a speck in a tiny photo stays too


def _pooled_rows(encoder: Encoder, encoded: Encoded, regions: Sequence[Sequence[Region]]) -> VisualRows:
    """Averages the frozen features of the photos over every region."""
    rows: list[list[Tensor]] = []
    for number, found in enumerate(regions):
        if found:
            one = encoded[number]
            maps = encoder.prompt_pyramid(one.inputs(), one.pyramid)
            masks = [region.mask[None].to(maps.dense) for region in found]
            rows += [[masked_mean(level, mask)[0] for level in (maps.dense, *maps.stages)] for mask in masks]
    visual, s2, s3, s4 = (F.normalize(torch.stack(level).float(), dim=-1) for level in zip(*rows, strict=True))
    return visual, (s2, s3, s4)
