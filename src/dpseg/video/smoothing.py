"""Labels that do not flicker: logits averaged over the frames of a shot (ours).

An exponential moving average needs the memory of one frame. What moves fast smears: the past is averaged where it was
in the picture, not where it has moved to.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpseg.config import ModelConfig
from dpseg.errors import ConfigError
from dpseg.model.class_logits import ALL_CLASSES, UNDECODED, ClassLogits, collect
from dpseg.model.label_map import LabelMap
from dpseg.result import Segmentation


class Smoother:
    """Averages the logits of one shot's frames, which have one size and the same classes."""

    def __init__(
        self, config: ModelConfig, weight: float, background: float | None = None, adjustment: Tensor | None = None
    ) -> None:
        """Starts a shot.

        Args:
            config: the model's: how it labels pixels.
            weight: of the past, in [0, 1); 0: every frame stands alone.
            background: as for one image.
            adjustment: (K,), of the prompts (`PromptEmbeddings.adjustment`).
        """
        self._config, self._weight, self._background = config, weight, background
        self._adjustment = None if adjustment is None else adjustment.cpu()
        self._mean: Tensor | None = None  # (K, h, w)

    def next(self, found: Segmentation) -> Segmentation:
        """Returns the next frame's segmentation by the averaged logits; the first frame's is as it was.

        Args:
            found: by the frame's own logits, of all K classes.
        """
        now = _decoded(torch.from_numpy(found.logits))
        if self._mean is None:
            self._mean = now
            return found
        self._mean = torch.lerp(now, self._mean, self._weight)
        count = len(found.names)
        height, width = found.labels.shape
        labelling = LabelMap((height, width), self._background, self._config.resize_scores)
        blocks = [ClassLogits(torch.arange(count), self._mean)]
        decoded = collect(blocks, count, labelling, self._config.presence, self._adjustment)
        return Segmentation.of(decoded, found.names, found.image, found.source, found.prompts)


def check_smoothing(weight: float, classes: int) -> None:
    """Checks what is asked for.

    Raises:
        ConfigError: the weight is out of range, or there are too many classes to keep all their logits.
    """
    if not 0 <= weight < 1:
        raise ConfigError(f"smooth {weight} is out of range; give 0, or more and below 1, such as 0.5")
    if weight and classes > ALL_CLASSES:
        raise ConfigError(f"--smooth goes with {ALL_CLASSES} classes at most, and these are {classes}; leave it out")


def _decoded(logits: Tensor) -> Tensor:
    """Gives classes that were not decoded, (K, h, w), the least logit that a decoded class has at that position."""
    missing = logits < UNDECODED / 2
    if not missing.any():
        return logits
    return torch.where(missing, logits.masked_fill(missing, torch.inf).amin(dim=0), logits)
