"""Objects of the training photos as visual prompts, encoded once by the frozen visual prompt encoder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from dpseg.errors import DataError, DPSegError
from dpseg.images import load_image, to_tensor
from dpseg.model.encoders import Encoder
from dpseg.prompts.visual import crop_region
from dpseg.tensor_files import read_tensors, write_tensors
from dpseg.training.corpus import Corpus, LabelledPhoto

MIN_AREA = 0.002
"""Smaller regions show too little to be a prompt; fraction of the photo."""

MAX_REGIONS = 2
"""So many connected regions of a class in one photo are encoded, the largest first."""

BATCH = 16


@dataclass(frozen=True, eq=False)
class Regions:
    """R encoded regions.

    Attributes:
        names: (R,) index of each region's name.
        photos: (R,) index of the photo that it was cut from.
        dense: (R, F), before `project_visual`.
        stages: three tensors (R, D_j).
    """

    names: Tensor
    photos: Tensor
    dense: Tensor
    stages: tuple[Tensor, Tensor, Tensor]

    def to(self, device: torch.device) -> Regions:
        """Returns the regions with their features on a device; names and photos stay where they are."""
        s2, s3, s4 = (stage.to(device) for stage in self.stages)
        return Regions(self.names, self.photos, self.dense.to(device), (s2, s3, s4))


@torch.no_grad()
def encode_regions(
    corpus: Corpus,
    encoder: Encoder,
    cache: Path,
    per_class: int = 0,
    seed: int = 0,
    device: torch.device | None = None,
) -> Regions:
    """Encodes the largest connected regions of every class of every photo as prompt pictures, or reads `cache`.

    A person's reference shows one thing, and so does a region that Inference I found.

    Args:
        corpus: the training photos.
        encoder: whose frozen visual prompt encoder.
        cache: a safetensors file; made again where it is of another corpus, encoder or choice of regions.
        per_class: photos are looked through in random order until each class has so many regions; 0: all photos.
        seed: of that order.
        device: the encoder's; None: the CPU.
    """
    stamp = {
        "encoder": encoder.fingerprint,
        "corpus": corpus.objects_digest(),
        "choice": f"{MIN_AREA} {MAX_REGIONS} {per_class} {seed if per_class else 0}",
    }
    if cache.is_file():
        tensors, about = read_tensors(cache, "regions", 1, DataError)
        if stamp.items() <= about.items():
            stages = tensors["stage2"], tensors["stage3"], tensors["stage4"]
            return Regions(tensors["names"], tensors["photos"], tensors["dense"], stages)
    features, owners = [], []
    listed = _list_regions(corpus, per_class, seed)
    while batch := list(islice(listed, BATCH)):
        crops, masks = [], []
        for photo, index, name, region in batch:
            crop, mask = crop_region(photo.image.float() / 255, region, encoder.crop_size)
            crops.append(crop)
            masks.append(mask)
            owners.append((index, name))
        features.append(encoder.visual_features(torch.stack(crops).to(device), torch.stack(masks).to(device)))
    if not owners:
        raise DataError("no photo shows an object that is large enough for a visual prompt; check the masks")
    s2, s3, s4 = (torch.cat([f.stages[number] for f in features]).cpu() for number in range(3))
    photos, names = torch.tensor(owners).unbind(1)
    regions = Regions(names, photos, torch.cat([f.dense for f in features]).cpu(), (s2, s3, s4))
    tensors = {"names": regions.names, "photos": regions.photos, "dense": regions.dense}
    write_tensors(cache, "regions", 1, tensors | {"stage2": s2, "stage3": s3, "stage4": s4}, stamp)
    return regions


def _list_regions(corpus: Corpus, per_class: int, seed: int) -> Iterator[tuple[LabelledPhoto, int, int, Tensor]]:
    """Yields (photo, its index, name, (H, W) bool); photos that cannot be read have none."""
    count = len(corpus.photos)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)) if per_class else torch.arange(count)
    missing = {name for names in corpus.vocabularies for name in names}
    listed: Counter[int] = Counter()
    for index in order.tolist():
        if not missing:
            return
        if not corpus.labelled[corpus.sources[index]]:
            continue
        try:
            photo = corpus.photos[index]
        except DPSegError:
            continue
        labels = corpus.objects(photo)  # a prompt should be certain, and a teacher may err
        for name in labels.unique().tolist():
            if name not in missing:
                continue
            for region in _largest_regions(labels == name):
                yield photo, index, name, region
                listed[name] += 1
            if listed[name] >= per_class > 0:
                missing.remove(name)


def _largest_regions(mask: Tensor) -> list[Tensor]:
    """Returns the largest connected regions of a mask (H, W)."""
    components, _ = ndimage.label(mask.numpy())
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    largest = np.argsort(-sizes, kind="stable")[:MAX_REGIONS]
    large = largest[sizes[largest] >= MIN_AREA * mask.numel()]
    return [torch.from_numpy(components == component) for component in large.tolist()]


@torch.no_grad()
def encode_pictures(paths: list[Path], encoder: Encoder) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Encodes whole pictures, squeezed to squares: (N, F) and three tensors (N, D_j)."""
    features = []
    size = (encoder.crop_size, encoder.crop_size)
    for start in range(0, len(paths), BATCH):
        images = [load_image(path).resize(size) for path in paths[start : start + BATCH]]
        features.append(encoder.visual_features(torch.stack([to_tensor(image) for image in images])))
    s2, s3, s4 = (torch.cat([f.stages[number] for f in features]) for number in range(3))
    return torch.cat([f.dense for f in features]), (s2, s3, s4)
