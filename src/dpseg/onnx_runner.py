"""Runs what `dpseg export --format onnx` wrote, with onnxruntime alone: numpy, Pillow and safetensors, and no torch.

    python -m dpseg.onnx_runner model.onnx photo.jpg --prompts set.safetensors --out out

It labels as `dpseg predict --no-refine --max-classes all` does. There is no Inference II, and no encoder of words:
prompts come from `dpseg predict --save-prompts`, or are frozen in.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dpseg.errors import ConfigError, DPSegError, PromptError
from dpseg.exporting.about import PROMPT_INPUTS, About
from dpseg.exporting.pixels import input_of, label_map, mirrored_views, resize
from dpseg.exporting.session import OnnxSession
from dpseg.images import ImageLike, find_images, load_image
from dpseg.result import FORMATS, Segmentation

_KIND, _VERSION = "prompts", 1  # of a prompt set's file, see `PromptSet.save`


@dataclass(frozen=True, eq=False)
class Prompts:
    """A prompt set as arrays.

    Attributes:
        names: K classes.
        tensors: by name, as `PROMPT_INPUTS`; see `PromptEmbeddings` for their shapes.
        sources: for each class where its prompts came from.
        encoder: fingerprint of the encoder that made them.
        adjustment: (K,), see `PromptEmbeddings`; None: there is none.
    """

    names: tuple[str, ...]
    tensors: dict[str, npt.NDArray[Any]]
    sources: tuple[tuple[str, ...], ...]
    encoder: str
    adjustment: npt.NDArray[np.float32] | None = None

    @classmethod
    def load(cls, path: str | Path) -> Prompts:
        """Reads what `PromptSet.save` wrote.

        Raises:
            PromptError: The file is missing, damaged, or no prompt set.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise PromptError(f"{path}: no such file; check the path")
        try:
            with safe_open(path, framework="np") as file:
                head = json.loads((file.metadata() or {}).get("dpseg", "{}"))
                if head.get("kind") != _KIND or head.get("version", 0) > _VERSION:
                    raise PromptError(f"{path}: is no prompt set of this version; make it with predict --save-prompts")
                tensors = {name: file.get_tensor(name) for name in PROMPT_INPUTS}
                adjustment = file.get_tensor("adjustment") if "adjustment" in file.keys() else None  # noqa: SIM118
            sources = tuple(tuple(kinds) for kinds in head["sources"])
            return cls(tuple(head["names"]), tensors, sources, str(head["encoder"]), adjustment)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, PromptError):
                raise
            raise PromptError(f"{path}: cannot be read ({error}); make it again with predict --save-prompts") from error


class OnnxRunner:
    """An exported model that segments photos.

    Attributes:
        about: what its file says of itself.
    """

    def __init__(self, model: str | Path, threads: int | None = None) -> None:
        """Opens a file; the arguments and errors are those of `OnnxSession`."""
        self._session = OnnxSession(model, threads)
        self.about: About = self._session.about

    def check(self, prompts: Prompts | None) -> None:
        """Checks that prompts fit.

        Raises:
            PromptError: They are of another encoder or shape, missing, or there although they are frozen in.
        """
        about = self.about
        if about.names is not None:
            if prompts is not None:
                raise PromptError(f"this model has its {len(about.names)} classes in it; leave --prompts out")
            return
        if prompts is None:
            raise PromptError("this model takes its prompts as inputs; give --prompts SET.safetensors")
        if prompts.encoder != about.prompts:
            raise PromptError(
                f"these prompts were encoded by another model than {about.model}, or another version of it; make them"
                " again with that one"
            )
        shape = prompts.tensors["text"].shape[1], prompts.tensors["visual"].shape[1]
        if shape != (about.templates, about.visual_prompts):
            raise PromptError(
                f"these prompts have {shape[0]} templates and {shape[1]} visual prompts a class, the model takes"
                f" {about.templates} and {about.visual_prompts}; make them again with it"
            )

    def logits(self, image: npt.NDArray[np.float32], prompts: Prompts | None = None) -> npt.NDArray[np.float32]:
        """Returns the logits of an input (1, 3, H, W), averaged over the model's views: (K, h, w)."""
        tensors = None if prompts is None else prompts.tensors
        logits = self._session(image, tensors)[0]
        for view in mirrored_views(image, self.about):
            mirrored = np.ascontiguousarray(self._session(view, tensors)[0, :, :, ::-1])
            logits = logits + resize(mirrored, logits.shape[-2:])
        average: npt.NDArray[np.float32] = logits / np.float32(1 + len(self.about.mirrored_scales))
        return average

    def __call__(
        self,
        image: ImageLike,
        prompts: Prompts | None = None,
        *,
        background: float | None = None,
        size: int | None = None,
    ) -> Segmentation:
        """Segments one image.

        Args:
            image: anything that `load_image` takes.
            prompts: where they are inputs.
            background: threshold in [0, 1]; pixels that score below it get the label -1. None: no such pixels.
            size: another input size than the model's own, in pixels.

        Raises:
            PromptError: The prompts do not fit.
            ImageError: The image cannot be read.
            ConfigError: background or size is out of range.
        """
        if background is not None and not 0 <= background <= 1:
            raise ConfigError(f"background {background} is out of range; give a threshold from 0 to 1")
        self.check(prompts)
        names, sources = self.about.names or (), self.about.sources
        adjustment = np.array(self.about.adjustment, dtype=np.float32) if self.about.adjustment else None
        if prompts is not None:
            names, sources, adjustment = prompts.names, prompts.sources, prompts.adjustment
        photo = load_image(image)
        logits = self.logits(input_of(photo, self.about, size), prompts)
        labels, certainties = label_map(logits, (photo.height, photo.width), self.about, background, adjustment)
        source = str(image) if isinstance(image, str | Path) else None
        return Segmentation(labels, names, logits, photo, source, sources, None, certainties)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program, and returns its exit status: 0, or 2 for the user's mistake, in one line."""
    parser = argparse.ArgumentParser(prog="python -m dpseg.onnx_runner", description=__doc__.split("\n")[0])
    parser.add_argument("model", help="what dpseg export --format onnx wrote")
    parser.add_argument("photos", nargs="+", help="files, folders and globs")
    parser.add_argument("--prompts", help="what dpseg predict --save-prompts wrote")
    parser.add_argument("--out", default="out", help="folder of the results")
    parser.add_argument("--format", default="png,json", help="png, json, overlay, coco, npz, with commas")
    parser.add_argument("--background", type=float, help="pixels that score below it, 0 to 1, get no class")
    parser.add_argument("--size", type=int, help="input size in pixels; default: the model's own")
    parser.add_argument("--threads", type=int, help="of onnxruntime; default: one a core")
    asked = parser.parse_args(arguments)
    try:
        _run(asked)
    except DPSegError as error:
        print(f"dpseg: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _run(asked: argparse.Namespace) -> None:
    formats = tuple(part.strip() for part in asked.format.split(",") if part.strip())
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(f"format {name!r} is unknown; known: {', '.join(FORMATS)}")
    prompts = None if asked.prompts is None else Prompts.load(asked.prompts)
    runner = OnnxRunner(asked.model, asked.threads)
    runner.check(prompts)
    stems: Counter[str] = Counter()
    for photo in find_images(asked.photos):
        result = runner(photo, prompts, background=asked.background, size=asked.size)
        stems[photo.stem] += 1
        result.save(asked.out, photo.stem if stems[photo.stem] == 1 else f"{photo.name}-{stems[photo.stem]}", formats)
        print(f"{photo}: {', '.join(f'{name} {area:.1%}' for name, area in result.areas.items()) or 'nothing found'}")


if __name__ == "__main__":
    sys.exit(main())
