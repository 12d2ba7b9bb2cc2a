"""What an exported file says of itself: all that has to be known around the graph."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from dpseg.errors import ConfigError, WeightsError
from dpseg.plain_values import Loadable

KEY = "dpseg"
"""Under this key an ONNX file's metadata hold it, and a torch.export file's extra files."""

VERSION = 1
"""Of the format."""

PROMPT_INPUTS = ("text", "visual", "stage2", "stage3", "stage4", "has_text", "has_visual")
"""The graph's inputs besides `image`, in order, named as in a prompt set's file; none where prompts are frozen in."""


@dataclass(frozen=True)
class About(Loadable):
    """What an exported file says of itself.

    Attributes:
        version: of this format.
        dpseg: version of dpseg that wrote it.
        model: name, folder or hub id, as it was given.
        prompts: fingerprint of the encoder; prompt sets of another encoder do not fit.
        image_size: as `ModelConfig`, in pixels.
        keep_aspect: as `ModelConfig`.
        shortest_edge: as `ModelConfig`, in pixels.
        stride: sides of the graph's image are multiples of it, in pixels.
        templates: M of the prompts.
        visual_prompts: Mv of the prompts.
        mirrored_scales: as `ModelConfig`; the graph sees one view, and whoever runs it averages them.
        presence: as `ModelConfig`.
        resize_scores: as `ModelConfig`.
        names: the K classes of the prompts that are frozen in; None: prompts are inputs.
        sources: where the frozen prompts came from, one a class; may be empty.
        adjustment: of the frozen prompts, see `PromptEmbeddings`; K numbers, or empty.
    """

    version: int
    dpseg: str
    model: str
    prompts: str
    image_size: int
    keep_aspect: bool
    shortest_edge: int | None
    stride: int
    templates: int
    visual_prompts: int
    mirrored_scales: tuple[float, ...]
    presence: float
    resize_scores: bool
    names: tuple[str, ...] | None = None
    sources: tuple[tuple[str, ...], ...] = ()
    adjustment: tuple[float, ...] = ()

    def to_json(self) -> str:
        """Returns it as one line."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, where: str) -> About:
        """Reads what `to_json` wrote.

        Args:
            text: as it stands in the file.
            where: the file, for the error.

        Raises:
            WeightsError: It is damaged, or of a newer version.
        """
        try:
            values: Any = json.loads(text)
            version = values["version"]
            if version > VERSION:
                raise WeightsError(f"{where}: format version {version} is newer than {VERSION}; update dpseg")
            return cls.from_dict(values)
        except (ValueError, KeyError, TypeError, ConfigError) as error:
            raise WeightsError(f"{where}: what it says of itself is damaged ({error}); export it again") from error
