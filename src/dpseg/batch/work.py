"""One block of pictures, segmented and written: the same function in one process and in many."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from dpseg.batch.manifest import LABELS, part_name
from dpseg.batch.pictures import open_item
from dpseg.batch.rows import Row, broken_row, encode_rows, row_of
from dpseg.batch.sources import Item
from dpseg.batch.store import Store
from dpseg.config import RefineConfig
from dpseg.errors import DPSegError, ImageError
from dpseg.lookahead import look_ahead
from dpseg.matching import Matching
from dpseg.precision import Precision
from dpseg.prompts.prompt_set import PromptSet
from dpseg.rejection import Rejection
from dpseg.segmenter import Segmenter

FORMATS = ("parquet", "png")
"""parquet: masks in the table; png: label maps beside it."""

_AHEAD = 4  # files that are read before they are needed


@dataclass(frozen=True)
class Job:
    """All that a worker has to know; it can be sent to another process.

    Attributes:
        out: address of the results.
        prompts: the classes.
        model: name, folder or hub id.
        formats: of `FORMATS`.
        refine: run Inference II; None: as suits the model.
        refinement: which regions become prompts of Inference II.
        background: threshold in [0, 1]; None: no pixel is "none".
        size: encoder's input size in pixels; None: the model's own.
        matching: how prompts are compared with a picture; None: as the model's config says.
        rejection: which classes of a long list are given up early; None: as the model's config says.
        precision: of the numbers that the model computes in.
        device: None: CUDA where there is a GPU.
        batch_size: pictures at a time; None: as suits the device.
    """

    out: str
    prompts: PromptSet
    model: str = "dpseg-lite"
    formats: tuple[str, ...] = ("parquet",)
    refine: bool | None = None
    refinement: RefineConfig = field(default_factory=RefineConfig)
    background: float | None = None
    size: int | None = None
    matching: Matching | None = None
    rejection: Rejection | None = None
    precision: Precision = "32"
    device: str | None = None
    batch_size: int | None = None

    def segmenter(self, device: str | None = None) -> Segmenter:
        """Loads the model.

        Args:
            device: another than `device`.

        Raises:
            DPSegError: as `Segmenter.from_pretrained`.
        """
        loaded = Segmenter.from_pretrained(
            self.model,
            device or self.device,
            matching=self.matching,
            rejection=self.rejection,
            precision=self.precision,
        )
        loaded.refinement = self.refinement
        return loaded

    def results(self) -> dict[str, Any]:
        """Returns what of it decides the results, besides the model and the classes, as JSON values."""
        return {
            "formats": sorted(self.formats),
            "refine": self.refine,
            "background": self.background,
            "size": self.size,
        }


class BlockWork:
    """Segments blocks with one model."""

    def __init__(self, job: Job, segmenter: Segmenter) -> None:
        """Takes a model that `Job.segmenter` loaded."""
        self._job, self._segmenter, self._store = job, segmenter, Store(job.out)

    def __call__(self, number: int, items: Sequence[Item], step: Callable[[], None] | None = None) -> None:
        """Segments a block and writes its part at the very end; a block that has its part is passed over.

        Args:
            number: of the block.
            items: its pictures.
            step: called after each picture.

        Raises:
            PromptError: the prompts are of another model.
            ConfigError: an option is out of range.
            OutputError: a result cannot be written.
        """
        if not self._store.exists(part_name(number)):
            rows: dict[str, Row] = {}
            for item, result in self._results(items):
                rows[item.key] = self._kept(item, result)
                if step is not None:
                    step()
            self._store.write(part_name(number), encode_rows([rows[item.key] for item in items]))

    def _kept(self, item: Item, result: Any) -> Row:
        """Writes the label map where it is wanted, and returns the row."""
        if isinstance(result, DPSegError):
            return broken_row(item.key, result)
        if "png" in self._job.formats:
            self._store.write(f"{LABELS}/{item.key}.png", result.encoded("png"))
        return row_of(item.key, result, "parquet" in self._job.formats)

    def _results(self, items: Sequence[Item]) -> Iterator[tuple[Item, Any]]:
        """Yields items with their segmentation, or with what is wrong with them; these come a little early."""
        unreadable: deque[tuple[Item, ImageError]] = deque()
        given: deque[Item] = deque()

        def pictures() -> Iterator[Image.Image]:
            for item, picture in look_ahead(items, _open, _AHEAD):
                if isinstance(picture, ImageError):
                    unreadable.append((item, picture))
                else:
                    given.append(item)
                    yield picture

        job = self._job
        results = self._segmenter.stream(
            pictures(),
            job.prompts,
            batch_size=job.batch_size,
            refine=job.refine,
            background=job.background,
            size=job.size,
        )
        for _, result in results:
            yield given.popleft(), result
            while unreadable:
                yield unreadable.popleft()
        yield from unreadable


def _open(item: Item) -> Image.Image | ImageError:
    try:
        return open_item(item)
    except ImageError as error:
        return error
