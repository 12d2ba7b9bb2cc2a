"""Reference pictures: a picture with an optional mask or box -> the square crop that the visual prompt encoder sees.

Refinement cuts what Inference I found out of the test image with the same `crop_region`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from dpseg.config import Context
from dpseg.errors import PromptError, did_you_mean
from dpseg.images import ImageLike, load_image, read_mask, to_tensor
from dpseg.prompts.context import with_context

if TYPE_CHECKING:
    from PIL import Image

Mask = npt.NDArray[np.bool_]
Box = tuple[float, float, float, float]

MIN_SIDE = 16
"""A crop shows at least so many pixels of the picture a side: a smaller region comes with what is around it."""

_LOSSY = (".jpg", ".jpeg", ".jfif", ".webp", ".avif")
_NUMBER = r"\s*-?\d+(?:\.\d+)?\s*"
_BOX = re.compile(rf"{_NUMBER}(?:,{_NUMBER}){{3}}")


@dataclass(frozen=True)
class _Square:
    """The part of a picture that a crop shows: it may reach beyond the picture.

    Attributes:
        left: first column, below 0 where the square is wider than the picture.
        top: first row.
        side: in pixels.
    """

    left: int
    top: int
    side: int

    def visible(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Returns the part within the picture, (x0, y0, x1, y1)."""
        return max(self.left, 0), max(self.top, 0), min(self.left + self.side, width), min(self.top + self.side, height)


@dataclass(frozen=True, eq=False)
class Reference:
    """A picture of a class, and where in it the thing is: a mask, a box, or (with neither) the whole picture.

    Attributes:
        image: anything that `load_image` takes.
        mask: a file, PIL image or array of the picture's size, nonzero on the thing. Floats, and files of lossy
            formats, count from half of their range on.
        box: (x0, y0, x1, y1) in pixels, x1 and y1 exclusive.
        context: what surrounds the thing in the crop; of a whole picture, it does not count.
    """

    image: ImageLike
    mask: ImageLike | None = None
    box: Box | None = None
    context: Context = "keep"

    def __post_init__(self) -> None:
        if self.mask is not None and self.box is not None:
            raise PromptError(f"reference {_describe(self.image)} has both a mask and a box; give one of them")
        if self.context not in get_args(Context):
            hint = did_you_mean(str(self.context), get_args(Context))
            raise PromptError(f"context {self.context!r} of reference {_describe(self.image)} is unknown; {hint}")

    def crop(self, size: int, margin: float = 0.1) -> tuple[Tensor, Tensor]:
        """Cuts the thing out, as `crop_region` does; without mask or box the whole picture, without a margin.

        Args:
            size: side of the crop in pixels.
            margin: as for `crop_region`.

        Returns:
            The crop (3, size, size), RGB in [0, 1], and its mask (size, size), 1 on the thing.

        Raises:
            ImageError: The picture or the mask cannot be read.
            PromptError: The mask is empty or not of the picture's size, or the box is not within the picture.
        """
        from PIL import Image

        image, place = self.read()
        mask = np.ones((image.height, image.width), dtype=np.bool_) if place is None else place
        square = _square(_bounds(mask), image.width, image.height, 0.0 if place is None else margin)
        box = square.visible(image.width, image.height)
        window, stencil = image.crop(box), Image.fromarray(mask).convert("L").crop(box)
        factor = square.side // (4 * size)  # averaging whole blocks first saves the memory of a large photo in floats
        if factor > 1:
            window, stencil = window.reduce(factor), stencil.reduce(factor)
        weights = torch.from_numpy(np.array(stencil)).float() / 255
        crop, cut = _letterbox(to_tensor(window), weights, square, box, size)
        return crop if place is None else with_context(crop, cut, self.context), cut

    def read(self) -> tuple[Image.Image, Mask | None]:
        """Returns the picture, RGB, and where in it the thing is, (H, W) bool; None: the whole picture.

        Raises:
            ImageError: The picture or the mask cannot be read.
            PromptError: The mask is empty or not of the picture's size, or the box is not within the picture.
        """
        image = load_image(self.image)
        return image, self._mask(image)

    def _mask(self, image: Image.Image) -> Mask | None:
        if self.box is not None:
            return _box_mask(self.box, image, _describe(self.image))
        if self.mask is None:
            return None
        mask = _read(self.mask)
        if mask.ndim != 2:
            raise PromptError(
                f"mask {_describe(self.mask)} has shape {mask.shape}; give one value a pixel, (height, width)"
            )
        if mask.shape != (image.height, image.width):
            have = " x ".join(str(side) for side in reversed(mask.shape))
            raise PromptError(
                f"mask {_describe(self.mask)} is {have}, but its picture {_describe(self.image)} is"
                f" {image.width} x {image.height}; make them the same size"
            )
        if not mask.any():
            raise PromptError(
                f"mask {_describe(self.mask)} is empty; mark the thing with values above 0, or leave the mask out"
            )
        return mask


def crop_region(image: Tensor, mask: Tensor, size: int, margin: float = 0.1) -> tuple[Tensor, Tensor]:
    """Cuts a region out of a photo, with what is around it, as a square.

    The square is centred on the region's bounding box, and moved into the photo where it would leave it on one side.
    Where it is larger than the photo, the rest has the crop's mean colour and mask 0.

    Args:
        image: (3, H, W), RGB in [0, 1].
        mask: (H, W) bool, on the photo's device.
        size: side of the crop in pixels.
        margin: so much is added on each side, as a fraction of the bounding box's longer side.

    Returns:
        The crop (3, size, size), RGB in [0, 1], and its mask (size, size), float in [0, 1].

    Raises:
        PromptError: The mask is empty or not of the photo's size.
    """
    height, width = image.shape[-2:]
    if mask.shape != (height, width):
        raise PromptError(
            f"the mask has shape {tuple(mask.shape)}, its photo {height} x {width}; make them the same size"
        )
    square = _square(_bounds(mask.cpu().numpy()), width, height, margin)
    box = x0, y0, x1, y1 = square.visible(width, height)
    return _letterbox(image[:, y0:y1, x0:x1], mask[y0:y1, x0:x1].to(image), square, box, size)


def parse_reference(text: str) -> tuple[str, Reference]:
    """Reads NAME=PICTURE, NAME=PICTURE:MASK or NAME=PICTURE:x0,y0,x1,y1.

    The first "=" ends the name. A ":" after a drive letter or within the name of an existing file does not end the
    picture.

    Returns:
        The class's name and the reference; no file is opened yet.

    Raises:
        PromptError: The name, the picture or what follows the ":" is missing.
    """
    name, equals, rest = (part.strip() for part in text.partition("="))
    if not equals or not name or not rest:
        raise PromptError(f"reference {text!r} is not NAME=PICTURE; write, e.g., mug=mug.jpg or mug=shelf.jpg:mask.png")
    picture, extra = _split_picture(rest)
    if not picture or extra == "":
        raise PromptError(
            f"reference {text!r} has nothing {'after' if picture else 'before'} the ':'; write PICTURE:MASK"
        )
    if extra is None:
        return name, Reference(picture)
    if _BOX.fullmatch(extra):
        x0, y0, x1, y1 = (float(number) for number in extra.split(","))
        return name, Reference(picture, box=(x0, y0, x1, y1))
    return name, Reference(picture, mask=extra)


def _split_picture(text: str) -> tuple[str, str | None]:
    """Splits PICTURE:MASK; where several colons could part them, existing files decide, then the first."""
    if Path(text).is_file():
        return text, None
    splits = []
    for position in (match.start() for match in re.finditer(":", text)):
        before, after = text[:position], text[position + 1 :]
        drive = re.search(r"(?:^|:)[A-Za-z]$", before) and after[:1] in ("/", "\\")
        if not drive and not after.startswith("//"):  # nor in a URL
            splits.append((before.strip(), after.strip()))
    for before, after in splits:
        if Path(before).is_file():
            return before, after
    return splits[0] if splits else (text, None)


def _read(source: ImageLike) -> Mask:
    """Returns a mask as bools, (H, W); other shapes are passed on for the caller to refuse."""
    if isinstance(source, str | Path):
        stored = read_mask(source)
        return np.asarray(stored > 127 if Path(source).suffix.lower() in _LOSSY else stored != 0)
    values: npt.NDArray[Any] = source.detach().cpu().numpy() if isinstance(source, Tensor) else np.asarray(source)
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values.squeeze(0 if values.shape[0] == 1 else 2)
    if values.ndim == 3 and values.shape[2] == 3 and (values[..., :1] == values[..., 1:]).all():  # grey, saved as RGB
        values = values[..., 0]
    return np.asarray(values >= 0.5 if np.issubdtype(values.dtype, np.floating) else values != 0)


def _box_mask(box: Box, image: Image.Image, name: str) -> Mask:
    x0, y0, x1, y1 = (round(value) for value in box)
    if not (0 <= x0 < x1 <= image.width and 0 <= y0 < y1 <= image.height):
        raise PromptError(
            f"box {x0},{y0},{x1},{y1} is not within {name}, which is {image.width} x {image.height};"
            " give x0,y0,x1,y1 in pixels with x0 < x1 and y0 < y1"
        )
    mask = np.zeros((image.height, image.width), dtype=np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def _describe(source: ImageLike) -> str:
    return f"{str(source)!r}" if isinstance(source, str | Path) else f"({type(source).__name__})"


def _bounds(mask: Mask) -> tuple[int, int, int, int]:
    """Returns the bounding box (x0, y0, x1, y1) of a mask's true pixels, x1 and y1 exclusive."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not rows.size:
        raise PromptError("the mask is empty; mark the thing with values above 0")
    y0, y1 = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(mask[y0:y1].any(axis=0))
    return int(columns[0]), y0, int(columns[-1]) + 1, y1


def _square(bounds: tuple[int, int, int, int], width: int, height: int, margin: float) -> _Square:
    x0, y0, x1, y1 = bounds
    side = max(round(max(x1 - x0, y1 - y0) * (1 + 2 * margin)), MIN_SIDE)
    return _Square(_start((x0 + x1 - side) // 2, side, width), _start((y0 + y1 - side) // 2, side, height), side)


def _start(start: int, side: int, length: int) -> int:
    """Moves a span into [0, length); centres it on that where it does not fit."""
    return (length - side) // 2 if side >= length else min(max(start, 0), length - side)


def _letterbox(
    window: Tensor, mask: Tensor, square: _Square, box: tuple[int, int, int, int], size: int
) -> tuple[Tensor, Tensor]:
    """Resizes the visible part (3, h, w) of a square and its mask (h, w), and puts them where they belong in it."""
    scale = size / square.side
    left, right = (min(round((x - square.left) * scale), size) for x in (box[0], box[2]))
    top, bottom = (min(round((y - square.top) * scale), size) for y in (box[1], box[3]))
    left, top = min(left, size - 1), min(top, size - 1)  # a line thinner than a pixel of the crop still fills one
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    crop, weights = (_resize(part, bottom - top, right - left) for part in (window, mask[None]))
    if crop.shape[-2:] != (size, size):
        inner, inner_weights = crop, weights
        crop = inner.mean((1, 2), keepdim=True).expand(-1, size, size).clone()
        crop[:, top:bottom, left:right] = inner
        weights = inner_weights.new_zeros(1, size, size)
        weights[:, top:bottom, left:right] = inner_weights
    return crop, weights[0]


def _resize(picture: Tensor, height: int, width: int) -> Tensor:
    """Resizes (C, h, w) to (C, height, width); antialiased, so that thin things keep their share of the mask."""
    return F.interpolate(picture[None], (height, width), mode="bilinear", antialias=True, align_corners=False)[0]
