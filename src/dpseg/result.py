"""Segmentation: what the model saw in one photo, as labels, scores and areas, drawn and saved."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dpseg import __version__, interchange
from dpseg.draw import found_entries, overlay
from dpseg.errors import ConfigError, PromptError, did_you_mean
from dpseg.files import make_folder, write_atomically

if TYPE_CHECKING:  # torch is not needed to look at a result
    from dpseg.model.class_logits import Decoded

FORMATS = {
    "png": "_labels.png",
    "json": "_result.json",
    "overlay": "_overlay.png",
    "coco": "_coco.json",
    "panoptic": "_panoptic.json",
    "labelstudio": "_labelstudio.json",
    "npz": "_scores.npz",
}
"""The formats that `Segmentation.save` knows, and the ending that each adds to the photo's name."""

PANOPTIC_MAP = "_panoptic.png"
"""What "panoptic" writes beside its JSON file."""


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """One photo's segmentation into K named classes.

    Attributes:
        labels: int32 (H, W), at the photo's size: index into `names`, -1 where there is no class.
        names: K.
        logits: float32 (K, h, w), at the model's own resolution; any size, any real number, -inf included. Of more than
            `dpseg.model.class_logits.ALL_CLASSES` classes only those of `kept`, (k, h, w).
        image: the RGB photo, (H, W); None when it was not kept.
        source: path of the photo's file; None when it did not come from one.
        prompts: for each class where its prompts came from, e.g. ("text", "reference"); may be empty.
        kept: int64 (k,), the classes that `logits` has rows for, ascending; None: all.
        certainties: float32 (K,), each class's mean score over its own pixels, where not all logits are there.
    """

    labels: npt.NDArray[np.int32]
    names: tuple[str, ...]
    logits: npt.NDArray[np.float32]
    image: Image.Image | None = None
    source: str | None = None
    prompts: tuple[tuple[str, ...], ...] = ()
    kept: npt.NDArray[np.int64] | None = None
    certainties: npt.NDArray[np.float32] | None = None

    @classmethod
    def of(
        cls,
        decoded: Decoded,
        names: tuple[str, ...],
        image: Image.Image | None = None,
        source: str | None = None,
        prompts: tuple[tuple[str, ...], ...] = (),
    ) -> Segmentation:
        """Makes it of what was decoded; the other arguments are the attributes."""
        labels = decoded.labels()
        rows, kept = decoded.spread(len(names))
        logits: npt.NDArray[np.float32] = rows.float().cpu().numpy()
        if kept is None:
            return cls(labels, names, logits, image, source, prompts)
        certainties = decoded.labelling.mean_scores(len(names))
        return cls(labels, names, logits, image, source, prompts, kept.cpu().numpy(), certainties)

    def __repr__(self) -> str:
        height, width = self.labels.shape
        found = ", ".join(f"{name} {area:.1%}" for name, area in self.areas.items())
        return f"Segmentation({width} x {height}: {found or 'nothing found'})"

    def _repr_png_(self) -> bytes:
        """Shows the overlay in a notebook."""
        return _png(self.plot())

    @property
    def scores(self) -> npt.NDArray[np.float32]:
        """How well each class of `logits` fits each pixel: float32 (K, H, W), or (k, H, W), in [0, 1].

        Sigmoid of the bilinearly resized logits, computed anew each time, because it is K times the photo's size.
        """
        return self._scores_of(slice(None))

    @cached_property
    def areas(self) -> dict[str, float]:
        """Share of the photo, in (0, 1], of each class that was found, largest first."""
        return {entry.name: entry.area for entry in found_entries(self.labels, self.names) if entry.index >= 0}

    @cached_property
    def confidences(self) -> dict[str, float]:
        """Mean score, in [0, 1], of each class that was found over its own pixels, in the order of `areas`."""
        found = {name: self.names.index(name) for name in self.areas}
        if self.certainties is not None:
            return {name: float(self.certainties[index]) for name, index in found.items()}
        return {
            name: float(self._scores_of(slice(index, index + 1))[0][self.labels == index].mean())
            for name, index in found.items()
        }

    def logits_of(self, names: Sequence[str]) -> npt.NDArray[np.float32]:
        """Returns the logits of some classes, (n, h, w); a class that was not kept has a score of 0 everywhere.

        Raises:
            PromptError: One was not asked for.
        """
        indices = [self._index(name) for name in names]
        if self.kept is None:
            return self.logits[indices]
        rows = {index: row for row, index in enumerate(self.kept.tolist())}
        nothing = np.full_like(self.logits[0], -1e4)
        return np.stack([self.logits[rows[index]] if index in rows else nothing for index in indices])

    def mask(self, name: str) -> npt.NDArray[np.bool_]:
        """Returns where a class is: bool (H, W), all False when it was not found.

        Raises:
            PromptError: It was not asked for.
        """
        mask: npt.NDArray[np.bool_] = self.labels == self._index(name)
        return mask

    def plot(self) -> Image.Image:
        """Draws the regions over the photo with their names on them, and a legend in a strip below."""
        return overlay(self.image, self.labels, self.names)

    def show(self) -> None:
        """Opens the overlay in the system's picture viewer."""
        self.plot().show()

    def to_dict(self) -> dict[str, Any]:
        """Returns what was found as JSON values: size, classes with area and confidence, all names."""
        height, width = self.labels.shape
        classes = [
            {
                "name": entry.name,
                "index": entry.index,
                "area": round(entry.area, 6),
                "confidence": round(self.confidences[entry.name], 4),
                "color": list(entry.colour),
                "prompts": list(self.prompts[entry.index]) if self.prompts else [],
            }
            for entry in found_entries(self.labels, self.names)
            if entry.index >= 0
        ]
        return {
            "source": self.source,
            "width": width,
            "height": height,
            "classes": classes,
            "none": round(float((self.labels < 0).mean()), 6),
            "names": list(self.names),
            "dpseg": __version__,
        }

    def to_coco(self, by_region: bool = False) -> dict[str, Any]:
        """Returns the segmentation in COCO's annotation format, with run-length encoded masks.

        Ids begin at 1; a category's id is its label value plus 1, and every class is listed as a category.

        Args:
            by_region: one annotation for each connected region (8 neighbours) instead of one for each class.
        """
        annotations = interchange.coco_annotations(self.labels, self._found(), self.confidences, by_region)
        return interchange.coco_file(
            self.labels.shape, self.source, annotations, interchange.coco_categories(self.names)
        )

    def to_panoptic(self, file_name: str | None = None) -> dict[str, Any]:
        """Returns the segmentation in COCO's panoptic format; the map itself is `panoptic_picture`.

        Nothing here tells two things of a class apart, so each class is one segment, and no category is a "thing".

        Args:
            file_name: of the map; None: as `save` names it.
        """
        name = file_name or self._stem() + PANOPTIC_MAP
        annotation = {"image_id": 1, "file_name": name, "segments_info": interchange.panoptic_segments(self.labels)}
        return interchange.coco_file(
            self.labels.shape, self.source, [annotation], interchange.panoptic_categories(self.names)
        )

    def panoptic_picture(self) -> Image.Image:
        """Returns COCO's panoptic map, RGB (H, W): R + 256 G + 65536 B is the label value plus 1; 0 = none."""
        return Image.fromarray(interchange.panoptic_map(self.labels))

    def to_label_studio(self) -> list[dict[str, Any]]:
        """Returns a task for Label Studio with one brush mask a class as pre-annotation; a list, as its import takes.

        `data.image` is the photo's file name: put the address in its place under which Label Studio finds the photo.
        """
        return [interchange.label_studio_task(self.labels, self._found(), self.confidences, self.source)]

    def save(
        self,
        folder: str | Path,
        stem: str | None = None,
        formats: Sequence[str] = ("png", "json", "overlay"),
    ) -> list[Path]:
        """Writes files into a folder, which is made if need be; a file of the same name is replaced, in one step.

        Args:
            folder: where to.
            stem: beginning of the files' names; None: the photo's own name without its ending, or "image".
            formats: any of `FORMATS`: "png" (label map whose pixel is the label value, with a palette, 255 = none;
                above 255 classes 16-bit, 65535 = none), "json" (`to_dict`), "overlay" (`plot`), "coco" (`to_coco`),
                "panoptic" (`panoptic_picture`, then `to_panoptic`), "labelstudio" (`to_label_studio`), "npz" (labels,
                logits, names, and classes: which of them each row of the logits is of).

        Returns:
            The files, in the order of `formats`.

        Raises:
            ConfigError: A format is unknown.
            OutputError: The folder cannot be written, or the disk is full.
        """
        for name in formats:
            if name not in FORMATS:
                raise ConfigError(f"format {name!r} is unknown; {did_you_mean(name, FORMATS)}")
        folder = make_folder(folder)
        stem = stem or self._stem()
        files = []
        for name in formats:
            if name == "panoptic":
                files.append(write_atomically(folder / (stem + PANOPTIC_MAP), _png(self.panoptic_picture())))
            files.append(write_atomically(folder / (stem + FORMATS[name]), self.encoded(name, stem)))
        return files

    def encoded(self, name: str, stem: str | None = None) -> bytes:
        """Returns the content of a file that `save` would write.

        Args:
            name: one of `FORMATS`.
            stem: as for `save`.
        """
        if name == "png":
            return _png(interchange.label_picture(self.labels, len(self.names)))
        if name == "overlay":
            return _png(self.plot())
        if name == "npz":
            buffer = io.BytesIO()
            rows = np.arange(len(self.names)) if self.kept is None else self.kept
            np.savez_compressed(
                buffer, labels=self.labels, logits=self.logits, names=np.array(self.names), classes=rows
            )
            return buffer.getvalue()
        content: object = self.to_dict()
        if name == "coco":
            content = self.to_coco()
        elif name == "panoptic":
            content = self.to_panoptic(None if stem is None else stem + PANOPTIC_MAP)
        elif name == "labelstudio":
            content = self.to_label_studio()
        return (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()

    def _stem(self) -> str:
        return Path(self.source).stem if self.source else "image"

    def _found(self) -> dict[int, str]:
        """Returns the classes that were found, by index, largest first."""
        return {self.names.index(name): name for name in self.areas}

    def _index(self, name: str) -> int:
        if name not in self.names:
            raise PromptError(
                f"{name!r} is not among the classes of this segmentation; {did_you_mean(name, self.names)}"
            )
        return self.names.index(name)

    def _scores_of(self, classes: slice) -> npt.NDArray[np.float32]:
        """Returns the scores of some classes, float32 (k, H, W)."""
        import torch
        from torch.nn import functional

        # Bounded, because an interpolation that meets -inf gives NaN; at 60 a sigmoid is 0 or 1 all the same.
        logits = torch.from_numpy(self.logits[classes]).clamp(-60, 60)
        size = self.labels.shape[-2:]
        scores = functional.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0].sigmoid_()
        values: npt.NDArray[np.float32] = scores.numpy()
        return values


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=4)  # twice as fast as the default, 5 % larger
    return buffer.getvalue()
