"""--ref and --refs: single pictures, folders of pictures and labelled photos -> references by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from rich.console import Console

from dpseg.commands.progress import progress
from dpseg.config import Context
from dpseg.errors import ConfigError, DataError, DPSegError, PromptError, did_you_mean

if TYPE_CHECKING:
    from dpseg.data.labelled import LabelledSet
    from dpseg.data.picture_features import PictureEncoder
    from dpseg.data.pictures import NamedPicture
    from dpseg.prompts.visual import Reference

CONTEXTS: tuple[Context, ...] = get_args(Context)

POOL = 4
"""For each object that is kept, so many are compared, the largest."""

LISTED = 8
"""So many names are named in a message."""


@dataclass(frozen=True)
class RefsOptions:
    """Where references come from, besides single pictures, and how all of them are cut.

    Attributes:
        places: folders laid out NAME/PICTURE.jpg, labelled sets in a folder, and COCO files.
        per_class: so many objects a class are kept of a labelled set, 1 or more.
        split: which photos of labelled sets; None: all.
        context: what surrounds the thing in pictures with a mask or box.
    """

    places: tuple[str, ...] = ()
    per_class: int = 5
    split: str | None = None
    context: Context = "keep"


@dataclass(frozen=True, eq=False)
class ReferenceSet:
    """What one of `RefsOptions.places` holds: pictures, or else labelled photos.

    Attributes:
        place: as the user wrote it.
        pictures: those of a folder of pictures.
        labelled: the photos from which objects are cut.
    """

    place: str
    pictures: tuple[NamedPicture, ...] = ()
    labelled: LabelledSet | None = None


def context_of(text: str) -> Context:
    """Reads --ref-context.

    Raises:
        ConfigError: the word is unknown.
    """
    for context in CONTEXTS:
        if context == text.strip().lower():
            return context
    raise ConfigError(f"ref context {text!r} is unknown; {did_you_mean(text, CONTEXTS)}")


def check_refs(options: RefsOptions) -> None:
    """Refuses options that cannot be or do not go together, before anything is read.

    Raises:
        ConfigError: the number is out of range, or there is a split of nothing.
    """
    if options.per_class < 1:
        raise ConfigError(f"--refs-per-class {options.per_class} is out of range; give 1 or more")
    if options.split is not None and not options.places:
        raise ConfigError(f"--split {options.split} is of no data set; name one with --refs DIR")


def open_sets(options: RefsOptions) -> list[ReferenceSet]:
    """Lists what is there; no picture is decoded yet.

    Raises:
        DPSegError: there is no such folder or file, it holds no pictures, or there is no such split, or nothing that
            could have one.
    """
    from dpseg.data.benchmarks import is_labelled, open_dataset
    from dpseg.data.pictures import folder_pictures

    sets = []
    for place in options.places:
        path = Path(place).expanduser()
        if not path.exists():
            raise DataError(
                f"--refs {place}: no such folder or file; give DIR with NAME/PICTURE.jpg or labelled photos"
            )
        if is_labelled(path):
            sets.append(ReferenceSet(place, labelled=open_dataset(path, None, options.split)))
        else:
            sets.append(ReferenceSet(place, tuple(folder_pictures(path))))
    parted = [found for found in sets if found.labelled is not None and not Path(found.place).expanduser().is_file()]
    if options.split is not None and not parted:
        raise ConfigError(f"--split {options.split}: no folder of --refs has splits; leave --split out")
    return sets


class References:
    """Collects references by class.

    Attributes:
        by_class: class -> references, in the order in which they were given.
        failed: why some could not be read.
    """

    def __init__(self, listed: Sequence[str], options: RefsOptions, errors: Console) -> None:
        """Takes the classes in words, synonyms after commas; with none, every name that comes is a class.

        Raises:
            PromptError: a class stands twice or has no name.
        """
        from dpseg.prompts.text import parse_classes

        self.by_class: dict[str, list[Reference]] = {}
        self.failed: list[DPSegError] = []
        self._options, self._errors, self._open = options, errors, not listed
        classes = parse_classes(listed) if listed else []
        self._names = {name.casefold(): entry.name for entry in reversed(classes) for name in entry.synonyms}
        self._names |= {entry.name.casefold(): entry.name for entry in classes}

    def add_single(self, references: Sequence[str]) -> None:
        """Takes NAME=PICTURE and the like; no file is opened yet, and who is not listed is found out later.

        Raises:
            PromptError: one is not of this form.
        """
        from dpseg.data.pictures import reference_pictures

        for picture in reference_pictures(references, self._options.context):
            owner = self._owner(picture.name) or picture.name
            self.by_class.setdefault(owner, []).append(picture.reference)

    def add_set(self, found: ReferenceSet, encoder: PictureEncoder) -> None:
        """Takes the pictures or objects of one place, and says what of it is not used.

        Args:
            found: the place.
            encoder: by its features the best objects are found.

        Raises:
            PromptError: nothing in it shows a listed class, or no picture of a class can be read.
            DataError: no object is labelled.
        """
        labelled = found.labelled
        names = [one.name for one in found.pictures] if labelled is None else list(labelled.class_names)
        if labelled is not None and labelled.background_line0:
            names = names[1:]
        owners = {name: self._owner(name) for name in names}
        unlisted = [name for name, owner in owners.items() if owner is None]
        if len(unlisted) == len(owners):
            raise PromptError(
                f"--refs {found.place}: none of its classes is listed; it has {_some(unlisted)}; list one, or leave"
                " --refs out"
            )
        kept = {name: owner for name, owner in owners.items() if owner is not None}
        pictures = self._read(found.pictures, kept) if labelled is None else self._cut(labelled, kept, encoder)
        if not pictures:
            raise DataError(f"--refs {found.place}: no labelled object of {_some(list(kept))}; check masks and --split")
        for owner, picture in pictures:
            self.by_class.setdefault(owner, []).append(picture.reference)
        bare = [name for name, owner in kept.items() if owner not in {shown for shown, _ in pictures}]
        for what, left_out in (("not listed, so not used", unlisted), ("no pictures of", bare)):
            if left_out:
                self._say(f"--refs {found.place}: {what}: {_some(left_out)}")

    def report_failed(self) -> None:
        """Lists what could not be read."""
        if self.failed:
            self._say(f"{len(self.failed)} of the reference pictures or masks could not be read:")
            for error in self.failed:
                self._say(f"  {error}")

    def _owner(self, text: str) -> str | None:
        """Returns the class that something belongs to by any of its names; None: it is not listed."""
        from dpseg.prompts.text import parse_class

        entry = parse_class(text)
        keys = [name.casefold() for name in entry.synonyms]
        known = next((self._names[key] for key in keys if key in self._names), None)
        if known is None and self._open:
            known = entry.name
        if known is not None and self._open:
            self._names = dict.fromkeys(keys, known) | self._names
        return known

    def _read(self, pictures: Sequence[NamedPicture], owners: dict[str, str]) -> list[tuple[str, NamedPicture]]:
        """Returns the pictures of classes that can be read, with their classes."""
        wanted = [picture for picture in pictures if picture.name in owners]
        sound: list[tuple[str, NamedPicture]] = []
        first: dict[str, DPSegError] = {}
        with progress(self._errors, len(wanted), "pictures", lines=True) as step:
            for picture in wanted:
                owner = owners[picture.name]
                try:
                    picture.reference.read()
                    sound.append((owner, picture))
                except DPSegError as error:
                    self.failed.append(error)
                    first.setdefault(owner, error)
                step()
        for owner, reason in first.items():
            if owner not in self.by_class and owner not in {shown for shown, _ in sound}:
                raise PromptError(f"no picture of {owner!r} can be read: {reason}")
        return sound

    def _cut(
        self, dataset: LabelledSet, owners: dict[str, str], encoder: PictureEncoder
    ) -> list[tuple[str, NamedPicture]]:
        """Returns the best objects of classes, with their classes."""
        from dpseg.data.objects import cut_objects, find_candidates

        names, count = dataset.class_names, self._options.per_class
        wanted = {value for value, name in enumerate(names) if name in owners}
        with progress(self._errors, len(dataset), "masks", lines=True) as step:
            candidates = find_candidates(dataset, POOL * count, self.failed, step, wanted)
        chosen: list[tuple[str, NamedPicture]] = []
        with progress(self._errors, len(candidates), "classes", lines=True) as step:
            for value in sorted(candidates):
                pictures = cut_objects(dataset, value, candidates[value], self._options.context)
                best, _ = encoder.best(pictures, count, self.failed)
                chosen += [(owners[names[value]], one.picture) for one in best]
                step()
        return chosen

    def _say(self, text: str) -> None:
        self._errors.print(text, markup=False, soft_wrap=True)


def _some(names: Sequence[str]) -> str:
    """Joins names; of many, the first and how many more there are."""
    shown = [name.split(",")[0].strip() for name in names[:LISTED]]
    return ", ".join(shown) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
