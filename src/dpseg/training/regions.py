"""Objects of the training photos as visual prompts, encoded once by the frozen visual prompt encoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dpseg.errors import DataError
from dpseg.images import load_image, to_tensor
from dpseg.model.encoders import Encoder
from dpseg.prompts.visual import crop_region
from dpseg.tensor_files import read_tensors, write_tensors
from dpseg.training.corpus import Corpus

MIN_AREA = 0.002
"""Smaller regions show too little to be a prompt; fraction of the photo."""

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
    """Encodes every class of every photo as one prompt picture, or reads them from `cache` if it is of this corpus.

    Args:
        corpus: the training photos.
        encoder: whose frozen visual prompt encoder.
        cache: a safetensors file.
    """
    owners = list(_list_regions(corpus))
    stamp = {"encoder": encoder.fingerprint, "corpus": hash_corpus(corpus)}
    if cache.is_file():
        tensors, about = read_tensors(cache, "regions", 1, DataError)
        if stamp.items() <= about.items():
            stages = tensors["stage2"], tensors["stage3"], tensors["stage4"]
            return Regions(tensors["names"], tensors["photos"], tensors["dense"], stages)
    features = []
    for start in range(0, len(owners), BATCH):
        crops, masks = [], []
        for photo, name in owners[start : start + BATCH]:
            item = corpus.photos[photo]
            crop, mask = crop_region(item.image.float() / 255, item.labels == name, encoder.crop_size)
            crops.append(crop)
            masks.append(mask)
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


def _list_regions(corpus: Corpus) -> Iterator[tuple[int, int]]:
    for index, photo in enumerate(corpus.photos):
        values, counts = photo.labels.unique(return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            if value >= 0 and count >= MIN_AREA * photo.labels.numel():
                yield index, value


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
