"""Random training crops: scale jitter, flip, colour jitter, pasted objects, and the categories to decode."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from dpseg.errors import DataError, DPSegError
from dpseg.recipe import TrainConfig
from dpseg.training.augment import jitter_colours, resize_crop, resize_labels, uniform
from dpseg.training.corpus import IGNORE, NONE, Corpus, LabelledPhoto

LABEL_STRIDE = 4
"""Labels of a crop are kept at every so many pixels: the decoder is no finer."""

TOO_NEAR = 0.6
"""Names with a larger cosine may be synonyms, and are not used as each other's negatives across data sets."""


MAX_REDRAWS = 20
"""So many photos in a row may be unreadable; each is replaced by another one, and counted."""


@dataclass(frozen=True)
class Share:
    """Which part of each step's crops a process draws.

    Attributes:
        rank: of the process, from 0.
        world: so many processes share a step.
    """

    rank: int = 0
    world: int = 1

    def part(self, total: int) -> slice:
        """Returns the process's crops of a step's `total`, a multiple of `world`."""
        size = total // self.world
        return slice(self.rank * size, (self.rank + 1) * size)


@dataclass(eq=False)  # not frozen: lightning-fabric takes it apart and puts it together again
class Batch:
    """Training crops.

    Attributes:
        images: (B, 3, S, S), RGB in [0, 1].
        labels: (B, S / 4, S / 4) indices of names, `IGNORE` or `NONE`.
        classes: (B, K) indices of the names to decode.
        own: (B, K) bool: the masks of the photo's data set label the name, so that `NONE` pixels are its negatives.
        unsure: (B, N) bool: names that labelled pixels may show all the same, so that they are nobody's negatives.
        photos: indices of the photos.
        sources: indices of their data sets.
        everyone: the photos of all processes' crops of this step.
        part: which of them are these.
        skipped: what is wrong with photos that could not be read; others stand in their place.
    """

    images: Tensor
    labels: Tensor
    classes: Tensor
    own: Tensor
    unsure: Tensor
    photos: list[int]
    sources: list[int]
    everyone: list[int]
    part: slice
    skipped: tuple[str, ...] = ()

    def to(self, device: torch.device) -> Batch:
        """Returns the batch with its tensors on a device."""
        images, labels = self.images.to(device, non_blocking=True), self.labels.to(device, non_blocking=True)
        return replace(self, images=images, labels=labels, classes=self.classes.to(device), own=self.own.to(device))


class _Crop(NamedTuple):
    """A crop, its labels, the photo it is of, and the names that its labelled pixels may show all the same."""

    image: Tensor
    labels: Tensor
    photo: int
    unsure: tuple[int, ...]


class Sampler(Dataset[Batch]):
    """Batches by step. The same seed and step give the same crops, whatever came before and however many draw them."""

    def __init__(self, corpus: Corpus, name_features: Tensor, config: TrainConfig, share: Share | None = None) -> None:
        """Sorts the photos.

        Args:
            corpus: what to draw from.
            name_features: (N, F_t) unit text features of the names, to keep synonyms apart.
            config: the recipe.
            share: this process's; None: it draws all crops.
        """
        self.corpus = corpus
        self.config = config
        self.share = share or Share()
        self.by_source: list[list[int]] = [[] for _ in corpus.vocabularies]
        for index, source in enumerate(corpus.sources):
            self.by_source[source].append(index)
        self.by_name: list[dict[int, list[int]]] = [{} for _ in corpus.vocabularies]
        if config.class_balanced > 0 or config.paste > 0:
            for index, source in enumerate(corpus.sources):
                with suppress(DPSegError):  # it is counted when it is drawn
                    for name in _present(corpus.photos[index].labels):
                        self.by_name[source].setdefault(name, []).append(index)
        self.near = name_features @ name_features.T > TOO_NEAR

    def __len__(self) -> int:
        return self.config.iterations

    def __getitem__(self, step: int) -> Batch:
        """Returns the batch of a step, of this process's share.

        Raises:
            DataError: Too many photos cannot be read.
        """
        random = self._generator(step, 0)
        everyone = [self._draw_photo(self._draw_source(random), random) for _ in range(self.config.batch_size)]
        part = self.share.part(len(everyone))
        skipped: list[str] = []
        images, labels, photos = [], [], []
        unsure = torch.zeros(len(range(len(everyone))[part]), len(self.near), dtype=torch.bool)
        for row, position in zip(unsure, range(len(everyone))[part], strict=True):
            crop = self._crop(everyone[position], self._generator(step, 1 + position), skipped)
            images.append(crop.image)
            labels.append(crop.labels)
            photos.append(crop.photo)
            row[list(crop.unsure)] = True
        sources = [self.corpus.sources[photo] for photo in photos]
        order = torch.rand(len(everyone), len(self.near), generator=random)[part]
        target = torch.stack(labels)
        classes, own = self.pick_classes(target, sources, order, unsure)
        return Batch(torch.stack(images), target, classes, own, unsure, photos, sources, everyone, part, tuple(skipped))

    def _generator(self, step: int, position: int) -> torch.Generator:
        """Of a step (position 0) or of one of its crops."""
        seed = (self.config.seed * 1_000_003 + step) * (1 + self.config.batch_size) + position
        return torch.Generator().manual_seed(seed)

    def _draw_source(self, random: torch.Generator) -> int:
        weights = torch.tensor(self.corpus.weights)
        return int(torch.multinomial(weights, 1, generator=random))

    def _draw_photo(self, source: int, random: torch.Generator) -> int:
        if uniform(random) < self.config.class_balanced and self.by_name[source]:
            return self._draw_object(source, random)[0]
        photos = self.by_source[source]
        return photos[_randint(len(photos), random)]

    def _draw_object(self, source: int, random: torch.Generator) -> tuple[int, int]:
        """Returns (photo, name): any name that a data set's photos show, and any photo that shows it."""
        names = list(self.by_name[source])
        name = names[_randint(len(names), random)]
        photos = self.by_name[source][name]
        return photos[_randint(len(photos), random)], name

    def _crop(self, photo: int, random: torch.Generator, skipped: list[str]) -> _Crop:
        """Returns a crop of a photo: of another one where that cannot be read."""
        config = self.config
        image, labels, photo, unsure = self._read_and_cut(photo, random, skipped)
        for _ in range(2):
            if uniform(random) < config.paste:
                self._paste(image, labels, random, skipped)
        if uniform(random) < 0.5:
            image, labels = image.flip(-1), labels.flip(-1)
        offset = LABEL_STRIDE // 2
        labels = labels[offset::LABEL_STRIDE, offset::LABEL_STRIDE].long()
        return _Crop(jitter_colours(image, config.colour_jitter, random), labels, photo, unsure)

    def _read_and_cut(self, photo: int, random: torch.Generator, skipped: list[str]) -> _Crop:
        for _ in range(MAX_REDRAWS):
            try:
                read = self.corpus.photos[photo]
                return _Crop(*self._cut(read, random), photo, read.unsure)
            except DPSegError as error:
                skipped.append(str(error))
                photo = self._draw_photo(self.corpus.sources[photo], random)
        raise DataError(f"{MAX_REDRAWS} photos in a row cannot be read, the last because: {skipped[-1]}")

    def _cut(self, photo: LabelledPhoto, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Cuts a square of random size out of the photo, and resizes it to the crop."""
        config = self.config
        height, width = photo.labels.shape
        low, high = (math.log(value) for value in config.scale)
        factor = math.exp(low + (high - low) * uniform(random)) * config.photo_size / min(height, width)
        side = max(16, round(config.crop / factor))
        top = round((height - side) * uniform(random))
        left = round((width - side) * uniform(random))
        box = slice(max(top, 0), min(top + side, height)), slice(max(left, 0), min(left + side, width))
        image = photo.image[:, box[0], box[1]].float().div_(255)
        labels = photo.labels[box[0], box[1]]
        pad_top, pad_left = max(-top, 0), max(-left, 0)
        pad = (pad_left, side - labels.shape[1] - pad_left, pad_top, side - labels.shape[0] - pad_top)
        if any(pad):
            image, labels = F.pad(image, pad, value=0.5), F.pad(labels, pad, value=IGNORE)
        return resize_crop(image, config.crop), resize_labels(labels, config.crop)

    def _paste(self, image: Tensor, labels: Tensor, random: torch.Generator, skipped: list[str]) -> None:
        """Pastes an object of another photo (Ghiasi et al., Simple Copy-Paste, CVPR 2021), in place."""
        source = self._draw_source(random)
        if not self.by_name[source]:
            return
        index, name = self._draw_object(source, random)
        try:
            donor = self.corpus.photos[index]
        except DPSegError as error:
            skipped.append(str(error))
            return
        mask = donor.labels == name
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
        if mask.float().mean() > 0.5 or min(bottom - top, right - left) < 16:
            return  # a whole scene, or a crumb
        crop = image.shape[-1]
        factor = crop * (0.2 + 0.5 * uniform(random)) / max(bottom - top, right - left)
        size = max(8, round((bottom - top) * factor)), max(8, round((right - left) * factor))
        y, x = _randint(crop - size[0] + 1, random), _randint(crop - size[1] + 1, random)
        piece = donor.image[:, top:bottom, left:right].float().div_(255)
        piece = F.interpolate(piece[None], size, mode="bilinear", antialias=True)[0]
        cover = F.interpolate(mask[None, None, top:bottom, left:right].float(), size, mode="bilinear", antialias=True)[
            0
        ]
        target = image[:, y : y + size[0], x : x + size[1]]
        target.copy_(torch.lerp(target, piece, cover))
        labels[y : y + size[0], x : x + size[1]][cover[0] > 0.5] = name

    def pick_classes(self, labels: Tensor, sources: list[int], order: Tensor, unsure: Tensor) -> tuple[Tensor, Tensor]:
        """Picks K names a crop: those in it, then others of its vocabulary, then any that are no synonyms.

        Args:
            labels: (B, h, w).
            sources: indices of the crops' data sets.
            order: (B, N); of several names, those with the larger values are picked.
            unsure: `Batch.unsure`.

        Returns:
            `Batch.classes` and `Batch.own`.
        """
        picked = [self._pick(*one) for one in zip(labels, sources, order, unsure, strict=True)]
        return torch.stack([p[0] for p in picked]), torch.stack([p[1] for p in picked])

    def _pick(self, labels: Tensor, source: int, order: Tensor, unsure: Tensor) -> tuple[Tensor, Tensor]:
        count = self.config.classes
        present = labels.unique()
        present = present[present >= 0]
        own = torch.tensor(self.corpus.vocabularies[source], dtype=torch.long)
        rest = own[~torch.isin(own, present)]
        rest = rest[order[rest].argsort(descending=True)]
        allowed = ~self.near[present].any(0) if len(present) else torch.ones(len(self.near), dtype=torch.bool)
        allowed[own] = False
        allowed[present] = False
        allowed &= ~unsure
        others = allowed.nonzero()[:, 0]
        others = others[order[others].argsort(descending=True)]
        few = min(len(rest), max(count - len(present) - count // 4, 0))  # a quarter comes from other vocabularies
        picked = torch.cat([present, rest[:few], others, rest[few:]])[:count]
        return picked, torch.isin(picked, torch.tensor(self.corpus.labelled[source], dtype=torch.long))


def _present(labels: Tensor) -> list[int]:
    """Returns the names in labels (H, W), sorted; faster than sorting the pixels."""
    counts = torch.bincount(labels.flatten().long() - NONE)
    return [value for value in (counts.nonzero()[:, 0] + NONE).tolist() if value >= 0]


def _randint(limit: int, random: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=random))


__all__ = ["IGNORE", "LABEL_STRIDE", "NONE", "Batch", "Sampler"]
