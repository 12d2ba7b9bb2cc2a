"""Noise on visual prompts: how much does a model need pictures that are right?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from dpseg.evaluation.workers import ModelSource
from dpseg.model.prompting import References
from dpseg.prompts.prompt_set import PromptSet
from dpseg.segmenter import Segmenter


@dataclass(frozen=True)
class Noise:
    """Gaussian noise on visual prompts.

    Attributes:
        strength: its expected length relative to the prompt's, 0 or more. In D dimensions, noise is nearly at a right
            angle to a prompt, so that their cosine is about 1 / sqrt(1 + strength ** 2).
        seed: of the draw; the same for every strength.
    """

    strength: float = 0.0
    seed: int = 0


def add_noise(prompts: PromptSet, noise: Noise) -> PromptSet:
    """Returns the same classes with noise on V and GAP(V_j); each keeps its length. Classes without pictures stay so.

    Args:
        prompts: of K classes.
        noise: how much.
    """
    if not noise.strength:
        return prompts
    random = torch.Generator().manual_seed(noise.seed)
    e = prompts.embeddings
    visual = _disturb(e.visual, noise.strength, random)
    s2, s3, s4 = (_disturb(stage, noise.strength, random) for stage in e.stages)
    return prompts.with_embeddings(replace(e, visual=visual, stages=(s2, s3, s4)))


def _disturb(rows: Tensor, strength: float, random: torch.Generator) -> Tensor:
    """Disturbs vectors (..., D); drawn on the CPU, so that every device has the same noise."""
    length: Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    drawn = torch.randn(rows.shape, generator=random).to(rows)
    noisy = rows + drawn * (strength * length / rows.shape[-1] ** 0.5)
    return F.normalize(noisy, dim=-1) * length


class NoisySegmenter(Segmenter):
    """A segmenter whose visual prompts are disturbed; crops of Inference II are not.

    Attributes:
        noise: how much.
    """

    noise: Noise = Noise()

    def prompts(
        self, text: Sequence[str] | None = None, references: References | None = None, bank: bool = True
    ) -> PromptSet:
        """Encodes classes as `Segmenter.prompts`, and adds the noise."""
        return add_noise(super().prompts(text, references, bank), self.noise)


@dataclass(frozen=True)
class NoisySource(ModelSource):
    """Where a process gets a model whose visual prompts are disturbed.

    Attributes:
        noise: how much.
    """

    noise: Noise = Noise()

    def load(self, rank: int = 0) -> Segmenter:
        """Loads the model as `ModelSource.load`."""
        plain = super().load(rank)
        noisy = NoisySegmenter(plain.model, plain.bank, plain.refinement, plain.cache)
        noisy.noise = self.noise
        return noisy
