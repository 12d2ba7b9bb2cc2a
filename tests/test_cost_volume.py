"""F_c, F_v^j and R against loops written from the paper's formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dpseg.model.cost_volume import cosine_volume, dual_cost_volume, dual_prompt, visual_cost_volumes
from dpseg.prompts.prompt_set import PromptEmbeddings


def unit(*shape: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1)


def some_prompts(count: int = 3, templates: int = 2, pictures: int = 2) -> PromptEmbeddings:
    """Class 0 has text and pictures, class 1 text only, class 2 pictures only."""
    has_text = torch.tensor([True, True, False])[:count]
    has_visual = torch.tensor([True, False, True])[:count]
    return PromptEmbeddings(
        text=unit(count, templates, 6) * has_text[:, None, None],
        visual=unit(count, pictures, 6) * has_visual[:, None, None],
        stages=tuple(unit(count, pictures, d) * has_visual[:, None, None] for d in (3, 4, 5)),  # type: ignore[arg-type]
        has_text=has_text,
        has_visual=has_visual,
    )


def cosine(a: Tensor, b: Tensor) -> float:
    length = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
    return float(a @ b) / length if length else 0.0


def loop_volume(features: Tensor, prompts: Tensor) -> Tensor:
    batch, _, height, width = features.shape
    count, templates, _ = prompts.shape
    out = torch.zeros(batch, count, templates, height, width)
    for b in range(batch):
        for k in range(count):
            for m in range(templates):
                for y in range(height):
                    for x in range(width):
                        out[b, k, m, y, x] = cosine(features[b, :, y, x], prompts[k, m])
    return out


def test_dual_prompt_is_the_average_of_what_is_there() -> None:
    prompts = some_prompts()
    result = dual_prompt(prompts)
    torch.testing.assert_close(result[0], (prompts.text[0] + prompts.visual[0]) / 2)
    torch.testing.assert_close(result[1], prompts.text[1])
    torch.testing.assert_close(result[2], prompts.visual[2])


def test_the_dual_cost_volume_follows_its_formula() -> None:
    prompts, dense = some_prompts(), torch.randn(2, 6, 3, 4)
    torch.testing.assert_close(dual_cost_volume(dense, prompts, "average"), loop_volume(dense, dual_prompt(prompts)))


def test_visual_cost_volumes_follow_their_formula_at_each_scale() -> None:
    prompts = some_prompts()
    stages = (torch.randn(2, 3, 8, 8), torch.randn(2, 4, 4, 4), torch.randn(2, 5, 2, 2))
    volumes = visual_cost_volumes(stages, prompts, (4, 3, 2))
    assert sorted(volumes) == [2, 3, 4]
    for j, volume in volumes.items():
        torch.testing.assert_close(volume, loop_volume(stages[j - 2], prompts.stages[j - 2]))
        assert not volume[:, 1].any()  # no picture, no guidance


def test_the_ablations_fuse_volumes_instead() -> None:
    prompts, dense = some_prompts(), torch.randn(1, 6, 2, 2)
    text, visual = loop_volume(dense, prompts.text), loop_volume(dense, prompts.visual)
    torch.testing.assert_close(dual_cost_volume(dense, prompts, "text"), text)
    torch.testing.assert_close(dual_cost_volume(dense, prompts, "visual"), visual)
    torch.testing.assert_close(dual_cost_volume(dense, prompts, "cost_concat"), torch.cat([text, visual], dim=2))
    average = dual_cost_volume(dense, prompts, "cost_average")
    torch.testing.assert_close(average[:, 0], (text[:, 0] + visual[:, 0]) / 2)
    torch.testing.assert_close(average[:, 1], text[:, 1])
    torch.testing.assert_close(average[:, 2], visual[:, 2])


def test_one_picture_serves_every_template() -> None:
    prompts = some_prompts(pictures=1)
    assert dual_prompt(prompts).shape == (3, 2, 6)
    volume = visual_cost_volumes((torch.randn(1, 3, 2, 2),) * 3, prompts, (2,))[2]
    torch.testing.assert_close(volume[:, :, 0], volume[:, :, 1])


@pytest.mark.parametrize("fusion", ["average", "text", "visual", "cost_average", "cost_concat"])
def test_prompts_of_each_image_equal_shared_prompts(fusion: str) -> None:
    prompts, dense = some_prompts(), torch.randn(2, 6, 3, 3)
    each = prompts.map(lambda t: t[None].expand(2, *t.shape))
    shared = dual_cost_volume(dense, prompts, fusion)  # type: ignore[arg-type]
    torch.testing.assert_close(dual_cost_volume(dense, each, fusion), shared)  # type: ignore[arg-type]


def test_cosines_stay_in_range_whatever_the_lengths() -> None:
    volume = cosine_volume(100 * torch.randn(1, 6, 4, 4), 0.01 * torch.randn(5, 1, 6))
    assert volume.abs().max() <= 1 + 1e-5
    assert volume.abs().max() > 0.3
