"""Where a video cuts to another scene: there nothing of the frames before may be carried on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

from dpseg.video.clip import Frame

CUT = 0.15
"""Mean difference of two frames, in [0, 1], from which the second begins another shot."""

_SIDE = 32  # frames are compared at so many pixels a side: small movements hardly count


def shots(frames: Iterable[Frame]) -> Iterator[Iterator[Frame]]:
    """Parts frames at cuts. Fades, and cuts between scenes of much the same colours, are not noticed.

    Args:
        frames: in their order; taken as they are needed.

    Yields:
        The frames of one shot after the other; each has to be read to its end before the next is asked for.
    """
    source = iter(frames)
    following = next(source, None)

    def shot(frame: Frame) -> Iterator[Frame]:
        nonlocal following
        following = None
        small = _small(frame.image)
        yield frame
        for frame in source:
            before, small = small, _small(frame.image)
            if difference(before, small) > CUT:
                following = frame
                return
            yield frame

    while following is not None:
        yield shot(following)


def difference(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> float:
    """Returns the mean absolute difference of two pictures with values in [0, 1]."""
    return float(np.abs(first - second).mean())


def _small(image: Image.Image) -> npt.NDArray[np.float32]:
    """Returns a frame in little, (32, 32, 3) in [0, 1]."""
    small = image.resize((_SIDE, _SIDE), Image.Resampling.BOX, reducing_gap=2)
    values: npt.NDArray[np.float32] = np.asarray(small, dtype=np.float32) / np.float32(255)
    return values
