"""Pictures sorted into folders that are named after what they show, without masks (the layout of ImageFolder).

ROOT/NAME/PICTURE.jpg   underscores in NAME stand for spaces
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpseg.data.folder import PhotoSet
from dpseg.errors import DataError
from dpseg.images import SUFFIXES, load_image


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
        """Lists the files.

        Args:
            root: the folder that holds a folder for each name.
            without: names whose pictures are left out.

        Raises:
            DataError: there is no such folder, or it holds no folders with pictures.
        """
        self.root = Path(root)
        files = sorted(self.root.glob("*/*")) if self.root.is_dir() else []
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
