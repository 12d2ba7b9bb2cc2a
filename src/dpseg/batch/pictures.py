"""Reading one picture from wherever it is; what cannot be read gives an error that says why, in one line."""

from __future__ import annotations

import io
import warnings

from PIL import Image

from dpseg.batch.sources import Item, one_line, open_place
from dpseg.errors import DPSegError, ImageError


def open_item(item: Item) -> Image.Image:
    """Reads a picture's bytes and opens them; the pixels are decoded when they are first used.

    Raises:
        ImageError: it cannot be read, or is no picture.
    """
    data = _bytes(item)
    if not data:
        raise ImageError(f"{item.key}: the file is empty; copy it again, or save it as JPEG or PNG")
    with warnings.catch_warnings():
        # What Pillow warns of either ends as an ImageError, here or in `load_image`, or does not matter.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            image = Image.open(io.BytesIO(data))
        except Image.DecompressionBombError as error:
            raise ImageError(f"{item.key}: far too many pixels ({one_line(error)}); make it smaller") from error
        except Exception as error:  # Pillow's readers raise some ten kinds for a damaged file
            raise ImageError(
                f"{item.key}: not a picture, or damaged from its start; copy it again, or save it as JPEG or PNG"
            ) from error
    image.filename = item.key  # what `load_image` calls it
    return image


def _bytes(item: Item) -> bytes:
    try:
        place = open_place(item.address)
        if item.offset is None or item.size is None:
            return bytes(place.fs.cat_file(place.path))
        data = bytes(place.fs.cat_file(place.path, start=item.offset, end=item.offset + item.size))
    except FileNotFoundError as error:
        raise ImageError(f"{item.key}: no such file ({item.address}); check the path") from error
    except DPSegError as error:
        raise ImageError(f"{item.key}: {error}") from error
    except Exception as error:  # each protocol has its own kinds
        raise ImageError(
            f"{item.key}: {item.address} cannot be read ({one_line(error)}); check who may read it"
        ) from error
    if len(data) < item.size:
        raise ImageError(f"{item.key}: {item.address} ends before it; copy the shard again")
    return data
