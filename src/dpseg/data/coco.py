"""COCO files: outlines of objects, as label tools export them too, and panoptic maps.

An instance file holds "images", "annotations" with polygons or RLE, and "categories" with any ids. What nobody outlined
is class 0, "background". A panoptic file's annotations name a PNG each, whose pixels hold R + 256 G + 65536 B = the id
of a segment; 0 = not labelled.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dpseg.data.coco_photos import PhotoFinder, tidy_name
from dpseg.data.coco_shapes import Shape, decode, to_shape
from dpseg.data.folder import BACKGROUND_NAMES, PhotoSet
from dpseg.data.labelled import ignore_index_for, shipped_names
from dpseg.errors import DataError
from dpseg.images import MAX_PIXELS, load_image

Entry = dict[str, Any]

BACKGROUND = "background"
_OFFICIAL = {133: "coco", 80: "coco80"}  # number of categories -> list with readable names in the order of the ids
_ENDINGS = ("-merged", "-other", "-stuff")


class CocoSet(PhotoSet):
    """Photos and masks of a COCO file of either kind, read when asked for.

    Attributes:
        file: the JSON file.
        root: the folder of the photos.
        class_names: K names in the order of the categories' ids; categories with one name are one class.
        background_line0: True for outlines: class 0 is "background", what nobody outlined.
        ignore_index: the value of pixels without a label, 255 or 65535.
        stems: N names of the photos, in the file's order.
        image_paths: N files.
    """

    def __init__(self, file: Path, photos: Path | None = None, panoptic: Path | None = None) -> None:
        """Reads the file; no photo is decoded yet.

        Args:
            file: the JSON file.
            photos: folder of the photos; None: the file's folder, or the one above "annotations".
            panoptic: folder of the PNG files of a panoptic file; None: beside it, with its name.

        Raises:
            DataError: the file cannot be read, is no COCO file, or contradicts itself.
        """
        self.file = file
        content = _read(file)
        images: list[Entry] = content["images"]
        annotations: list[Entry] = content["annotations"]
        self._panoptic = any("segments_info" in annotation for annotation in annotations)
        self.root = photos or (file.parent.parent if file.parent.name == "annotations" else file.parent)
        self.background_line0 = not self._panoptic
        self.class_names, self._class_of_category = _classes(file, content, self.background_line0)
        self.ignore_index = ignore_index_for(len(self.class_names))
        finder = PhotoFinder(self.root)
        self.stems = _stems(file, images)
        self.image_paths = tuple(finder.find(str(image["file_name"])) for image in images)
        self._images = images
        self._annotations = _by_image(file, images, annotations)
        self._maps = panoptic or file.with_suffix("")
        if self._panoptic and not self._maps.is_dir():
            raise DataError(
                f"folder {str(self._maps)!r} is missing; {file.name} needs the PNG files of {self._maps.name}.zip in it"
            )

    def image(self, index: int) -> Image.Image:
        """Reads one photo alone, RGB.

        Raises:
            ImageError: it cannot be decoded.
            DataError: it is missing.
        """
        path = self.image_paths[index]
        if not path.is_file():
            raise DataError(
                f"photo {str(path)!r} is missing; give the folder of the photos of {self.file.name} as root"
            )
        return load_image(path)

    def mask_of(self, index: int) -> str:
        """Says which mask it is, for errors."""
        return f"the mask of {self.stems[index]!r} in {str(self.file)!r}"

    def mask(self, index: int) -> NDArray[np.int32]:
        """Draws one mask alone: (H, W).

        Raises:
            ImageError: a file cannot be decoded.
            DataError: a file is missing, or an annotation cannot be drawn.
        """
        return self._segments(index) if self._panoptic else self._outlines(index)

    def _outlines(self, index: int) -> NDArray[np.int32]:
        """Draws the objects from the largest to the smallest; of equal ones the later is in front."""
        height, width = self._size(index)
        shapes: list[Shape] = []
        for annotation in self._annotations[index]:
            shape = to_shape(annotation, height, width, self.file.name)
            if shape is not None:
                shapes.append(shape)
        mask = np.zeros((height, width), dtype=np.int32)
        for shape in sorted(shapes, key=lambda shape: -shape.area):
            if shape.category not in self._class_of_category:
                raise DataError(f"{shape.what} has category {shape.category}, which the file does not list")
            mask[decode(shape)] = self._class_of_category[shape.category]
        return mask

    def _segments(self, index: int) -> NDArray[np.int32]:
        annotations = self._annotations[index]
        if len(annotations) != 1:
            raise DataError(f"{self.file.name} has {len(annotations)} maps for photo {self.stems[index]!r}, not one")
        path = self._maps / str(annotations[0]["file_name"])
        if not path.is_file():
            raise DataError(f"panoptic map {str(path)!r} is missing; {self._maps.name}.zip holds it")
        channels = np.asarray(load_image(path)).astype(np.int32)
        ids = channels[..., 0] + 256 * channels[..., 1] + 65536 * channels[..., 2]
        try:
            segments = {int(one["id"]): int(one["category_id"]) for one in annotations[0]["segments_info"]}
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{self.file.name}: the segments of {path.name} need an id and a category_id each; export them again"
            ) from error
        values, places = np.unique(ids, return_inverse=True)
        classes = np.full(len(values), self.ignore_index, dtype=np.int32)
        for place, value in enumerate(values.tolist()):
            if value == 0:
                continue
            if value not in segments or segments[value] not in self._class_of_category:
                raise DataError(
                    f"panoptic map {str(path)!r} holds segment {value}, which {self.file.name} does not list"
                )
            classes[place] = self._class_of_category[segments[value]]
        return classes[places].reshape(ids.shape)

    def _size(self, index: int) -> tuple[int, int]:
        """Returns (height, width) as the file has it, or of the photo where the file leaves it out."""
        image = self._images[index]
        height, width = image.get("height"), image.get("width")
        if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0:
            if height * width > MAX_PIXELS:
                raise DataError(
                    f"{self.file.name}: photo {self.stems[index]!r} of {width} x {height} pixels is too large;"
                    f" the limit is {MAX_PIXELS:,} pixels"
                )
            return height, width
        photo = load_image(self.image_paths[index])
        return photo.height, photo.width


def _read(file: Path) -> dict[str, list[Entry]]:
    """Reads a COCO file and looks whether it is one."""
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise DataError(f"{file}: is not JSON ({error}); export the labels again") from error
    for key in ("images", "annotations", "categories"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(f"{file}: has no list {key!r}, so it is not a COCO file; export the labels as COCO")
    if not content["images"]:
        raise DataError(f"{file}: lists no photos; export some that are labelled")
    for key, needed in (
        ("images", ("id", "file_name")),
        ("categories", ("id", "name")),
        ("annotations", ("image_id",)),
    ):
        for number, entry in enumerate(content[key]):
            parts = (*needed, "file_name") if "segments_info" in entry else needed
            missing = [part for part in parts if part not in entry]
            if missing:
                raise DataError(f"{file}: entry {number} of {key!r} has no {missing[0]!r}; export the labels as COCO")
            wrong = [part for part in needed if part != "name" and not isinstance(entry[part], int | str)]
            if wrong or (key == "categories" and not isinstance(entry["id"], int)):
                part = wrong[0] if wrong else "id"
                raise DataError(f"{file}: entry {number} of {key!r} has the {part} {entry[part]!r}; give it a number")
    return {key: content[key] for key in ("images", "annotations", "categories")}


def _classes(file: Path, content: dict[str, list[Entry]], background: bool) -> tuple[tuple[str, ...], dict[int, int]]:
    """Returns the names of the classes, and the class of each category's id.

    A category that is only the heading of others, as Roboflow writes one, is left out; one that is called "background"
    or "none" is class 0 of outlines.
    """
    used = {annotation.get("category_id") for annotation in content["annotations"]}
    headings = {category.get("supercategory") for category in content["categories"]}
    categories = [
        category
        for category in sorted(content["categories"], key=lambda category: int(category["id"]))
        if not background
        or category["id"] in used
        or category["name"] not in headings - {category.get("supercategory")}
    ]
    names = [str(category["name"]) for category in categories]
    if len(names) in _OFFICIAL and names[0] == "person" and names[-1] in ("rug-merged", "toothbrush"):
        readable = shipped_names(_OFFICIAL[len(names)])
    else:
        readable = tuple(_readable(name) for name in names)
    first = {BACKGROUND: 0} if background else {}
    shown = [BACKGROUND] if background else []
    class_of: dict[int, int] = {}
    for category, name in zip(categories, readable, strict=True):
        key = BACKGROUND if background and name.lower() in BACKGROUND_NAMES else name.lower()
        if key not in first:
            first[key] = len(shown)
            shown.append(name)
        class_of[int(category["id"])] = first[key]
    if len(shown) == background:
        raise DataError(f"{file}: has no category that could be a class; export the labels with their names")
    return tuple(shown), class_of


def _readable(name: str) -> str:
    """Returns "traffic light" for "traffic_light" and "wall" for "wall-other-merged"."""
    for _ in range(2):
        for ending in _ENDINGS:
            name = name.removesuffix(ending)
    return " ".join(name.replace("_", " ").split()) or "unnamed"


def _stems(file: Path, images: Sequence[Entry]) -> tuple[str, ...]:
    stems = [tidy_name(str(image["file_name"])).with_suffix("").as_posix() for image in images]
    twice = [stem for stem, count in Counter(stems).items() if count > 1]
    if twice:
        raise DataError(f"{file}: lists photo {twice[0]!r} twice; each photo counts once")
    return tuple(stems)


def _by_image(file: Path, images: Sequence[Entry], annotations: Sequence[Entry]) -> list[list[Entry]]:
    """Sorts the annotations by photo."""
    place = {image["id"]: number for number, image in enumerate(images)}
    if len(place) < len(images):
        raise DataError(f"{file}: gives one id to two photos; export the labels again")
    sorted_ones: list[list[Entry]] = [[] for _ in images]
    for annotation in annotations:
        if annotation["image_id"] not in place:
            raise DataError(
                f"{file}: an annotation belongs to photo {annotation['image_id']!r}, which the file does not list;"
                " export the labels again"
            )
        sorted_ones[place[annotation["image_id"]]].append(annotation)
    return sorted_ones
