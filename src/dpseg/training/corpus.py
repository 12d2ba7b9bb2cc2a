"""All photos of a recipe, in memory or read when needed, their masks in one vocabulary of names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpseg.config import TrainConfig
from dpseg.data.benchmarks import open_dataset
from dpseg.data.labelled import LabelledSet
from dpseg.errors import ConfigError, DataError, did_you_mean

IGNORE = -1
"""A pixel without a label."""

NONE = -2
"""A pixel that shows none of its data set's names; it may well show something else."""


@dataclass(frozen=True, eq=False)
class LabelledPhoto:
    """One training photo.

    Attributes:
        image: (3, H, W) uint8 RGB.
        labels: (H, W) int16: index of a name, `IGNORE` or `NONE`.
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
        photos: all of them; reading one raises DataError or ImageError where its files are damaged.
        sources: for each photo, the index of its data set.
    """

    names: tuple[str, ...]
    vocabularies: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...]
    photos: Sequence[LabelledPhoto]
    sources: tuple[int, ...]

    def digest(self) -> str:
        """Returns a hash of names and photos: of their labels where they are in memory, else of their files' sizes."""
        digest = hashlib.sha256(repr(self.names).encode())
        if isinstance(self.photos, StoredPhotos):
            for line in self.photos.describe():
                digest.update(line.encode())
            return digest.hexdigest()
        for photo in self.photos:
            digest.update(photo.key.encode())
            digest.update(photo.labels.numpy().tobytes())
        return digest.hexdigest()


class StoredPhotos(Sequence[LabelledPhoto]):
    """Photos that are read each time they are asked for."""

    def __init__(self, datasets: Sequence[tuple[str, LabelledSet, NDArray[np.int16]]]) -> None:
        """Lists them.

        Args:
            datasets: name, photos, and the index of a name for each value of a mask.
        """
        self.datasets = datasets
        self.places = [(source, index) for source, (_, d, _) in enumerate(datasets) for index in range(len(d))]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> LabelledPhoto:  # type: ignore[override]  # slices of photos have no use
        """Reads one."""
        source, place = self.places[index]
        name, dataset, table = self.datasets[source]
        sample = dataset[place]
        mask = np.where(sample.mask == dataset.ignore_index, len(table) - 1, sample.mask)
        image = torch.from_numpy(np.array(sample.image)).permute(2, 0, 1).contiguous()
        return LabelledPhoto(image, torch.from_numpy(table[mask]), source, f"{name}/{sample.stem}")

    def describe(self) -> list[str]:
        """Returns a line for each photo: its name and its size in bytes, 0 where the file is missing."""
        lines = []
        for source, place in self.places:
            name, dataset, _ = self.datasets[source]
            path = dataset.image_paths[place]
            lines.append(f"{name}/{dataset.stems[place]} {path.stat().st_size if path.is_file() else 0}\n")
        return lines


def load_corpus(config: TrainConfig) -> Corpus:
    """Opens the splits that the recipe names, and reads their photos if it keeps them in memory.

    Raises:
        DataError: A data set's files are missing or damaged.
        ConfigError: A name in `hold_out` is in no data set.
    """
    datasets = [(one.name, open_dataset(one.name, Path(config.data_root), one.split)) for one in config.data]
    if not any(len(dataset) for _, dataset in datasets):
        raise DataError("the recipe names no data set with photos; give at least one under data:")
    _check_held_out(config, {name for _, dataset in datasets for name in dataset.class_names})
    names: list[str] = []
    vocabularies, tables = [], []
    for _, dataset in datasets:
        table, vocabulary = _map_names(dataset, names, set(config.hold_out))
        tables.append(table)
        vocabularies.append(vocabulary)
    stored = StoredPhotos([(*one, table) for one, table in zip(datasets, tables, strict=True)])
    return Corpus(
        tuple(names),
        tuple(vocabularies),
        tuple(one.weight for one in config.data),
        tuple(stored) if config.in_memory else stored,
        tuple(source for source, _ in stored.places),
    )


def _map_names(dataset: LabelledSet, names: list[str], held_out: set[str]) -> tuple[NDArray[np.int16], tuple[int, ...]]:
    """Appends a data set's new names; returns the index of each of its lines, last `IGNORE`, and its vocabulary."""
    table = np.full(len(dataset.class_names) + 1, IGNORE, dtype=np.int16)
    vocabulary = []
    for line, name in enumerate(dataset.class_names):
        if line == 0 and dataset.background_line0:
            table[0] = NONE
        elif name not in held_out:
            if name not in names:
                names.append(name)
            table[line] = names.index(name)
            vocabulary.append(names.index(name))
    return table, tuple(dict.fromkeys(vocabulary))


def _check_held_out(config: TrainConfig, everything: set[str]) -> None:
    for name in config.hold_out:
        if name not in everything:
            raise ConfigError(f"hold_out names {name!r}, which no data set has; {did_you_mean(name, everything)}")
