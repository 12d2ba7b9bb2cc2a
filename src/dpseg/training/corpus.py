"""All photos of a recipe in memory, their masks in one vocabulary of names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dpseg.config import TrainConfig
from dpseg.data.folder import FolderDataset
from dpseg.errors import ConfigError, DataError, did_you_mean

IGNORE = -1
"""Label of pixels of which nothing is known."""

NONE = -2
"""Label of pixels that are none of their set's names: negatives for those names alone."""


@dataclass(frozen=True, eq=False)
class LabelledPhoto:
    """A photo with its truth.

    Attributes:
        image: (3, H, W) uint8.
        labels: (H, W) int16, indices into the corpus's names, `IGNORE` or `NONE`.
        source: index of its data set.
        key: data set and stem.
    """

    image: Tensor
    labels: Tensor
    source: int
    key: str


@dataclass(frozen=True, eq=False)
class Corpus:
    """What a model is trained on.

    Attributes:
        names: N names of all data sets; equal names are one class. Synonyms stand after commas.
        vocabularies: for each data set, the indices of its names.
        weights: for each data set, how often it is drawn.
        photos: all of them.
    """

    names: tuple[str, ...]
    vocabularies: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...]
    photos: tuple[LabelledPhoto, ...]


def load_corpus(config: TrainConfig) -> Corpus:
    """Reads the train splits that the recipe names.

    Raises:
        DataError: A data set's files are missing or damaged.
        ConfigError: A name in `hold_out` is in no data set.
    """
    names: list[str] = []
    vocabularies, photos = [], []
    held_out = set(config.hold_out)
    for source, entry in enumerate(config.data):
        dataset = FolderDataset(Path(config.data_root) / entry.name, "train")
        start = 1 if dataset.background_line0 else 0
        table = np.full(max(256, len(dataset.class_names)), IGNORE, dtype=np.int16)
        if dataset.background_line0:
            table[0] = NONE
        vocabulary = []
        for line, name in enumerate(dataset.class_names[start:], start):
            if name in held_out:
                continue
            if name not in names:
                names.append(name)
            table[line] = names.index(name)
            vocabulary.append(names.index(name))
        vocabularies.append(tuple(dict.fromkeys(vocabulary)))
        for sample in dataset:
            mask = np.where(sample.mask == dataset.ignore_index, 255, sample.mask)
            labels = torch.from_numpy(table[mask])
            image = torch.from_numpy(np.array(sample.image)).permute(2, 0, 1).contiguous()
            photos.append(LabelledPhoto(image, labels, source, f"{entry.name}/{sample.stem}"))
    if not photos:
        raise DataError("the recipe names no data set with photos; give at least one under data:")
    _check_held_out(config)
    weights = tuple(entry.weight for entry in config.data)
    return Corpus(tuple(names), tuple(vocabularies), weights, tuple(photos))


def _check_held_out(config: TrainConfig) -> None:
    everything = {
        name
        for entry in config.data
        for name in FolderDataset(Path(config.data_root) / entry.name, "train").class_names
    }
    for name in config.hold_out:
        if name not in everything:
            raise ConfigError(f"hold_out names {name!r}, which no data set has; {did_you_mean(name, everything)}")
