"""Finds the photos that a COCO file names, as COCO itself and label tools write their names.

COCO            000000000139.jpg
CVAT            street/left.jpg, below images/ of the export
Label Studio    images/1a2b3c4d-left.jpg, where the file may be left.jpg, with backslashes on Windows;
                /data/local-files/?d=street%2Fleft.jpg
Roboflow        left_jpg.rf.0123456789abcdef.jpg, beside the file
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from dpseg.errors import DataError
from dpseg.images import SUFFIXES

_DRIVE = re.compile(r"^[A-Za-z]:$")
_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")


class PhotoFinder:
    """The photos below a folder, by name. They are listed once, and only when a name alone does not lead to its file.

    Attributes:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._by_name: dict[str, list[Path]] | None = None

    def find(self, file_name: str) -> Path:
        """Returns the file of a photo; where there is none, the place where it should be.

        Args:
            file_name: as the COCO file has it.

        Raises:
            DataError: the name fits several photos.
        """
        place = tidy_name(file_name)
        direct = self.root.joinpath(*place.parts)
        if direct.is_file():
            return direct
        for name in (place.name, _UPLOAD_PREFIX.sub("", place.name)):
            found = self._named(name)
            same_folder = [path for path in found if path.parent.name == place.parent.name]
            if len(same_folder) == 1 or len(found) == 1:
                return (same_folder or found)[0]
            if found:
                raise DataError(
                    f"{file_name!r} fits {str(found[0])!r} and {str(found[1])!r}; give the folder of the photos as root"
                )
        return direct

    def _named(self, name: str) -> list[Path]:
        if self._by_name is None:
            self._by_name = {}
            for path in sorted(self.root.rglob("*")):
                if path.suffix.lower() in SUFFIXES:
                    self._by_name.setdefault(path.name, []).append(path)
        return self._by_name.get(name, [])


def tidy_name(file_name: str) -> PurePosixPath:
    """Returns the path of a photo in a COCO file, without what leads out of the folder."""
    text = unquote(file_name).split("?d=")[-1].replace("\\", "/")
    parts = [part for part in PurePosixPath(text).parts if part not in ("/", "//", "..") and not _DRIVE.match(part)]
    return PurePosixPath(*parts) if parts else PurePosixPath("unnamed")
