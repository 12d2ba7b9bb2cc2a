"""Scene: visual prompts that are carried from photo to photo of one place or video (ours).

Each photo is decoded once, with what earlier photos showed, and what is found in it helps the next ones. A class has a
moving average of what was found of it: `keep` is the weight of the past, so that a wrong find fades with every new one.
A class that is found no more keeps its average; start another scene where the place changes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dpseg.config import RefineConfig
from dpseg.prompts.prompt_set import PromptSet, VisualPrompts
from dpseg.refine import meet


class Scene:
    """What is known of K classes after some photos.

    Attributes:
        prompts: for the next photo; at first those that were given.
    """

    def __init__(self, prompts: PromptSet, config: RefineConfig) -> None:
        """Starts with no photo seen.

        Args:
            prompts: K classes, on the model's device.
            config: its `keep` and `blend`: the carried prompts meet those given as crops do in Inference II.
        """
        self.prompts = self._given = prompts
        self._config = config
        self._seen: dict[str, tuple[Tensor, ...]] = {}  # V (1, D) and GAP(V_j) of each class that was found

    def add(self, found: VisualPrompts | None) -> None:
        """Takes in what was found in a photo; None: nothing was."""
        if found is None:
            return
        keep, source = self._config.keep, found.source
        for row, name in enumerate(found.names):
            new = tuple(level[row] for level in (found.visual, *found.stages))
            old = self._seen.get(name, new)
            self._seen[name] = tuple(
                F.normalize(keep * a + (1 - keep) * b, dim=-1) for a, b in zip(old, new, strict=True)
            )
        names = tuple(name for name in self._given.names if name in self._seen)
        levels = [torch.stack(level) for level in zip(*(self._seen[name] for name in names), strict=True)]
        carried = VisualPrompts(names, levels[0], (levels[1], levels[2], levels[3]), source)
        self.prompts = meet(self._given, carried, self._config.blend)
