"""Objects of the training photos as visual prompts, encoded once by the frozen visual prompt encoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from dpseg.errors import DataError
from dpseg.images import load_image, to_tensor
from dpseg.model.encoders import Encoder
from dpseg.prompts.visual import crop_region
from dpseg.tensor_files import read_tensors, write_tensors
from dpseg.training.corpus import Corpus

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


@torch.no_grad()
def encode_regions(corpus: Corpus, encoder: Encoder, cache: Path) -> Regions:
    """Encodes the largest connected regions of every class of every photo as prompt pictures, or reads `cache`.

    A person's reference shows one thing, and so does a region that Inference I found.

    Args:
        corpus: the training photos.
        encoder: whose frozen visual prompt encoder.
        cache: a safetensors file; made again where it is of another corpus, encoder or choice of regions.
    """
    stamp = {
        "encoder": encoder.fingerprint,
        "corpus": hash_corpus(corpus),
        "choice": f"{MIN_AREA} {MAX_REGIONS}",
    }
    if cache.is_file():
        tensors, about = read_tensors(cache, "regions", 1, DataError)
        if stamp.items() <= about.items():
            stages = tensors["stage2"], tensors["stage3"], tensors["stage4"]
            return Regions(tensors["names"], tensors["photos"], tensors["dense"], stages)
    features, owners = [], []
    for batch in _batches(_list_regions(corpus)):
        crops, masks = [], []
        for photo, name, region in batch:
            crop, mask = crop_region(corpus.photos[photo].image.float() / 255, region, encoder.crop_size)
            crops.append(crop)
            masks.append(mask)
            owners.append((photo, name))
        features.append(encoder.visual_features(torch.stack(crops), torch.stack(masks)))
    s2, s3, s4 = (torch.cat([f.stages[number] for f in features]) for number in range(3))
    photos, names = torch.tensor(owners).unbind(1)
    regions = Regions(names, photos, torch.cat([f.dense for f in features]), (s2, s3, s4))
    tensors = {"names": regions.names, "photos": regions.photos, "dense": regions.dense}
    write_tensors(cache, "regions", 1, tensors | {"stage2": s2, "stage3": s3, "stage4": s4}, stamp)
    return regions


def hash_corpus(corpus: Corpus) -> str:
    """Returns a digest of the photos' names, labels and vocabulary."""
    import hashlib

    digest = hashlib.sha256(repr(corpus.names).encode())
    for photo in corpus.photos:
        digest.update(photo.key.encode())
        digest.update(photo.labels.numpy().tobytes())
    return digest.hexdigest()


def _list_regions(corpus: Corpus) -> Iterator[tuple[int, int, Tensor]]:
    """Yields (photo, name, (H, W) bool)."""
    for index, photo in enumerate(corpus.photos):
        smallest = MIN_AREA * photo.labels.numel()
        for value in photo.labels.unique().tolist():
            if value < 0:
                continue
            components, _ = ndimage.label(photo.labels.numpy() == value)
            sizes = np.bincount(components.ravel())
            sizes[0] = 0
            largest = np.argsort(-sizes, kind="stable")[:MAX_REGIONS]
            for component in largest[sizes[largest] >= smallest].tolist():
                yield index, value, torch.from_numpy(components == component)


def _batches(regions: Iterator[tuple[int, int, Tensor]]) -> Iterator[list[tuple[int, int, Tensor]]]:
    while batch := list(islice(regions, BATCH)):
        yield batch


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
