"""A picture of any size -> its segmentation: tile by tile, in the memory of a strip, going on where it was stopped."""

from __future__ import annotations

import dataclasses
import hashlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dpseg import __version__
from dpseg.errors import ConfigError
from dpseg.images import ImageLike
from dpseg.large.blend import Blender, TileLogits
from dpseg.large.grid import Axis, Tiling
from dpseg.large.result import LargeSegmentation, check_formats, overlay_step, write_large
from dpseg.large.strips import Strip, StripStore, label_type, none_value
from dpseg.large.windows import Windows, open_windows
from dpseg.lookahead import look_ahead
from dpseg.memory import release_free_memory
from dpseg.model.fingerprint import weights_fingerprint
from dpseg.model.matching import with_whole
from dpseg.model.preprocess import MAX_SIZE, MIN_SIZE
from dpseg.photos import Photo, load_photo
from dpseg.prompts.prompt_set import PromptSet
from dpseg.segmenter import GPU_BATCH, Segmenter

_PARTS = "_tiles.part"  # ending of the folder that holds what is finished


@dataclass(frozen=True)
class TileOptions:
    """How large pictures are segmented.

    Attributes:
        tiling: how they are cut.
        background: threshold in [0, 1]; pixels whose best score is below it get no class. None: no such pixels.
        size: another input size of the encoder in pixels than the model's own.
        batch_size: tiles at a time; None: as suits the device.
    """

    tiling: Tiling = dataclasses.field(default_factory=Tiling)
    background: float | None = None
    size: int | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.background is not None and not 0 <= self.background <= 1:
            raise ConfigError(f"background {self.background} is out of range; give a threshold from 0 to 1")
        if self.size is not None and not MIN_SIZE <= self.size <= MAX_SIZE:
            raise ConfigError(f"size {self.size} is out of range; give {MIN_SIZE} to {MAX_SIZE} pixels")
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"batch size {self.batch_size} is out of range; give 1 or more")


def segment_large(
    segmenter: Segmenter,
    image: ImageLike,
    prompts: PromptSet,
    folder: str | Path,
    stem: str | None = None,
    *,
    options: TileOptions | None = None,
    formats: Sequence[str] = ("png", "json", "overlay"),
) -> LargeSegmentation:
    """Segments a picture in tiles and writes the result.

    A TIFF is read by windows; any other picture is in memory as a whole. What was finished before an interruption is
    used again. Each tile is looked at by itself: Inference I, without the config's `presence`.

    Args:
        segmenter: the model.
        image: as `Segmenter.__call__`.
        prompts: what `Segmenter.prompts` or `PromptSet.load` returned; encoded once for all tiles.
        folder: where to; made if need be.
        stem: beginning of the files' names; None: the picture's own name without its ending, or "image".
        options: how; None: tiles of 1024 pixels that overlap by a quarter.
        formats: any of `LARGE_FORMATS`.

    Raises:
        ImageError: the picture cannot be read.
        PromptError: the prompts are of another model.
        ConfigError: a format does not go with tiles.
        OutputError: the folder cannot be written, or the disk is full.
        MissingExtraError: the extra "tiff" is missing.
    """
    source = Path(image) if isinstance(image, str | Path) else None
    with open_windows(image) as picture:
        place = Path(folder), stem or ("image" if source is None else source.stem)
        return LargeRun(segmenter, picture, source, prompts, place, options or TileOptions(), formats).segment()


class LargeRun:
    """The segmentation of one large picture.

    Attributes:
        tiles: so many there are.
        tiles_left: so many are still to be looked at.
        finished: rows of tiles that an earlier run has finished.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        picture: Windows,
        source: Path | None,
        prompts: PromptSet,
        place: tuple[Path, str],
        options: TileOptions,
        formats: Sequence[str],
    ) -> None:
        """Looks what an earlier run has left.

        Args:
            segmenter: the model.
            picture: open.
            source: its file; None: it has none, and nothing is used again.
            prompts: of that model.
            place: folder of the results, and beginning of their names.
            options: how.
            formats: as for `segment_large`.
        """
        check_formats(formats)
        self._model, self._device = segmenter.model, segmenter.device
        self._picture, self._source, self._options, self._formats = picture, source, options, tuple(formats)
        self._place = place
        self._prompts = segmenter.usable(prompts)
        self._down, self._across = (Axis.cut(side, options.tiling) for side in (picture.height, picture.width))
        self._blender = Blender(
            self._down,
            self._across,
            options.background,
            scores=segmenter.model.config.resize_scores,
            adjustment=self._prompts.embeddings.adjustment,
        )
        self._step = overlay_step(picture.width, picture.height)
        self._batch = options.batch_size or (1 if self._device.type == "cpu" else GPU_BATCH)
        self._store = StripStore(place[0] / f"{place[1]}{_PARTS}", self._setting())
        self.finished = min(self._store.finished(), len(self._down.starts))
        self._again = [] if self.finished == len(self._down.starts) else self._blender.rows_before(self.finished)
        self.tiles = len(self._down.starts) * len(self._across.starts)
        self.tiles_left = (len(self._down.starts) - self.finished + len(self._again)) * len(self._across.starts)

    @torch.inference_mode()
    def segment(self, advance: Callable[[], None] = lambda: None) -> LargeSegmentation:
        """Segments what is left and writes the result.

        Args:
            advance: called after each tile.

        Raises:
            ImageError: the picture is damaged.
            OutputError: the disk is full.
        """
        for row in self._again:  # whose lower part the first new strip needs
            for column, (_, tile) in enumerate(self._tiles(row)):
                self._blender.keep(row, column, tile)
                self._blender.drop(row, column)
                advance()
        for row in range(self.finished, len(self._down.starts)):
            self._store.write(row, self._strip(row, advance))
            release_free_memory()
        count = len(self._prompts)
        found = LargeSegmentation(
            self._picture.width,
            self._picture.height,
            self._prompts.names,
            tuple(sum(self._store.each("counts"), np.zeros(count + 1, dtype=np.int64)).tolist()),
            tuple(sum(self._store.each("sums"), np.zeros(count)).tolist()),
            self._options.tiling,
            None if self._source is None else str(self._source),
            self._prompts.sources,
        )
        found = write_large(found, self._store, self._picture.georeference, *self._place, self._formats)
        self._store.delete()
        return found

    def _strip(self, row: int, advance: Callable[[], None]) -> Strip:
        """Looks at a row of tiles."""
        count = len(self._prompts)
        rows = self._down.own(row)
        labels = np.empty((rows[1] - rows[0], self._across.length), dtype=label_type(count))
        counts, sums = np.zeros(count + 1, dtype=np.int64), np.zeros(count)
        photos, none = [], none_value(count)
        for column, (image, tile) in enumerate(self._tiles(row)):
            columns = self._across.own(column)
            found, scores = self._blender.add(row, column, tile)
            labels[:, slice(*columns)] = np.where(found < 0, none, found)
            counts += np.bincount(found.ravel() + 1, minlength=count + 1)
            sums += np.bincount(found.ravel() + 1, weights=scores.ravel(), minlength=count + 1)[1:]
            photos.append(self._small(image, row, column))
            advance()
        return Strip(labels, counts, sums, np.concatenate(photos, axis=1))

    def _tiles(self, row: int) -> Iterator[tuple[Image.Image, TileLogits]]:
        """Yields a row's tiles from left to right; the next are read in a thread meanwhile."""
        top, high, wide = self._down.starts[row], self._down.size, self._across.size
        config, stride = self._model.config, self._model.encoder.strides[-1]

        def load(left: int) -> Photo:
            window = self._picture.read(left, top, left + wide, top + high)
            return load_photo(window, config, stride, self._options.size)

        batch: list[Photo] = []
        for left, photo in look_ahead(self._across.starts, load, count=self._batch + 1):
            batch.append(photo)
            if len(batch) == self._batch or left == self._across.starts[-1]:
                yield from zip([one.image for one in batch], self._decode(batch), strict=True)
                batch = []

    def _decode(self, photos: Sequence[Photo]) -> Iterator[TileLogits]:
        pyramid = self._model.encode(torch.stack([photo.tensor for photo in photos]).to(self._device))
        config, prompts = self._model.config, self._prompts.embeddings
        for index in range(len(photos)):
            mine = with_whole(pyramid.image(index), prompts, config.fusion, config.matching.whole)
            blocks = self._model.decode_blocks(mine, prompts)
            yield TileLogits.of(blocks, config.resize_scores, prompts.adjustment)

    def _small(self, tile: Image.Image, row: int, column: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Returns the pixels of the small picture that begin in what a tile finishes, (n, w, 3)."""
        box = []
        for axis, number in ((self._across, column), (self._down, row)):
            start = axis.starts[number]
            first, last = (-(-pixel // self._step) * self._step for pixel in axis.own(number))
            box.append((first - start, min(last, start + axis.size) - start))
        (left, right), (top, bottom) = box
        if right <= left or bottom <= top:
            return np.zeros((-(-(bottom - top) // self._step), -(-(right - left) // self._step), 3), dtype=np.uint8)
        return np.asarray(tile.crop((left, top, right, bottom)).reduce(self._step))

    def _setting(self) -> dict[str, Any]:
        """Returns all that decides the labels."""
        model, options = self._model, self._options
        weights = weights_fingerprint(model.encoder.fingerprint, model.saved_state().values())
        prompts = hashlib.sha256("\n".join(self._prompts.names).encode())
        for tensor in self._prompts.embeddings.tensors().values():
            prompts.update(tensor.cpu().contiguous().numpy().tobytes())
        return {
            "dpseg": __version__,
            "picture": uuid.uuid4().hex if self._source is None else _identity(self._source),
            "model": [weights, repr(model.config)],
            "prompts": prompts.hexdigest(),
            "tiling": dataclasses.astuple(options.tiling),
            "background": options.background,
            "size": options.size,
        }


def _identity(path: Path) -> list[Any]:
    """Returns what tells a file from another, or from an earlier version of it."""
    status = path.stat()
    return [str(path.absolute()), status.st_size, status.st_mtime_ns]
