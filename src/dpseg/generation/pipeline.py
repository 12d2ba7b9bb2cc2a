"""A text-to-image pipeline of diffusers, called with what its signature takes.

Nothing of a pipeline is replaced: a safety checker that it brings stays on. Code that a pipeline's folder holds is not
run.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from dpseg.errors import ConfigError, MissingExtraError, WeightsError
from dpseg.generation.source import Found, import_diffusers
from dpseg.model.clip_weights import one_line

_FLAGS = ("nsfw_content_detected", "nsfw_detected")  # names of what a safety checker says, by pipeline
_PARAMETERS = {
    "negative": "negative_prompt",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "size": "height",
}  # field of `Wishes` -> argument of a pipeline's call


@dataclass(frozen=True)
class Wishes:
    """What a user may ask of a pipeline; None: the pipeline's own default.

    Attributes:
        negative: what is not to be seen; empty: nothing is said.
        steps: of denoising, 1 or more.
        guidance: how closely the words are followed, 0 or more.
        size: side of the square pictures in pixels.
    """

    negative: str = ""
    steps: int | None = None
    guidance: float | None = None
    size: int | None = None


class Painter:
    """A loaded pipeline.

    Attributes:
        pipeline: of diffusers.
        name: as the user gave it.
    """

    def __init__(self, pipeline: Any, name: str) -> None:
        """Takes a pipeline as it is.

        Raises:
            ConfigError: it does not paint pictures from words.
        """
        self.pipeline = pipeline
        self.name = name
        self._kind = type(pipeline).__name__
        self._parameters = inspect.signature(pipeline.__call__).parameters
        missing = [needed for needed in ("prompt", "generator") if needed not in self._parameters]
        if missing:
            raise ConfigError(f"{name}: a {self._kind} takes no {missing[0]}; give a pipeline that paints from words")

    @classmethod
    def load(cls, found: Found, dtype: torch.dtype, device: torch.device) -> Painter:
        """Loads a pipeline from its folder.

        Raises:
            WeightsError: the folder is no complete pipeline.
            MissingExtraError: a package that the pipeline needs is not installed.
            ConfigError: the memory is too small, or the pipeline does not paint from words.
        """
        try:
            pipeline = _load(found, dtype).to(device)
        except ImportError as error:
            raise MissingExtraError(
                f"{found.name} needs a package that is not installed ({one_line(error)}); run: pip install"
                " 'dpseg[generate]', then install what it names"
            ) from error
        except Exception as error:  # damaged files fail in many ways
            if _out_of_memory(error):
                raise ConfigError(
                    f"{found.name} does not fit in the memory of {device}; give --dtype 16, or --device cpu"
                ) from error
            raise WeightsError(
                f"{found.name}: cannot be loaded as a diffusers pipeline ({one_line(error)}); get its files again"
            ) from error
        pipeline.set_progress_bar_config(disable=True)
        return cls(pipeline, found.name)

    @property
    def has_safety_checker(self) -> bool:
        """Whether the pipeline flags pictures that are not fit for everyone."""
        return getattr(self.pipeline, "safety_checker", None) is not None

    def resolve(self, wishes: Wishes) -> Wishes:
        """Returns the wishes with the pipeline's own steps and guidance where there are none.

        Raises:
            ConfigError: a wish is one that the pipeline does not take.
        """
        for option, parameter in _PARAMETERS.items():
            if getattr(wishes, option) not in (None, "") and parameter not in self._parameters:
                raise ConfigError(f"{self.name}: a {self._kind} takes no --{option}; leave it out")
        return Wishes(
            negative=wishes.negative,
            steps=self._default("num_inference_steps") if wishes.steps is None else wishes.steps,
            guidance=self._default("guidance_scale") if wishes.guidance is None else wishes.guidance,
            size=wishes.size,
        )

    def paint(self, sentences: Sequence[str], seeds: Sequence[int], wishes: Wishes) -> list[Image.Image | None]:
        """Paints pictures, each with a random generator of its own, so that it does not depend on the others.

        Args:
            sentences: N texts, one a picture.
            seeds: N seeds, in [0, 2^32).
            wishes: as `resolve` returned them.

        Returns:
            N pictures; None for those that the safety checker flags.

        Raises:
            ConfigError: the memory is too small, or the pipeline refuses its arguments.
        """
        # On the CPU, for a GPU's generator draws other numbers.
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        arguments = self._arguments(list(sentences), generators, wishes)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # e.g. of a picture that is not a number: it is rejected as blank
                output = self.pipeline(**arguments)
        except Exception as error:
            if _out_of_memory(error):
                raise ConfigError(
                    f"out of memory while painting {len(sentences)} at a time; give a smaller --batch-size, --dtype 16"
                    " or a smaller --size; what is painted so far is kept"
                ) from error
            if isinstance(error, ValueError | TypeError):
                raise ConfigError(
                    f"{self.name} cannot paint with these settings ({one_line(error)}); change them"
                ) from error
            raise
        pictures = getattr(output, "images", None)
        if not isinstance(pictures, list) or len(pictures) != len(sentences):
            raise ConfigError(f"{self.name}: a {self._kind} gives no list of pictures; give one that paints pictures")
        said = next((flags for name in _FLAGS if (flags := getattr(output, name, None)) is not None), None)
        flags = [False] * len(pictures) if said is None else said
        return [None if flag else picture for picture, flag in zip(pictures, flags, strict=True)]

    def _arguments(self, sentences: list[str], generators: list[torch.Generator], wishes: Wishes) -> Mapping[str, Any]:
        """Returns the arguments of a call, by name: those of them that the pipeline takes."""
        values = {
            "prompt": sentences,
            "negative_prompt": [wishes.negative] * len(sentences) if wishes.negative else None,
            "num_inference_steps": wishes.steps,
            "guidance_scale": wishes.guidance,
            "height": wishes.size,
            "width": wishes.size,
            "generator": generators,
            "output_type": "pil",
        }
        return {name: value for name, value in values.items() if value is not None and name in self._parameters}

    def _default(self, parameter: str) -> Any:
        default = self._parameters[parameter].default if parameter in self._parameters else None
        return default if isinstance(default, int | float) else None


def _load(found: Found, dtype: torch.dtype) -> Any:
    """Returns a pipeline on the CPU, as the kind that paints from words where diffusers has one of that family."""
    diffusers = import_diffusers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what its modules use of torch
        try:
            auto = diffusers.AutoPipelineForText2Image
            return auto.from_pretrained(found.folder, dtype=dtype, local_files_only=True)
        except ValueError:  # a kind that diffusers does not list
            return diffusers.DiffusionPipeline.from_pretrained(found.folder, dtype=dtype, local_files_only=True)


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)
