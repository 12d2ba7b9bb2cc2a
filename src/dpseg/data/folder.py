"""A data set of photos and label masks in a folder: the layout that evaluation and training read.

ROOT/images/STEM.jpg   photos, subfolders allowed
ROOT/masks/STEM.png    one value a pixel: the 0-based line of its class in classes.txt, 255 = not labelled
ROOT/classes.txt       one class a line, synonyms after commas: "couch, sofa"
ROOT/train.txt ...     optional splits: one STEM a line
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dpseg.errors import DataError, did_you_mean
from dpseg.images import SUFFIXES, load_image, read_mask

MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif")
BACKGROUND_NAMES = frozenset({"background", "none", "none of them", "nothing", "unlabeled", "unlabelled", "void"})


class Sample(NamedTuple):
    """One photo with its truth.

    Attributes:
        stem: path below `images/` without the suffix, with forward slashes.
        image: RGB photo of W x H pixels.
        mask: (H, W) int32: the index of each pixel's class in `class_names`, or the data set's `ignore_index`.
    """

    stem: str
    image: Image.Image
    mask: NDArray[np.int32]


class PhotoSet(Sequence[Sample]):
    """Photos with masks that are read when asked for.

    Attributes:
        stems: N names of photos.
        image_paths: N files.
    """

    stems: tuple[str, ...]
    image_paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.stems)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # slices of decoded photos have no use
        """Reads one photo and its mask.

        Raises:
            ImageError: a file cannot be decoded.
            DataError: a file is missing, photo and mask differ in size, or the mask holds a value that is no class.
        """
        image, mask = self.image(index), self.mask(index)
        if mask.shape != (image.height, image.width):
            height, width = mask.shape
            raise DataError(
                f"{self.mask_of(index)} is {width} x {height} but its photo is {image.width} x {image.height};"
                " make them the same size"
            )
        return Sample(self.stems[index], image, mask)

    def image(self, index: int) -> Image.Image:
        """Reads one photo alone, RGB."""
        return load_image(self.image_paths[index])

    @abstractmethod
    def mask(self, index: int) -> NDArray[np.int32]:
        """Reads one mask alone: (H, W), classes or the set's `ignore_index`."""

    def mask_of(self, index: int) -> str:
        """Says which mask it is, for errors."""
        return f"the mask of {self.stems[index]!r}"


class FolderDataset(PhotoSet):
    """Photos and masks of one folder, read when asked for and checked strictly.

    Attributes:
        root: the folder.
        class_names: K names of classes.txt, synonyms included; a name that stands on several lines is one class.
        background_line0: whether line 0 is no class but "background" or "none": what the set did not label.
        ignore_index: the mask value of pixels without a label: 255, or 65535 where there are more than 255 classes.
        stems: N names of the photos, in the split's order, or sorted.
        image_paths: N files.
        mask_paths: N files.
    """

    def __init__(self, root: str | Path, split: str | None = None) -> None:
        """Lists the files; nothing is decoded yet.

        Args:
            root: the folder that holds `images`, `masks` and `classes.txt`.
            split: read only the stems in `SPLIT.txt`, e.g. "val"; None: every photo.

        Raises:
            DataError: a part of the layout is missing or empty, a photo has no mask, or a name stands twice.
        """
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(
                f"data set folder {str(self.root)!r} does not exist; give the folder that holds images/ and masks/"
            )
        lines = read_class_lines(self.root / "classes.txt")
        self.class_names, self._class_of_line = merge_repeated(lines)
        self.background_line0 = self.class_names[0].lower() in BACKGROUND_NAMES
        self.ignore_index = 255 if len(lines) <= 255 else 65535
        photos = files_by_stem(self.root / "images", SUFFIXES)
        masks = files_by_stem(self.root / "masks", MASK_SUFFIXES)
        self.stems = tuple(sorted(photos)) if split is None else read_split(self.root, split)
        self.image_paths = tuple(_find(photos, stem, self.root / "images", "photo") for stem in self.stems)
        self.mask_paths = tuple(_find(masks, stem, self.root / "masks", "mask") for stem in self.stems)

    def mask_of(self, index: int) -> str:
        """Says which mask it is, for errors."""
        return f"mask {str(self.mask_paths[index])!r}"

    def mask(self, index: int) -> NDArray[np.int32]:
        """Reads one mask alone: (H, W).

        Raises:
            ImageError: the file cannot be decoded.
            DataError: the mask is not one value a pixel, or holds a value that is no class.
        """
        path = self.mask_paths[index]
        mask = np.asarray(read_mask(path)).astype(np.int32)
        if mask.ndim != 2:
            raise DataError(f"mask {str(path)!r} has {mask.shape[-1]} channels; save it with one label value a pixel")
        values = np.unique(mask)
        lines = len(self._class_of_line)
        unknown = values[((values < 0) | (values >= lines)) & (values != self.ignore_index)]
        if unknown.size:
            listed = ", ".join(str(value) for value in unknown[:5]) + (", ..." if unknown.size > 5 else "")
            raise DataError(
                f"mask {str(path)!r} holds the values {listed}, but classes.txt has {lines} lines"
                f" (0 to {lines - 1}; {self.ignore_index} = not labelled)"
            )
        known = mask != self.ignore_index
        mask[known] = self._class_of_line[mask[known]]
        return mask


def read_class_lines(path: Path) -> tuple[str, ...]:
    """Reads the class names: a line's number is its mask value, so an empty line in between is an error."""
    if not path.is_file():
        raise DataError(f"{str(path)!r} is missing; write one class name a line, in the order of the mask values")
    names = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    if not names:
        raise DataError(f"{str(path)!r} is empty; write one class name a line, in the order of the mask values")
    for number, name in enumerate(names):
        if not name:
            raise DataError(
                f"line {number + 1} of {str(path)!r} is empty; each line is a mask value, so name it or remove it"
            )
    return tuple(names)


def merge_repeated(lines: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """Makes one class of lines with one name, as label tools export them: the names, and the class of each line."""
    first: dict[str, int] = {}
    class_of_line = [first.setdefault(line.lower(), len(first)) for line in lines]
    names = [lines[class_of_line.index(number)] for number in range(len(first))]
    return tuple(names), np.array(class_of_line, dtype=np.int32)


def read_split(root: Path, split: str) -> tuple[str, ...]:
    """Reads the stems of a split."""
    path = root / f"{split}.txt"
    if not path.is_file():
        splits = [file.stem for file in root.glob("*.txt") if file.name != "classes.txt"]
        hint = did_you_mean(split, splits) if splits else "the folder has none, leave the split out"
        raise DataError(f"{str(root)!r} has no split {split!r}; {hint}")
    stems = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not stems:
        raise DataError(f"{str(path)!r} is empty; write one photo name a line, without suffix")
    if len(set(stems)) < len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise DataError(f"{str(path)!r} lists {twice!r} twice; each photo counts once")
    return tuple(stems)


def files_by_stem(folder: Path, suffixes: Collection[str]) -> dict[str, Path]:
    """Maps stems, subfolders included, to the files of a folder."""
    if not folder.is_dir():
        raise DataError(f"folder {str(folder)!r} is missing; a data set needs images/, masks/ and classes.txt")
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in suffixes or path.name.startswith(".") or not path.is_file():
            continue
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in files:
            raise DataError(f"{str(folder)!r} holds both {files[stem].name!r} and {path.name!r}; keep one file a name")
        files[stem] = path
    if not files:
        raise DataError(f"folder {str(folder)!r} holds no files that end in " + ", ".join(sorted(suffixes)))
    return files


def _find(files: dict[str, Path], stem: str, folder: Path, what: str) -> Path:
    if stem not in files:
        raise DataError(f"{what} {stem!r} is missing in {str(folder)!r}; add it or take it off the list")
    return files[stem]
