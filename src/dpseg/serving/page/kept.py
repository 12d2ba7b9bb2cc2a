"""What the page keeps of a visitor's last photo, small enough for many visitors: to correct, compare and download."""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from dpseg.errors import PromptError, did_you_mean
from dpseg.images import load_image, read_mask
from dpseg.photos import CROP_SOURCE
from dpseg.result import Segmentation
from dpseg.serving.prompt_requests import PromptRequest

DOWNLOADS = {
    "overlay": ("_overlay.png", "image/png"),
    "png": ("_labels.png", "image/png"),
    "json": ("_result.json", "application/json"),
    "coco": ("_coco.json", "application/json"),
}
"""What can be downloaded: the ending of its name, and its media type."""

_QUALITY = 95


@dataclass(frozen=True, eq=False)
class PageReference:
    """A reference picture of a visitor.

    Attributes:
        name: of the class.
        picture: a JPEG or PNG file.
        mask: a PNG file of the same size, not 0 on the thing; None: the whole picture is meant.
    """

    name: str
    picture: bytes
    mask: bytes | None = None


@dataclass(frozen=True, eq=False)
class KeptResult:
    """A segmentation in little memory, and what it was made of.

    Attributes:
        photo: the file.
        name: of the file.
        asked: the classes that were looked for.
        result: without its photo, labels left out and logits in half precision.
        labels: as `Segmentation.encoded("png")` writes them.
        refine: whether it was looked at twice.
        background: as for `Segmenter`.
    """

    photo: bytes
    name: str
    asked: PromptRequest
    result: Segmentation
    labels: bytes
    refine: bool
    background: float | None

    @property
    def names(self) -> tuple[str, ...]:
        """All classes that were looked for."""
        return self.result.names

    def segmentation(self) -> Segmentation:
        """Returns the whole of it, with its photo and its corrections."""
        stored = read_mask(Image.open(io.BytesIO(self.labels))).astype(np.int32)
        none = 255 if len(self.names) <= 255 else 65535
        labels = np.where(stored == none, -1, stored).astype(np.int32)
        logits = self.result.logits.astype(np.float32)
        photo = load_image(Image.open(io.BytesIO(self.photo)))
        return dataclasses.replace(self.result, labels=labels, logits=logits, image=photo, source=self.name)

    def corrected(self, mask: npt.NDArray[np.bool_], name: str) -> KeptResult:
        """Returns the result with a class given to some pixels.

        Args:
            mask: of any size in the photo's proportions, True where the class is.
            name: of the class.

        Raises:
            PromptError: the mask is empty, or the class was not looked for.
        """
        if name not in self.names:
            raise PromptError(f"{name!r} was not looked for; {did_you_mean(name, self.names)}")
        if not mask.any():
            raise PromptError("nothing is marked; paint over the region, or draw a box around it")
        whole = self.segmentation()
        labels = np.where(_resized(mask, whole.labels.shape), self.names.index(name), whole.labels).astype(np.int32)
        return dataclasses.replace(self, labels=dataclasses.replace(whole, labels=labels).encoded("png"))

    def reference(self, mask: npt.NDArray[np.bool_], name: str) -> PageReference:
        """Returns a region of the photo as a reference picture, at the size from which refinement cuts its crops."""
        photo = load_image(Image.open(io.BytesIO(self.photo)))
        scale = min(1.0, CROP_SOURCE / max(photo.size))
        size = max(1, round(photo.width * scale)), max(1, round(photo.height * scale))
        buffer = io.BytesIO()
        photo.resize(size, Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=_QUALITY)
        return PageReference(name, buffer.getvalue(), mask_file(_resized(mask, size[::-1])))

    def download(self, kind: str) -> tuple[str, str, bytes]:
        """Returns the file name, media type and content of one of `DOWNLOADS`."""
        ending, media = DOWNLOADS[kind]
        data = self.labels if kind == "png" else self.segmentation().encoded(kind)
        return Path(self.name).stem + ending, media, data


def keep(
    result: Segmentation,
    photo: bytes,
    name: str,
    asked: PromptRequest,
    refine: bool,
    background: float | None,
) -> KeptResult:
    """Packs a segmentation; the arguments are the attributes of `KeptResult`."""
    bare = dataclasses.replace(
        result,
        labels=np.zeros((0, 0), dtype=np.int32),
        logits=result.logits.clip(-60, 60).astype(np.float16),  # float32 again when used
        image=None,
        source=None,
    )
    return KeptResult(photo, name, asked, bare, result.encoded("png"), refine, background)


def mask_file(mask: npt.NDArray[np.bool_]) -> bytes:
    """Returns a mask (H, W) as a PNG file, 255 on the thing."""
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, "PNG")
    return buffer.getvalue()


def _resized(mask: npt.NDArray[np.bool_], shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Returns a mask at another height and width."""
    picture = Image.fromarray(mask.astype(np.uint8) * 255).resize((shape[1], shape[0]), Image.Resampling.NEAREST)
    return np.asarray(picture) > 0
