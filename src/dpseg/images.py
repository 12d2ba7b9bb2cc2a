"""Anything that is an image -> an RGB photo, the right way up; label masks as they were stored."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from dpseg.errors import ImageError

if TYPE_CHECKING:
    from torch import Tensor

ImageLike: TypeAlias = "str | Path | Image.Image | npt.NDArray[Any] | Tensor"

MAX_PIXELS = 100_000_000
"""Larger pictures are refused before they are decoded: at 100 million pixels the RGB values alone take 300 MB."""

SUFFIXES = frozenset(
    (".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
)
"""File name endings, in lower case, that count as pictures when a folder or a glob is searched."""

_ENDINGS = ", ".join(sorted(SUFFIXES))
_SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_FLOAT_TOLERANCE = 1e-3  # resampling overshoots a little
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what undoes it."""


def load_image(source: ImageLike) -> Image.Image:
    """Returns any image as an RGB photo.

    EXIF orientation is obeyed, transparency is laid over white, and the first frame of an animation is taken.

    Args:
        source: a path; a PIL image of any mode; an array (H, W) or (H, W, C); or a tensor (C, H, W), (H, W, C) or
            (H, W), with C = 1, 3 or 4. Values are uint8, uint16 (0 to 65535), other integers in [0, 255], bool, or
            floats in [0, 1].

    Raises:
        ImageError: The file is missing, unreadable or truncated; a side is below 1 or the picture has more than
            `MAX_PIXELS`; the shape or the values are none of those above.
    """
    if isinstance(source, str | Path):
        return _to_rgb(open_image(source), str(source))
    if isinstance(source, Image.Image):
        name = str(getattr(source, "filename", "")) or "the PIL image"
        _check_size(source.size, name)
        return _to_rgb(_decode(source, name), name)
    if isinstance(source, np.ndarray):
        return _from_array(source, "the array")
    if _is_tensor(source):
        return _from_array(_tensor_values(source), "the tensor")
    raise ImageError(
        f"a {type(source).__name__} is not an image; give a path, a PIL image, a numpy array or a tensor",
    )


def to_tensor(image: Image.Image) -> Tensor:
    """Returns a photo as a float tensor (3, H, W), RGB in [0, 1]."""
    import torch

    values = np.array(image.convert("RGB"))
    return torch.from_numpy(values).permute(2, 0, 1).float().div_(255)


def read_mask(source: str | Path | Image.Image) -> npt.NDArray[Any]:
    """Reads a label or binary mask as its stored values, (H, W), uint8 or int32.

    A palette keeps its indices and EXIF orientation is obeyed. Of a grey picture saved as RGB the one channel is taken,
    and of a cut-out, which has transparent parts, the alpha channel.

    Args:
        source: a path, or a PIL image as it was opened.

    Raises:
        ImageError: As `load_image`; or the picture has colours.
    """
    name = str(getattr(source, "filename", "") or "the PIL image") if isinstance(source, Image.Image) else str(source)
    mask = _decode(source, name) if isinstance(source, Image.Image) else open_image(source)
    if mask.mode in ("P", "L"):
        return np.array(mask)
    if mask.mode == "1":
        return np.array(mask, dtype=np.uint8)
    if mask.mode in _SIXTEEN_BIT:
        return np.array(mask).astype(np.int32)
    if mask.mode in ("LA", "PA", "RGBA", "RGB"):
        channels = np.array(mask.convert("RGBA"))
        alpha = channels[..., 3]
        if alpha.min() != alpha.max():
            return alpha
        if (channels[..., :1] == channels[..., 1:3]).all():
            return channels[..., 0]
    raise ImageError(
        f"{name}: a mask holds one value a pixel, this is in colour ({mask.mode}); save it as grey or palette PNG",
    )


def find_images(patterns: Sequence[str | Path]) -> list[Path]:
    """Returns the picture files that files, folders and globs name, sorted, each once.

    A file that is named itself is taken whatever its ending. Folders are searched with all that they hold, and so are
    those that a glob matches; there, endings other than `SUFFIXES` and names that begin with a dot are passed over.

    Raises:
        ImageError: A pattern matches no picture.
    """
    found: dict[str, Path] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_file():
            matches = [path]
        elif path.is_dir():
            matches = list(_pictures_below(path))
            if not matches:
                raise ImageError(f"{pattern}: the folder holds no pictures; known endings: {_ENDINGS}")
        else:
            matches = [match for name in glob.glob(str(path), recursive=True) for match in _pictures_below(Path(name))]
            if not matches and glob.has_magic(str(path)):
                raise ImageError(f"{pattern}: matches no pictures; known endings: {_ENDINGS}")
            if not matches:
                raise ImageError(f"{pattern}: no such file or folder; check the path")
        for match in matches:
            found.setdefault(os.path.abspath(match), match)
    return sorted(found.values())


def _pictures_below(path: Path) -> Iterator[Path]:
    if path.is_file():
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            yield path
        return
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                yield Path(folder, name)


def open_image(source: str | Path, limit: int | None = None) -> Image.Image:
    """Opens and decodes a file in its own colour mode, turned as its EXIF orientation says.

    Args:
        source: a path.
        limit: so many pixels at most, beside Pillow's own limit; None: `MAX_PIXELS`.

    Raises:
        ImageError: as `load_image`.
    """
    path = Path(source)
    with warnings.catch_warnings():
        # What Pillow warns of either ends as an ImageError below or does not matter; the limit is ours.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            size = path.stat().st_size
            image = Image.open(path)
        except FileNotFoundError as error:
            raise ImageError(f"{path}: no such file; check the path") from error
        except IsADirectoryError as error:
            raise ImageError(f"{path}: is a folder; name a picture in it") from error
        except Image.DecompressionBombError as error:
            most, advice = _most(limit)
            raise ImageError(f"{path}: far above the limit of {most:,} pixels; {advice}") from error
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise ImageError(f"{path}: cannot be opened ({error.strerror}); check its permissions") from error
            what = "not a picture, or damaged from its start" if size else "the file is empty"
            raise ImageError(f"{path}: {what}; copy it again, or save it as JPEG or PNG") from error
        with image:
            _check_size(image.size, str(path), limit)
            return _decode(image, str(path))


def _decode(image: Image.Image, name: str) -> Image.Image:
    """Returns a decoded copy, turned as its EXIF orientation says and without that note."""
    try:
        image.load()
    except Exception as error:  # Pillow's readers raise some ten kinds for a damaged file
        raise ImageError(f"{name}: truncated or damaged ({_one_line(error)}); copy or save it again") from error
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF data is no reason to refuse the picture
        turn = None
    copy = image.copy() if turn is None else image.transpose(turn)
    copy.info = {key: value for key, value in copy.info.items() if key == "transparency"}
    return copy


def _check_size(size: tuple[int, int], name: str, limit: int | None = None) -> None:
    (width, height), (most, advice) = size, _most(limit)
    if width < 1 or height < 1:
        raise ImageError(f"{name}: {width} x {height} pixels; both sides must be at least 1")
    if width * height > most:
        raise ImageError(f"{name}: {width} x {height} = {width * height:,} pixels, the limit is {most:,}; {advice}")


def _most(limit: int | None) -> tuple[int, str]:
    """Returns how many pixels a picture may have, and what to do with a larger one."""
    if limit is None:
        return MAX_PIXELS, "segment it in tiles (dpseg predict --tile 1024), or make it smaller"
    return limit, "save it as a TIFF, which is read by windows"


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Returns a decoded PIL image of any mode as RGB."""
    if image.mode in _SIXTEEN_BIT or image.mode == "F":
        values = np.asarray(image)
        return _from_array(values if image.mode == "F" else _sixteen_bit(values, name), name)
    try:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        return image.convert("RGB")
    except ValueError as error:
        raise ImageError(f"{name}: colour mode {image.mode} is not supported; save it as RGB") from error


def _sixteen_bit(values: npt.NDArray[Any], name: str) -> npt.NDArray[np.uint16]:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(f"{name}: values from {low} to {high} are not 16-bit; scale them to 0..65535 first")
    return values.astype(np.uint16)


def _is_tensor(source: object) -> bool:
    """Tells without importing torch, which a caller who has a tensor has done."""
    return any(kind.__module__.split(".")[0] == "torch" and kind.__name__ == "Tensor" for kind in type(source).__mro__)


def _tensor_values(tensor: Tensor) -> npt.NDArray[Any]:
    """Returns a tensor's values, channels last; (C, H, W) where both readings are possible."""
    tensor = tensor.detach().cpu()
    values: npt.NDArray[Any] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    if values.ndim == 3 and values.shape[0] in (1, 3, 4):
        return values.transpose(1, 2, 0)
    return values


def _from_array(values: npt.NDArray[Any], name: str) -> Image.Image:
    """Returns an array (H, W) or (H, W, C) as RGB."""
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[2] not in (1, 3, 4):
        raise ImageError(
            f"{name}: shape {values.shape} is not one image; give (H, W), (H, W, 3), (H, W, 4) or a tensor (3, H, W)",
        )
    _check_size((values.shape[1], values.shape[0]), name)
    pixels = np.ascontiguousarray(_to_uint8(values, name))
    if pixels.shape[2] == 1:
        return Image.fromarray(pixels[..., 0]).convert("RGB")
    return _to_rgb(Image.fromarray(pixels), name)


def _to_uint8(values: npt.NDArray[Any], name: str) -> npt.NDArray[np.uint8]:
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return np.where(values, np.uint8(255), np.uint8(0))
    if values.dtype == np.uint16:
        return (values.astype(np.float32) * (255 / 65535) + 0.5).astype(np.uint8)
    if not np.issubdtype(values.dtype, np.number) or np.iscomplexobj(values):
        raise ImageError(f"{name}: values of type {values.dtype} are not colours; use uint8, or floats in [0, 1]")
    whole = np.issubdtype(values.dtype, np.integer)
    top, slack = (255, 0.0) if whole else (1, _FLOAT_TOLERANCE)
    low, high = float(values.min()), float(values.max())
    if not (low >= -slack and high <= top + slack):  # also when one is NaN
        kind = "integers in [0, 255]" if whole else "floats in [0, 1]"
        raise ImageError(f"{name}: {values.dtype} values from {low:g} to {high:g} are not {kind}; scale them first")
    if whole:
        return values.astype(np.uint8)
    return (values.clip(0, 1).astype(np.float32) * 255 + 0.5).astype(np.uint8)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
