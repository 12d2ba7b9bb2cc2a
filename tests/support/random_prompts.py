"""Prompts of random embeddings, for tests of what the model does with any prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dpseg.model.dpseg import DPSeg
from dpseg.prompts.prompt_set import PromptEmbeddings


def random_prompts(count: int, dims: Sequence[int], templates: int = 1, pictures: int = 1) -> PromptEmbeddings:
    """Returns the same prompts each time: of every three classes, one has both, one pictures and one text alone.

    Args:
        count: K.
        dims: D_2, D_3, D_4 and D.
        templates: M.
        pictures: visual embeddings a class.
    """
    random = torch.Generator().manual_seed(count)
    has_text, has_visual = torch.arange(count) % 3 != 1, torch.arange(count) % 3 != 2

    def unit(rows: int, size: int, there: Tensor) -> Tensor:
        values = torch.randn(count, rows, size, generator=random)
        return torch.nn.functional.normalize(values, dim=-1) * there[:, None, None]

    s2, s3, s4, visual = (unit(pictures, size, has_visual) for size in dims)
    return PromptEmbeddings(unit(templates, dims[3], has_text), visual, (s2, s3, s4), has_text, has_visual)


def prompts_for(model: DPSeg, count: int) -> PromptEmbeddings:
    """Returns random prompts that fit a model."""
    return random_prompts(count, (*model.encoder.stage_dims, model.encoder.embed_dim), model.config.templates)
