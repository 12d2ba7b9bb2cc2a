"""DPSeg: name every pixel of a photo from words and reference pictures.

Give it an image, words and, where words are not enough, pictures of what is meant; get a category for every pixel.

Read the source in the order in which a picture flows:

1. `errors`, `config`: what can go wrong, and what a model is.
2. `images`: anything that is an image -> an RGB photo.
3. `prompts`: words and reference pictures -> a `PromptSet`.
4. `model`: (photo, `PromptSet`) -> logits. `model.encoders` states what an encoder gives, `model.cost_volume` holds the
   paper's formulas, `model.decoder` its decoder, and `model.dpseg` puts them together.
5. `refine`: what Inference I found becomes the prompts of Inference II.
6. `result`, `draw`: logits -> a `Segmentation`, drawn and saved.
7. `segmenter`: `Segmenter`, which does all of this in one call.
8. `data`, `training`, `evaluation`, `commands`, `cli`: what is built on it.

Names are loaded when they are first used, so `import dpseg` itself is instant and does not load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dpseg.config import ModelConfig
    from dpseg.data.vocabularies import load_vocabulary
    from dpseg.model.dpseg import DPSeg
    from dpseg.prompts.prompt_set import PromptSet
    from dpseg.prompts.visual import Reference
    from dpseg.result import Segmentation
    from dpseg.segmenter import Segmenter

__version__ = "0.1.0"

__all__ = [
    "DPSeg",
    "ModelConfig",
    "PromptSet",
    "Reference",
    "Segmentation",
    "Segmenter",
    "__version__",
    "load_vocabulary",
]

_HOMES = {
    "DPSeg": "dpseg.model.dpseg",
    "ModelConfig": "dpseg.config",
    "PromptSet": "dpseg.prompts.prompt_set",
    "Reference": "dpseg.prompts.visual",
    "Segmentation": "dpseg.result",
    "Segmenter": "dpseg.segmenter",
    "load_vocabulary": "dpseg.data.vocabularies",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'dpseg' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
