"""Pictures by name, without label masks: folders that are named after what they show (the layout of ImageFolder).

ROOT/NAME/PICTURE.jpg   underscores in NAME stand for spaces
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpseg.config import Context
from dpseg.data.folder import PhotoSet
from dpseg.errors import DataError
from dpseg.images import SUFFIXES, load_image
from dpseg.prompts.text import parse_class
from dpseg.prompts.visual import Reference, parse_reference


@dataclass(frozen=True, eq=False)
class NamedPicture:
    """A picture of something.

    Attributes:
        name: what it shows.
        reference: the picture, and where in it the thing is.
        source: how it was given.
    """

    name: str
    reference: Reference
    source: str


class PictureSet(PhotoSet):
    """Pictures of one thing each; the mask says of every pixel that it is that thing.

    Attributes:
        root: the folder.
        class_names: K names of its folders.
        background_line0: False.
        ignore_index: 65535.
        stems: N names of pictures, NAME/PICTURE.
        image_paths: N files.
    """

    background_line0 = False
    ignore_index = 65535

    def __init__(self, root: str | Path, without: Collection[str] = ()) -> None:
        """Lists the files; names that begin with a dot are passed over.

        Args:
            root: the folder that holds a folder for each name.
            without: names whose pictures are left out.

        Raises:
            DataError: there is no such folder, or it holds no folders with pictures.
        """
        self.root = Path(root)
        files = sorted(self.root.glob("[!.]*/[!.]*")) if self.root.is_dir() else []
        owners = [(path.parent.name.replace("_", " "), path) for path in files if path.suffix.lower() in SUFFIXES]
        if not owners:
            raise DataError(f"{str(self.root)!r} holds no pictures; lay them out as NAME/PICTURE.jpg below it")
        self.class_names = tuple(dict.fromkeys(name for name, _ in owners))
        self.image_paths = tuple(path for name, path in owners if name not in without)
        self.stems = tuple(path.relative_to(self.root).with_suffix("").as_posix() for path in self.image_paths)
        self._class = {name: number for number, name in enumerate(self.class_names)}

    def shown(self, index: int) -> int:
        """Returns which class a picture shows."""
        return self._class[self.image_paths[index].parent.name.replace("_", " ")]

    def mask(self, index: int) -> NDArray[np.int32]:
        """Returns the picture's class for all its pixels: (H, W)."""
        width, height = load_image(self.image_paths[index]).size
        return np.full((height, width), self.shown(index), dtype=np.int32)


def folder_pictures(folder: Path) -> list[NamedPicture]:
    """Lists FOLDER/NAME/PICTURE.jpg; underscores in NAME stand for spaces.

    Raises:
        DataError: there is no such folder, or it holds no such pictures.
    """
    found = PictureSet(folder)
    names = [parse_class(name).name for name in found.class_names]
    return [
        NamedPicture(names[found.shown(index)], Reference(path), str(path))
        for index, path in enumerate(found.image_paths)
    ]


def reference_pictures(references: Sequence[str], context: Context = "keep") -> list[NamedPicture]:
    """Reads NAME=PICTURE, NAME=PICTURE:MASK or NAME=PICTURE:x0,y0,x1,y1; no file is opened yet.

    Args:
        references: texts of this form.
        context: what surrounds the thing in the crops.

    Raises:
        PromptError: one is not of this form.
    """
    found = []
    for text in references:
        name, reference = parse_reference(text)
        source = text.partition("=")[2].strip()
        found.append(NamedPicture(parse_class(name).name, replace(reference, context=context), source))
    return found
