"""How near text, visual and dual prompts lie to images of their classes in the joint space: the modality gap.

The paper reports distances to the image of 0.39 for text, 0.33 for visual and 0.18 for dual prompts with CLIP, and does
not say how it measures them. Ours is the cosine distance to the embedding of a class's region in a photo, defined in
`Gap.distances`, so the figures show the same order, but need not be near the paper's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from dpseg.data.labelled import LabelledSet, prompts_of
from dpseg.errors import ConfigError, DataError
from dpseg.evaluation.references import cut_references, draw_references
from dpseg.evaluation.table import markdown_line
from dpseg.model.cost_volume import dual_prompt
from dpseg.model.pooling import masked_mean
from dpseg.model.preprocess import encoder_size
from dpseg.prompts.prompt_set import PromptEmbeddings
from dpseg.prompts.text import parse_class
from dpseg.segmenter import Segmenter

Vectors: TypeAlias = NDArray[np.float32]

KINDS = ("text", "visual", "dual")
"""The kinds of prompts that are compared."""


@dataclass(frozen=True)
class GapConfig:
    """What is compared.

    Attributes:
        references: reference pictures a class at most, 1 or more.
        seed: of the draw of references and of photos.
        classes: only so many, those that the most photos show, 2 or more; None: all.
        per_class: so many photos of a class at most, 1 or more.
    """

    references: int = 3
    seed: int = 0
    classes: int | None = None
    per_class: int = 20


@dataclass(frozen=True, eq=False)
class GapPlan:
    """Which classes, photos and reference pictures are encoded.

    Attributes:
        dataset: the photos whose regions are encoded.
        pool: the photos from which references are cut.
        classes: K class indices of the data set.
        names: K names, synonyms after commas.
        shown: indices of a photo -> the classes, as indices into `classes`, whose regions in it are encoded.
        drawn: class index -> indices of the pool's photos that become references.
        left_out: names of classes that photos show, but no photo of the pool.
    """

    dataset: LabelledSet
    pool: LabelledSet
    classes: tuple[int, ...]
    names: tuple[str, ...]
    shown: Mapping[int, tuple[int, ...]]
    drawn: Mapping[int, tuple[int, ...]]
    left_out: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Distances:
    """Cosine distances, 1 - cosine, in [0, 2], of one kind of prompts to image embeddings.

    Attributes:
        own: (K,) of each class's prompt to its own regions, averaged over them.
        other: (K,) of each class's prompt to the other classes' regions, averaged over each class and then over those.
    """

    own: NDArray[np.float64]
    other: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Gap:
    """Prompts of K classes and N regions that show them, in the joint space of D dimensions.

    Attributes:
        names: K names as they are shown.
        prompts: (K, D) unit vectors for each of `KINDS`: T, V and R, averaged over templates.
        regions: (N, D) unit vectors: E averaged over a class's pixels in a photo.
        owners: (N,) the class that each region shows; each of the K has one at least.
        photos: so many were encoded.
        left_out: names of classes that photos show, but no photo outside the split.
    """

    names: tuple[str, ...]
    prompts: Mapping[str, Vectors]
    regions: Vectors
    owners: NDArray[np.int64]
    photos: int
    left_out: tuple[str, ...] = ()

    def distances(self, kind: str) -> Distances:
        """Returns how far the prompts of one of `KINDS` lie from image embeddings."""
        to_regions = 1 - self.prompts[kind].astype(np.float64) @ self.regions.T  # (K, N)
        count = len(self.names)
        shares = np.eye(count)[self.owners] / np.bincount(self.owners, minlength=count)  # (N, K)
        means = to_regions @ shares  # (K, K): prompt, class of the region
        own = means.diagonal().copy()
        return Distances(own, (means.sum(axis=1) - own) / (count - 1))

    def to_markdown(self) -> str:
        """Returns the mean distances as a table."""
        lines = [markdown_line(["prompts", "to their own class", "to other classes"]), "|---|---|---|"]
        for kind in KINDS:
            found = self.distances(kind)
            lines.append(markdown_line([kind, f"{found.own.mean():.3f}", f"{found.other.mean():.3f}"]))
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Returns all figures as JSON values."""
        found = {kind: self.distances(kind) for kind in KINDS}
        counts = np.bincount(self.owners, minlength=len(self.names))
        return {
            "photos": self.photos,
            "regions": len(self.regions),
            "mean": {kind: {"own": float(d.own.mean()), "other": float(d.other.mean())} for kind, d in found.items()},
            "classes": {
                name: {
                    "regions": int(counts[k]),
                    **{kind: {"own": float(d.own[k]), "other": float(d.other[k])} for kind, d in found.items()},
                }
                for k, name in enumerate(self.names)
            },
            "left_out": list(self.left_out),
        }


def plan_gap(segmenter: Segmenter, dataset: LabelledSet, pool: LabelledSet, config: GapConfig) -> GapPlan:
    """Reads all masks, and draws the references and the photos of each class.

    A class is shown by a photo where it covers at least one position of the dense embedding E.

    Args:
        segmenter: the model.
        dataset: a split.
        pool: where reference pictures are cut from, without the photos of `dataset`.
        config: what is compared.

    Raises:
        ConfigError: a number is out of range.
        DataError: a mask is not usable, or there are no two classes to compare.
    """
    if config.references < 1 or config.per_class < 1:
        raise ConfigError(f"references {config.references}, per-class {config.per_class}: give numbers of 1 or more")
    if config.classes is not None and config.classes < 2:
        raise ConfigError(f"classes {config.classes}: give 2 or more, for each is compared with the others")
    if tuple(pool.class_names) != tuple(dataset.class_names):
        raise DataError(f"{str(pool.root)!r}: the photos for reference pictures have other classes than the split")
    if set(pool.stems) <= set(dataset.stems):
        raise DataError(f"{str(pool.root)!r} has no photos outside the split to cut references from; name a --split")
    photos = _photos_by_class(segmenter, dataset)
    drawn = draw_references(pool, dataset.stems, config.references, config.seed)
    names = dataset.class_names
    usable = sorted((value for value in photos if value in drawn), key=lambda value: (-len(photos[value]), value))
    chosen = sorted(usable[: config.classes])
    if len(chosen) < 2:
        raise DataError(
            f"{len(chosen)} classes are shown both by the split and by other photos, and a comparison needs 2; give"
            " more photos of them"
        )
    random = np.random.default_rng(config.seed)
    shown: dict[int, list[int]] = {}
    for number, value in enumerate(chosen):
        count = min(config.per_class, len(photos[value]))
        for photo in random.choice(photos[value], size=count, replace=False).tolist():
            shown.setdefault(photo, []).append(number)
    return GapPlan(
        dataset=dataset,
        pool=pool,
        classes=tuple(chosen),
        names=tuple(names[value] for value in chosen),
        shown={photo: tuple(shown[photo]) for photo in sorted(shown)},
        drawn={value: drawn[value] for value in chosen},
        left_out=tuple(parse_class(names[value]).name for value in sorted(photos) if value not in drawn),
    )


@torch.inference_mode()
def measure_gap(segmenter: Segmenter, plan: GapPlan, step: Callable[[], None] = lambda: None) -> Gap:
    """Encodes the prompts and the regions.

    Args:
        segmenter: the model.
        plan: what `plan_gap` returned.
        step: called after each photo.

    Raises:
        DataError: a mask is not usable.
        ImageError: a photo cannot be read.
        PromptError: two classes have the same name.
    """
    references = cut_references(plan.pool, plan.drawn)
    shown_names = tuple(parse_class(name).name for name in plan.names)
    pictures = {name: references[value] for name, value in zip(shown_names, plan.classes, strict=True)}
    prompts = segmenter.prompts(plan.names, pictures, bank=False)
    rows: list[Vectors] = []
    owners: list[int] = []
    for photo, numbers in plan.shown.items():
        sample = plan.dataset[photo]
        dense = segmenter.encode([sample.image]).pyramid.dense  # E, (1, D, h, w)
        masks = np.stack([sample.mask == plan.classes[number] for number in numbers])
        rows.append(_region_embeddings(dense, torch.from_numpy(masks)))
        owners += numbers
        step()
    return Gap(
        names=shown_names,
        prompts=prompt_vectors(prompts.embeddings),
        regions=np.concatenate(rows),
        owners=np.array(owners),
        photos=len(plan.shown),
        left_out=plan.left_out,
    )


def prompt_vectors(prompts: PromptEmbeddings) -> dict[str, Vectors]:
    """Returns T, V and R of K classes by `KINDS`, averaged over templates: (K, D) unit vectors."""
    vectors = zip(KINDS, (prompts.text, prompts.visual, dual_prompt(prompts)), strict=True)
    return {kind: F.normalize(rows.float().mean(dim=1), dim=-1).cpu().numpy() for kind, rows in vectors}


def plane_points(gap: Gap, seed: int = 0) -> Vectors:
    """Lays all embeddings out in a plane by t-SNE with the cosine distance.

    Args:
        gap: prompts and regions.
        seed: of the layout.

    Returns:
        (3 K + N, 2): the prompts of `KINDS` one kind after the other, and the regions.
    """
    from sklearn.manifold import TSNE

    rows = np.concatenate([*(gap.prompts[kind] for kind in KINDS), gap.regions])
    perplexity = min(30.0, (len(rows) - 1) / 3)
    layout = TSNE(metric="cosine", init="pca", perplexity=perplexity, random_state=seed, n_jobs=1)
    points: Vectors = layout.fit_transform(rows).astype(np.float32)
    return points


def _photos_by_class(segmenter: Segmenter, dataset: LabelledSet) -> dict[int, list[int]]:
    """Returns for each class that one word list stands for the photos in which it covers a position of E or more."""
    config, strides = segmenter.model.config, segmenter.model.encoder.strides
    prompted = list(prompts_of(dataset)[1])
    known = {value for value in prompted if prompted.count(value) == 1 and value >= int(dataset.background_line0)}
    photos: dict[int, list[int]] = {}
    for index in range(len(dataset)):
        mask = dataset.mask(index)
        height, width = mask.shape
        wide, high = encoder_size(width, height, config.image_size, config.keep_aspect, strides[-1])
        positions = (wide // strides[-1]) * (high // strides[-1])
        values, counts = np.unique(mask, return_counts=True)
        for value, pixels in zip(values.tolist(), counts.tolist(), strict=True):
            if value in known and value != dataset.ignore_index and pixels / mask.size * positions >= 1:
                photos.setdefault(value, []).append(index)
    return photos


def _region_embeddings(dense: torch.Tensor, masks: torch.Tensor) -> Vectors:
    """Averages E (1, D, h, w) over each of n masks (n, H, W): (n, D) unit vectors."""
    masks = masks.to(dense.device, torch.float32)
    rows = torch.cat([masked_mean(dense.float(), mask[None]) for mask in masks])
    vectors: Vectors = F.normalize(rows, dim=-1).cpu().numpy()
    return vectors
