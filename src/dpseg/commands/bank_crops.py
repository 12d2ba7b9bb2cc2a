"""Objects of labelled photos for a bank: cut out by their masks, the best of each class kept by size and diversity."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from dpseg.commands.bank_pictures import FLUSH, BankFiller, NamedPicture, ReadPicture, Row
from dpseg.data.labelled import LabelledSet
from dpseg.errors import DPSegError
from dpseg.model.encoders import Encoder
from dpseg.model.prompt_encoding import encoder_device
from dpseg.prompts.text import parse_class
from dpseg.prompts.visual import Reference

POOL = 64
"""So many objects of a class are compared, the largest; more where more are kept."""

Candidates = Mapping[int, list[tuple[int, int]]]
"""Class -> (area in pixels, index of the photo) of its largest objects, the largest first."""


def find_candidates(dataset: LabelledSet, pool: int, failed: list[DPSegError], step: Callable[[], None]) -> Candidates:
    """Looks for the largest connected region of each class in each photo.

    Args:
        dataset: labelled photos; only their masks are read.
        pool: so many regions a class at most.
        failed: takes the errors of masks that cannot be read.
        step: called after each photo.
    """
    heaps: dict[int, list[tuple[int, int]]] = {}
    for index in range(len(dataset)):
        try:
            mask = dataset.mask(index)
        except DPSegError as error:
            failed.append(error)
            mask = np.zeros((0, 0), dtype=np.int32)
        for value in np.unique(mask).tolist():
            if value != dataset.ignore_index and not (value == 0 and dataset.background_line0):
                heap = heaps.setdefault(value, [])
                heapq.heappush(heap, (int(largest_region(mask == value).sum()), -index))
                if len(heap) > pool:
                    heapq.heappop(heap)
        step()
    return {value: [(area, -index) for area, index in sorted(heap, reverse=True)] for value, heap in heaps.items()}


def add_class(filler: BankFiller, dataset: LabelledSet, value: int, found: list[tuple[int, int]], count: int) -> None:
    """Encodes the candidates of a class and adds the best of them.

    Args:
        filler: of the bank.
        dataset: labelled photos.
        value: the class.
        found: its candidates, the largest first.
        count: so many are added at most.
    """
    name = parse_class(dataset.class_names[value]).name
    pictures: list[ReadPicture] = []
    rows: list[Row] = []
    waiting: list[ReadPicture] = []
    for number, (_, index) in enumerate(found, start=1):
        try:
            sample = dataset[index]
            reference = Reference(sample.image, mask=largest_region(sample.mask == value))
            waiting.append(filler.read(NamedPicture(name, reference, str(dataset.image_paths[index]))))
        except DPSegError as error:
            if str(error) not in map(str, filler.count.failed):  # a photo may show several classes
                filler.count.failed.append(error)
        if waiting and (len(waiting) == FLUSH or number == len(found)):
            rows += filler.encode(waiting, cached=True)
            pictures += [ReadPicture(one.name, one.source, one.key, None) for one in waiting]
            waiting = []
    if pictures:
        chosen = choose(joint_vectors(filler.encoder, rows), count)
        filler.add([pictures[number] for number in chosen], [rows[number] for number in chosen])


def largest_region(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns the largest connected region of a mask (H, W) that is not empty."""
    components, _ = ndimage.label(mask)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    return np.asarray(components == int(sizes.argmax()))


@torch.no_grad()
def joint_vectors(encoder: Encoder, rows: list[Row]) -> Tensor:
    """Returns V, (N, D) unit vectors: by them pictures are compared."""
    dense = torch.stack([dense for dense, _ in rows]).float().to(encoder_device(encoder))
    return F.normalize(encoder.project_visual(dense).float(), dim=-1).cpu()


def choose(vectors: Tensor, count: int) -> list[int]:
    """Chooses pictures that differ: the first, then always that whose largest cosine to the chosen is the smallest.

    Args:
        vectors: (N, D) unit vectors, N at least 1.
        count: so many at most.

    Returns:
        Row numbers in the order of the choice.
    """
    chosen = [0]
    nearest = vectors @ vectors[0]
    while len(chosen) < min(count, len(vectors)):
        nearest[chosen] = torch.inf
        chosen.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, vectors @ vectors[chosen[-1]])
    return chosen
