"""Labels by tiles and with classes left out against resizing everything at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dpseg.model.label_map import label_map


@pytest.mark.parametrize("size", [(100, 130), (7, 9), (1, 1), (300, 270), (600, 20)])
@pytest.mark.parametrize("grid", [(24, 32), (1, 1), (3, 50)])
def test_equals_resizing_everything_at_once(size: tuple[int, int], grid: tuple[int, int]) -> None:
    logits = torch.randn(9, *grid, generator=torch.Generator().manual_seed(0))
    plain = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0].argmax(dim=0)
    labels = label_map(logits, size)
    assert labels.dtype == np.int32
    assert np.array_equal(labels, plain.numpy())


def test_background_is_what_scores_below_the_threshold() -> None:
    logits = torch.tensor([[[-3.0, 1.0]], [[-2.0, -5.0]]])
    assert label_map(logits, (1, 2)).tolist() == [[1, 0]]
    assert label_map(logits, (1, 2), background=0.5).tolist() == [[-1, 0]]
    assert label_map(logits, (1, 2), background=0.1).tolist() == [[1, 0]]
    assert label_map(logits, (1, 2), background=1.0).tolist() == [[-1, -1]]
    assert label_map(logits, (1, 2), background=0.0).tolist() == [[1, 0]]


def test_classes_that_were_not_decoded_never_win() -> None:
    logits = torch.randn(4, 5, 6)
    logits[2] = -torch.inf
    labels = label_map(logits, (40, 50))
    assert 2 not in labels
    assert np.array_equal(labels, label_map(logits.nan_to_num(neginf=-1e4), (40, 50)))


def test_847_classes_on_12_megapixels_in_little_memory() -> None:
    coarse = torch.randn(1, 847, 4, 6, generator=torch.Generator().manual_seed(1))
    logits = F.interpolate(coarse, size=(96, 128), mode="bilinear")[0]
    labels = label_map(logits, (3000, 4000))
    rows, columns = np.array([10, 1500, 2999]), np.array([0, 2222, 3999])
    for row in rows:
        y = min(max((row + 0.5) * 96 / 3000 - 0.5, 0), 95)
        for column in columns:
            x = min(max((column + 0.5) * 128 / 4000 - 0.5, 0), 127)
            near = logits[:, int(y) : int(y) + 2, int(x) : int(x) + 2].amax(dim=(1, 2))
            assert near[labels[row, column]] >= near.max() - 0.5
