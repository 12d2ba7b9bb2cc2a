"""Pictures by name -> features of the frozen visual prompt encoder, encoded once; those that differ most of many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from dpseg.cache import EmbeddingCache, content_key
from dpseg.data.pictures import NamedPicture
from dpseg.errors import DPSegError
from dpseg.model.encoders import Encoder
from dpseg.model.prompt_encoding import CROP_BATCH, encoder_device
from dpseg.prompts.bank_contents import picture_key
from dpseg.prompts.visual import Reference

BATCH = 16
"""So many pictures are encoded, and their features kept, at a time: what a kill can lose."""

Row = tuple[Tensor, tuple[Tensor, Tensor, Tensor]]
"""Features of a picture, (F,) and three (D_j,), in half precision."""


@dataclass(frozen=True, eq=False)
class ReadPicture:
    """A picture that was read.

    Attributes:
        picture: as it was given.
        key: of its content.
        crop: for the encoder, (3, s, s), and its mask (s, s); None: its features are known.
    """

    picture: NamedPicture
    key: str
    crop: tuple[Tensor, Tensor] | None


class PictureEncoder:
    """Reads pictures and encodes those whose features are not known yet.

    Attributes:
        encoder: of the model.
        cache: where features of pictures are kept.
    """

    def __init__(
        self, encoder: Encoder, cache: EmbeddingCache, known: Callable[[str], Row | None] = lambda _: None
    ) -> None:
        """Takes what encodes; `known` returns the features that a bank has of a picture's key."""
        self.encoder, self.cache = encoder, cache
        self._known, self._fingerprint = known, encoder.fingerprint

    def read(self, picture: NamedPicture) -> ReadPicture:
        """Reads a picture.

        Raises:
            DPSegError: it or its mask cannot be read, or do not go together.
        """
        image, mask = picture.reference.read()
        context = picture.reference.context
        key = picture_key(self._fingerprint, image, mask, context)
        known = self._known(key) is not None
        crop = None if known else Reference(image, mask=mask, context=context).crop(self.encoder.crop_size)
        return ReadPicture(picture, key, crop)

    def encode(self, pictures: Sequence[ReadPicture], cached: bool = False) -> list[Row]:
        """Returns features of pictures: the bank's, or else encoded.

        Args:
            pictures: N.
            cached: keep features on disk also of pictures that are not added, so that they are encoded once.
        """
        rows: dict[str, Row] = {}
        keys = {picture.key: content_key("bank", picture.key) for picture in pictures}
        kept = self.cache.get_many(self._fingerprint, list(keys.values())) if cached else {}
        for key, name in keys.items():
            stored = self._known(key)
            if stored is not None:
                rows[key] = stored
            elif name in kept:
                rows[key] = self._unpack(kept[name])
        missing = {one.key: one.crop for one in pictures if one.key not in rows and one.crop is not None}
        fresh = dict(zip(missing, encode_crops(self.encoder, list(missing.values())), strict=True))
        if cached and fresh:
            packed = {keys[key]: torch.cat([dense, *stages]) for key, (dense, stages) in fresh.items()}
            self.cache.put_many(self._fingerprint, packed)
        rows |= fresh
        return [rows[picture.key] for picture in pictures]

    def best(
        self, candidates: Sequence[NamedPicture], count: int, failed: list[DPSegError]
    ) -> tuple[list[ReadPicture], list[Row]]:
        """Encodes candidates of one class, the largest first, and returns the best of them by size and diversity.

        Args:
            candidates: N pictures.
            count: so many are returned at most; none where no candidate can be read.
            failed: takes the errors of those that cannot be read, each once.
        """
        pictures: list[ReadPicture] = []
        rows: list[Row] = []
        waiting: list[ReadPicture] = []
        for number, candidate in enumerate(candidates, start=1):
            try:
                waiting.append(self.read(candidate))
            except DPSegError as error:
                if str(error) not in map(str, failed):  # a photo may show several classes
                    failed.append(error)
            if waiting and (len(waiting) == BATCH or number == len(candidates)):
                rows += self.encode(waiting, cached=True)
                pictures += [replace(one, crop=None) for one in waiting]
                waiting = []
        chosen = choose(joint_vectors(self.encoder, rows), count) if rows else []
        return [pictures[number] for number in chosen], [rows[number] for number in chosen]

    def _unpack(self, packed: Tensor) -> Row:
        sizes = self.encoder.stage_dims
        dense, s2, s3, s4 = packed.split([len(packed) - sum(sizes), *sizes])
        return dense, (s2, s3, s4)


def encode_crops(encoder: Encoder, crops: Sequence[tuple[Tensor, Tensor]]) -> list[Row]:
    """Encodes prompt pictures as a bank keeps them, before any projection that training changes.

    Args:
        encoder: whose frozen visual prompt encoder.
        crops: N pairs of a picture (3, s, s), RGB in [0, 1], and its mask (s, s) in [0, 1].
    """
    device = encoder_device(encoder)
    size = 1 if device.type == "cpu" else CROP_BATCH
    rows: list[Row] = []
    for start in range(0, len(crops), size):
        batch = crops[start : start + size]
        features = encoder.visual_features(
            torch.stack([crop for crop, _ in batch]).to(device), torch.stack([mask for _, mask in batch]).to(device)
        )
        dense, (s2, s3, s4) = features.dense.half().cpu(), (stage.half().cpu() for stage in features.stages)
        rows += [(dense[n], (s2[n], s3[n], s4[n])) for n in range(len(batch))]
    return rows


@torch.no_grad()
def joint_vectors(encoder: Encoder, rows: Sequence[Row]) -> Tensor:
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
