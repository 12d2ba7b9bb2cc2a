"""The moving average of the weights, which is what training keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def moving_average(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    """Returns how `AveragedModel` averages: an exponential moving average that forgets where it started.

    At step n the average keeps min(decay, (1 + n) / (10 + n)) of itself, as TensorFlow's ExponentialMovingAverage with
    num_updates. With a fixed decay of 0.998, a model of 250 steps would be the untrained one by three fifths.

    Args:
        decay: that is reached in the end, in (0, 1).
    """

    @torch.no_grad()
    def update(averages: Sequence[Tensor], values: Sequence[Tensor], count: Tensor | int) -> None:
        steps = int(count)
        share = 1 - min(decay, (1 + steps) / (10 + steps))
        for average, value in zip(averages, values, strict=True):
            average.lerp_(value, share)

    return update
