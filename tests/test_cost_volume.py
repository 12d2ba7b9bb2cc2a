"""F_c, F_v^j and R against loops written from the paper's formulas."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dpseg.model.cost_volume import cosine_volume, dual_cost_volume, dual_prompt, visual_cost_volumes
from dpseg.prompts.prompt_set import PromptEmbeddings
from support.random_prompts import random_prompts


@pytest.fixture(params=[1, 2])
def prompts(request: pytest.FixtureRequest) -> PromptEmbeddings:
    """Class 0 has both, class 1 pictures only, class 2 text only; two templates, with pictures of their own or one."""
    torch.manual_seed(0)
    return random_prompts(3, (3, 4, 5, 6), templates=2, pictures=request.param)


def averaged(text: Tensor, visual: Tensor) -> Tensor:
    """The average of what is there, along the dimension of the classes, 0."""
    return torch.stack([(text[0] + visual[0]) / 2, visual[1], text[2]])


def cosine(a: Tensor, b: Tensor) -> float:
    length = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
    return float(a @ b) / length if length else 0.0


def loop_volume(features: Tensor, prompts: Tensor) -> Tensor:
    batch, _, height, width = features.shape
    out = torch.zeros(batch, *prompts.shape[:2], height, width)
    for b, k, m, y, x in itertools.product(*map(range, out.shape)):
        out[b, k, m, y, x] = cosine(features[b, :, y, x], prompts[k, m])
    return out


@pytest.mark.parametrize("fusion", ["average", "text", "visual", "cost_average", "cost_concat"])
def test_the_dual_cost_volume_and_its_ablations_follow_their_formulas(prompts: PromptEmbeddings, fusion: Any) -> None:
    dense = torch.randn(2, 6, 3, 4)
    pictures = prompts.visual.expand(-1, 2, -1)
    text, visual, dual = (
        loop_volume(dense, prompts.text),
        loop_volume(dense, pictures),
        averaged(prompts.text, pictures),
    )
    torch.testing.assert_close(dual_prompt(prompts), dual)
    expected = {
        "average": loop_volume(dense, dual),
        "text": text,
        "visual": visual,
        "cost_average": averaged(text.transpose(0, 1), visual.transpose(0, 1)).transpose(0, 1),
        "cost_concat": torch.cat([text, visual], dim=2),
    }
    shared = dual_cost_volume(dense, prompts, fusion)
    torch.testing.assert_close(shared, expected[fusion])
    each = prompts.map(lambda t: t[None].expand(2, *t.shape))  # prompts of each image
    torch.testing.assert_close(dual_cost_volume(dense, each, fusion), shared)


def test_visual_cost_volumes_follow_their_formula_at_each_scale(prompts: PromptEmbeddings) -> None:
    stages = (torch.randn(2, 3, 8, 8), torch.randn(2, 4, 4, 4), torch.randn(2, 5, 2, 2))
    volumes = visual_cost_volumes(stages, prompts, (4, 3, 2))
    assert sorted(volumes) == [2, 3, 4]
    for j, volume in volumes.items():
        torch.testing.assert_close(volume, loop_volume(stages[j - 2], prompts.stages[j - 2].expand(-1, 2, -1)))
        assert not volume[:, 2].any()  # no picture, no guidance


def test_cosines_stay_in_range_whatever_the_lengths() -> None:
    volume = cosine_volume(100 * torch.randn(1, 6, 4, 4), 0.01 * torch.randn(5, 1, 6))
    assert volume.abs().max() <= 1 + 1e-5
    assert volume.abs().max() > 0.3
