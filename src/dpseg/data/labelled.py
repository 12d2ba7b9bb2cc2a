"""What every labelled data set offers, and the class that reads masks whose values must be mapped to classes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dpseg.data.folder import PhotoSet, Sample
from dpseg.data.vocabularies import read_classes
from dpseg.errors import DataError
from dpseg.images import load_image, read_mask

UNKNOWN = -1
"""In a table of classes: a value that no mask of the data set should hold."""


class LabelledSet(Protocol):
    """Photos with a class for each pixel, as evaluation and training read them."""

    @property
    def root(self) -> Path:
        """The folder that holds them."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names, synonyms after commas."""
        ...

    @property
    def background_line0(self) -> bool:
        """Whether class 0 is no class but what the set did not label."""
        ...

    @property
    def ignore_index(self) -> int:
        """The value of pixels without a label: 255, or 65535 where there are more than 255 classes."""
        ...

    @property
    def stems(self) -> tuple[str, ...]:
        """N names of photos, without suffix, with forward slashes."""
        ...

    @property
    def image_paths(self) -> tuple[Path, ...]:
        """N files."""
        ...

    def mask(self, index: int) -> NDArray[np.int32]:
        """Reads one mask alone: (H, W), classes in [0, K) or `ignore_index`."""
        ...

    def __len__(self) -> int:
        """N, the number of photos."""
        ...

    def __getitem__(self, index: int) -> Sample:
        """Reads one photo and its mask."""
        ...


@dataclass(frozen=True)
class Pairs:
    """Files that belong together.

    Attributes:
        stems: N names.
        image_paths: N photos, which need not exist.
        mask_paths: N masks, which need not exist.
        image_hint: what to do about a missing photo, for errors.
        mask_hint: what to do about a missing mask, for errors.
        unpaired: stems of masks for which there is no photo.
    """

    stems: tuple[str, ...]
    image_paths: tuple[Path, ...]
    mask_paths: tuple[Path, ...]
    image_hint: str
    mask_hint: str
    unpaired: tuple[str, ...] = ()


@dataclass(frozen=True)
class MaskFormat:
    """How the values of masks become classes.

    Attributes:
        class_names: K names, synonyms after commas.
        table: (V,) int32: the class of each stored value, `ignore_index`, or `UNKNOWN`.
        ignore_index: the class of pixels without a label, 255 or 65535.
        read: reads a file as stored values, (H, W).
        short_side: photos and masks whose shorter side is longer are reduced to so many pixels; None: none is.
        prompt_names: P names to decode, where they are others than the K classes.
        prompt_classes: P classes, one for each of `prompt_names`.
    """

    class_names: tuple[str, ...]
    table: NDArray[np.int32]
    ignore_index: int
    read: Callable[[Path], NDArray[np.int32]] = read_mask
    short_side: int | None = None
    prompt_names: tuple[str, ...] | None = None
    prompt_classes: tuple[int, ...] | None = None


class MappedSet(PhotoSet):
    """Photos and masks of a download whose label values become classes when they are read.

    Attributes:
        name: how the data set is called.
        root: the folder.
        pairs: the files.
        format: how masks are read.
        class_names: K names, synonyms after commas.
        background_line0: whether class 0 is no class but what the set did not label.
        ignore_index: the value of pixels without a label, 255 or 65535.
        stems: N names of the photos.
        image_paths: N files.
    """

    def __init__(
        self, name: str, root: Path, pairs: Pairs, mask_format: MaskFormat, background_line0: bool = False
    ) -> None:
        """Keeps the lists; nothing is read yet.

        Raises:
            DataError: there are no photos.
        """
        if not pairs.stems:
            raise DataError(f"{name}: no photos below {str(root)!r}; {pairs.image_hint}")
        self.name, self.root, self.pairs, self.format = name, root, pairs, mask_format
        self.class_names = mask_format.class_names
        self.background_line0 = background_line0
        self.ignore_index = mask_format.ignore_index
        self.stems = pairs.stems
        self.image_paths = pairs.image_paths

    def image(self, index: int) -> Image.Image:
        """Reads one photo alone, RGB.

        Raises:
            ImageError: it cannot be decoded.
            DataError: it is missing.
        """
        path = self.image_paths[index]
        if not path.is_file():
            raise DataError(f"photo {str(path)!r} is missing; {self.pairs.image_hint}")
        image = load_image(path)
        return image.resize(reduced_size(image.size, self.format.short_side), Image.Resampling.BILINEAR)

    def mask_of(self, index: int) -> str:
        """Says which mask it is, for errors."""
        return f"mask {str(self.pairs.mask_paths[index])!r}"

    def mask(self, index: int) -> NDArray[np.int32]:
        """Reads one mask alone: (H, W).

        Raises:
            ImageError: the file cannot be decoded.
            DataError: the file is missing, or holds a value that is no class.
        """
        path = self.pairs.mask_paths[index]
        if not path.is_file():
            raise DataError(f"mask {str(path)!r} is missing; {self.pairs.mask_hint}")
        values = self.format.read(path)
        table = self.format.table
        inside = (values >= 0) & (values < len(table))
        classes = np.where(inside, table[np.where(inside, values, 0)], UNKNOWN).astype(np.int32)
        unknown = np.unique(values[classes == UNKNOWN])
        if unknown.size:
            listed = ", ".join(str(value) for value in unknown[:5]) + (", ..." if unknown.size > 5 else "")
            raise DataError(
                f"mask {str(path)!r} holds the values {listed}, which {self.name} does not have; is it the right file?"
            )
        height, width = classes.shape
        size = reduced_size((width, height), self.format.short_side)
        if size == (width, height):
            return classes
        return np.array(Image.fromarray(classes).resize(size, Image.Resampling.NEAREST), dtype=np.int32)


def prompts_of(dataset: LabelledSet) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Returns what to decode on a data set: P names, and for each the class that its pixels count as.

    They are the K classes themselves but for "pas20b", whose background stands for 39 names.
    """
    if isinstance(dataset, MappedSet) and dataset.format.prompt_names and dataset.format.prompt_classes:
        return dataset.format.prompt_names, dataset.format.prompt_classes
    return dataset.class_names, tuple(range(len(dataset.class_names)))


def reduced_size(size: tuple[int, int], short_side: int | None) -> tuple[int, int]:
    """Returns (width, height) so that the shorter of them is at most `short_side` pixels, in the same proportion."""
    shorter = min(size)
    if short_side is None or shorter <= short_side:
        return size
    width, height = (short_side if side == shorter else round(side * short_side / shorter) for side in size)
    return width, height


def ignore_index_for(classes: int) -> int:
    """Returns 255 where it is no class, else 65535."""
    return 255 if classes <= 255 else 65535


def class_table(values: Sequence[int], size: int, ignored: Collection[int], ignore_index: int) -> NDArray[np.int32]:
    """Returns the (V,) table of a `MaskFormat`.

    Args:
        values: the stored value of each class, in the order of the classes.
        size: V; larger values are unknown.
        ignored: stored values of pixels without a label.
        ignore_index: what they become.
    """
    table = np.full(size, UNKNOWN, dtype=np.int32)
    table[list(ignored)] = ignore_index
    table[list(values)] = np.arange(len(values), dtype=np.int32)
    return table


def shipped_names(file: str) -> tuple[str, ...]:
    """Returns the lines of a list in `data/names` that are classes.

    Args:
        file: its name, without suffix.
    """
    return tuple(read_classes(resources.files("dpseg.data").joinpath("names", f"{file}.txt").read_text("utf-8")))
