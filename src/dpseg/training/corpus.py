"""All photos of a recipe, in memory or read when needed, their masks in one vocabulary of names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpseg.data.benchmarks import find_place, open_dataset
from dpseg.data.labelled import LabelledSet
from dpseg.data.pictures import PictureSet
from dpseg.errors import ConfigError, DataError, did_you_mean
from dpseg.recipe import DataSource, TrainConfig
from dpseg.training.teacher import NOT_CERTAIN, PseudoLabels

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
        unsure: indices of names that its pixels may show although they have another label.
    """

    image: Tensor
    labels: Tensor
    source: int
    key: str
    unsure: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Corpus:
    """What a model is trained on.

    Attributes:
        names: N names of all data sets; equal names are one class. Synonyms stand after commas. Those of pictures
            without masks that no other set has come last.
        vocabularies: for each data set, the indices of its names, and of those that its teacher gives; of pictures
            without masks, none, for nobody said what they do not show.
        labelled: for each data set, the indices of the names that its masks label: a pixel that is `NONE` is none of
            them.
        weights: for each data set, how often it is drawn.
        photos: all of them; reading one raises DataError or ImageError where its files are damaged.
        sources: for each photo, the index of its data set.
    """

    names: tuple[str, ...]
    vocabularies: tuple[tuple[int, ...], ...]
    labelled: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...]
    photos: Sequence[LabelledPhoto]
    sources: tuple[int, ...]

    @property
    def known(self) -> int:
        """V, how many names are in a vocabulary: the first V of the N."""
        return 1 + max((name for vocabulary in self.vocabularies for name in vocabulary), default=-1)

    def objects(self, photo: LabelledPhoto) -> Tensor:
        """Returns the labels of a photo that its data set's own masks give, (H, W), `IGNORE` elsewhere."""
        own = torch.tensor(self.labelled[photo.source], dtype=photo.labels.dtype)
        return photo.labels.where(torch.isin(photo.labels, own), IGNORE)

    def objects_digest(self) -> str:
        """Returns a hash of the photos and of `objects` in them, whatever a teacher adds."""
        digest = hashlib.sha256(repr(self.names[: self.known]).encode())
        if isinstance(self.photos, StoredPhotos):
            return self.digest()
        for photo in self.photos:
            if self.labelled[photo.source]:
                digest.update(photo.key.encode())
                digest.update(self.objects(photo).numpy().tobytes())
        return digest.hexdigest()

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
            digest.update(repr(photo.unsure).encode() if photo.unsure else b"")
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a teacher adds to a data set.

    Attributes:
        pseudo: the teacher's labels.
        names: (K,) int16: the index of each of its names.
        own: indices of the data set's own names: where those are not labelled, they are not there.
        shown: what pictures without masks show: the name of each class, as the teacher is to read it.
    """

    pseudo: PseudoLabels
    names: Tensor
    own: Tensor
    shown: tuple[str, ...] = ()

    def add(self, photo: LabelledPhoto) -> LabelledPhoto:
        """Names the pixels of a photo that have no label, where the teacher is certain."""
        answers = torch.from_numpy(self.pseudo.label(photo.key, photo.image)).long()
        certain = answers != NOT_CERTAIN
        named = self.names[answers.where(certain, 0)]
        certain &= ~torch.isin(named, self.own)
        labels = torch.where(photo.labels >= 0, photo.labels, named.where(certain, photo.labels))
        return replace(photo, labels=labels)

    def locate(self, photo: LabelledPhoto, line: int) -> LabelledPhoto:
        """Finds what a picture without a mask shows.

        Args:
            photo: labelled as its one name everywhere.
            line: of that name in `shown`.
        """
        answers, same = self.pseudo.locate(photo.key, photo.image, self.shown[line])
        index_of = torch.cat([self.names, photo.labels[:1, 0]])
        found = torch.from_numpy(answers).long()
        certain = found != NOT_CERTAIN
        labels = index_of[found.where(certain, 0)].where(certain, IGNORE)
        unsure = self.names[list(same)]
        return replace(photo, labels=labels.where(~torch.isin(labels, unsure), IGNORE), unsure=tuple(unsure.tolist()))


class StoredPhotos(Sequence[LabelledPhoto]):
    """Photos that are read each time they are asked for."""

    def __init__(
        self, datasets: Sequence[tuple[str, LabelledSet, NDArray[np.int16]]], lessons: Mapping[int, Lesson]
    ) -> None:
        """Lists them.

        Args:
            datasets: name, photos, and the index of a name for each value of a mask.
            lessons: for the data sets that have a teacher, by their index.
        """
        self.datasets = datasets
        self.lessons = lessons
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
        photo = LabelledPhoto(image, torch.from_numpy(table[mask]), source, f"{name}/{sample.stem}")
        if source not in self.lessons:
            return photo
        if isinstance(dataset, PictureSet):
            return self.lessons[source].locate(photo, dataset.shown(place))
        return self.lessons[source].add(photo)

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
    datasets = [(one.name, _open(one, config)) for one in config.data]
    if not any(len(dataset) for _, dataset in datasets):
        raise DataError("the recipe names no data set with photos; give at least one under data:")
    _check_held_out(config, {name for _, dataset in datasets for name in dataset.class_names})
    names: list[str] = []
    mapped: dict[int, tuple[NDArray[np.int16], tuple[int, ...]]] = {}
    for source in sorted(range(len(datasets)), key=lambda source: isinstance(datasets[source][1], PictureSet)):
        mapped[source] = _map_names(datasets[source][1], names, set(config.hold_out))
    tables = [mapped[source][0] for source in range(len(datasets))]
    pictures = [isinstance(dataset, PictureSet) for _, dataset in datasets]
    vocabularies = [() if pictures[source] else mapped[source][1] for source in range(len(datasets))]
    lessons = _lessons(config, names, vocabularies, [dataset for _, dataset in datasets])
    stored = StoredPhotos([(*one, table) for one, table in zip(datasets, tables, strict=True)], lessons)
    return Corpus(
        tuple(names),
        tuple(
            () if pictures[source] else _with_lesson(vocabulary, lessons.get(source))
            for source, vocabulary in enumerate(vocabularies)
        ),
        tuple(vocabularies),
        tuple(one.weight for one in config.data),
        tuple(stored) if config.in_memory else stored,
        tuple(source for source, _ in stored.places),
    )


def _open(source: DataSource, config: TrainConfig) -> LabelledSet:
    root = Path(config.data_root)
    if source.teacher is not None and source.teacher.locate:
        return PictureSet(find_place(source.name, root), config.hold_out)
    return open_dataset(source.name, root, source.split)


def _lessons(
    config: TrainConfig, names: list[str], vocabularies: list[tuple[int, ...]], datasets: list[LabelledSet]
) -> dict[int, Lesson]:
    """Loads the teachers.

    Raises:
        ConfigError: A teacher shall give the names of a data set that the recipe does not have.
    """
    sources = [one.name for one in config.data]
    lessons = {}
    for index, one in enumerate(config.data):
        if one.teacher is None:
            continue
        if one.teacher.names_of not in sources:
            hint = did_you_mean(one.teacher.names_of, sources)
            raise ConfigError(
                f"a teacher gives the names of {one.teacher.names_of!r}, no data set of the recipe; {hint}"
            )
        given = vocabularies[sources.index(one.teacher.names_of)]
        pseudo = PseudoLabels(one.teacher, [names[name] for name in given], Path(config.out) / "pseudo")
        own = torch.tensor(vocabularies[index], dtype=torch.int16)
        shown = datasets[index].class_names if one.teacher.locate else ()
        lessons[index] = Lesson(pseudo, torch.tensor(given, dtype=torch.int16), own, shown)
    return lessons


def _with_lesson(vocabulary: tuple[int, ...], lesson: Lesson | None) -> tuple[int, ...]:
    """Returns a data set's own names, and those that its teacher gives."""
    return tuple(dict.fromkeys([*vocabulary, *([] if lesson is None else lesson.names.tolist())]))


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
