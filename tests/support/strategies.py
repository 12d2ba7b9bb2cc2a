"""What hypothesis draws: names of classes and of files, and results."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from dpseg.result import Segmentation

WRITTEN = st.text(st.characters(codec="utf-8", exclude_characters="\0,"), min_size=1, max_size=12)
"""Any text that a file can hold, without the comma that parts synonyms."""

NAME = WRITTEN.map(lambda text: " ".join(text.split())).filter(bool)
"""A class's name in any script, as `parse_class` tidies it."""

STEM = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=40)
"""The beginning of a file's name."""


def class_names(least: int = 1, most: int = 5) -> st.SearchStrategy[tuple[str, ...]]:
    """Names that differ, as `parse_classes` asks."""
    return st.lists(NAME, min_size=least, max_size=most, unique_by=str.casefold).map(tuple)


@st.composite
def segmentations(draw: st.DrawFn) -> Segmentation:
    """A small label map of a few classes, or of as many as a byte can tell apart, one more or fewer, and any scores."""
    odd = draw(class_names())
    count = draw(st.just(len(odd)) | st.sampled_from([254, 255, 256, 300]))
    names = odd + tuple(f"class number {index}" for index in range(len(odd), count))
    shape = draw(array_shapes(min_dims=2, max_dims=2, max_side=20))
    labels = draw(arrays(np.int32, shape, elements=st.integers(-1, count - 1)))
    scores = st.floats(-100, 100, width=32) | st.just(-np.inf)
    return Segmentation(labels, names, draw(arrays(np.float32, (count, 2, 3), elements=scores)), source="a/photo.jpg")
