"""One training step: crops in, the parts of the loss out. It is the module that several processes keep alike."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpseg.model.cost_volume import cosine_volume
from dpseg.model.dpseg import DPSeg
from dpseg.model.encoders import Pyramid
from dpseg.model.lite import LiteEncoder
from dpseg.prompts.prompt_set import PromptEmbeddings
from dpseg.recipe import TrainConfig
from dpseg.training import losses
from dpseg.training.corpus import IGNORE, Corpus
from dpseg.training.frequency import log_frequency
from dpseg.training.losses import Weighted
from dpseg.training.prompt_tables import PromptSource, PromptTables
from dpseg.training.sampler import LABEL_STRIDE, Batch, Sampler

Losses = dict[str, Weighted]


class TrainingStep(nn.Module):
    """Draws a step's prompts, encodes, decodes and compares."""

    def __init__(
        self, model: DPSeg, config: TrainConfig, corpus: Corpus, sampler: Sampler, prompts: PromptSource
    ) -> None:
        """Keeps what it is given.

        Args:
            model: to be trained.
            config: the recipe.
            corpus: whose names are decoded.
            sampler: of the batches; it picks their categories again where negatives shall be hard.
            prompts: makes prompts of them.
        """
        super().__init__()
        self.model = model
        self.config = config
        self.sampler = sampler
        self.prompts = prompts
        self.known = corpus.known
        own = torch.zeros(len(corpus.vocabularies), len(corpus.names), dtype=torch.bool)
        for row, vocabulary in zip(own, corpus.vocabularies, strict=True):
            row[list(vocabulary)] = True
        self.register_buffer("own_names", own, persistent=False)
        often = torch.zeros(len(corpus.names))
        if config.logit_adjustment > 0:
            often = config.logit_adjustment * log_frequency(corpus)
        self.register_buffer("often", often, persistent=False)
        self.weights = _weights(config, isinstance(model.encoder, LiteEncoder))

    own_names: Tensor
    """(S, N) bool: which names each data set has."""

    often: Tensor
    """(N,): what the softmax losses add to the logits of frequent names, and take from those of rare ones."""

    def forward(self, batch: Batch, step: int) -> Losses:
        """Returns the parts of the loss that have a weight in `weights`.

        Args:
            batch: this process's training crops.
            step: its number, which seeds the choice of prompts.
        """
        random = torch.Generator().manual_seed(self.config.seed * 7_919 + step)
        encoder = self.model.encoder
        with torch.autocast(batch.images.device.type, enabled=False):
            tables = self.prompts.tables(encoder, batch.everyone, random)
        pyramid = self.model.encode(batch.images)
        if self.config.hard_negatives > 0:
            batch = self.harden(batch, tables, pyramid.dense.detach(), random)
        prompts = self.prompts.select(tables, batch, encoder, random, step >= self.config.refined_from)
        size = batch.labels.shape[-2:]
        logits, *heads = (
            F.interpolate(one.float(), size, mode="bilinear", align_corners=False)
            for one in self._decode(pyramid, prompts)
        )
        target = losses.to_local(batch.labels, batch.classes)
        parts: Losses = {}
        if "ce" in self.weights:
            weights = losses.class_weights(batch.labels, self.config.class_balance)
            parts["ce"] = losses.cross_entropy(logits + self.often[batch.classes][..., None, None], target, weights)
        if "bce" in self.weights:
            parts["bce"] = losses.binary_cross_entropy(logits, target, batch)
        if "heads" in self.weights:
            each = [losses.binary_cross_entropy(head, target, batch) for head in heads]
            parts["heads"] = Weighted(torch.stack([head.total for head in each]).sum(), each[0].weight)
        if "aux" in self.weights:
            parts["aux"] = self._auxiliary(pyramid, tables, batch)
        if "keep" in self.weights:
            parts["keep"] = self._retention(pyramid)
        return parts

    def _decode(self, pyramid: Pyramid, prompts: PromptEmbeddings) -> tuple[Tensor, ...]:
        """Returns the decoder's logits, and those of its auxiliary heads where they count."""
        if "heads" not in self.weights:
            return (self.model.decode(pyramid, prompts),)
        logits, heads = self.model.decode_with_auxiliary(pyramid, prompts)
        return logits, *heads

    @torch.no_grad()
    def harden(self, batch: Batch, tables: PromptTables, dense: Tensor, random: torch.Generator) -> Batch:
        """Picks categories again: of a set's names that a crop lacks, those with the best maximum of F_c come first.

        Testing decodes exactly those (`ModelConfig.decode_classes`), and random ones are too easy to learn much from.

        Args:
            batch: whose categories.
            tables: prompts of all N names.
            dense: E, (B, D, H, W).
            random: of the choice of names that may be hard.
        """
        best = cosine_volume(dense, tables.text.mean(dim=1, keepdim=True) + tables.visual)[:, :, 0].amax(dim=(2, 3))
        shape = len(batch.everyone), best.shape[1]
        hard = torch.rand(shape, generator=random)[batch.part] < self.config.hard_negatives
        other = torch.rand(shape, generator=random)[batch.part]
        names = self.own_names[batch.sources].cpu()
        names = names | ~names.any(dim=1, keepdim=True)  # pictures without masks have no vocabulary: any name
        order = torch.where(hard & names, 2 + best.float().cpu(), other)
        classes, own = self.sampler.pick_classes(batch.labels.cpu(), batch.sources, order, batch.unsure)
        return replace(batch, classes=classes.to(dense.device), own=own.to(dense.device))

    def _auxiliary(self, pyramid: Pyramid, tables: PromptTables, batch: Batch) -> Weighted:
        jump = self.model.encoder.strides[3] // LABEL_STRIDE
        coarse = batch.labels[:, jump // 2 :: jump, jump // 2 :: jump]
        coarse = coarse.where(coarse < self.known, IGNORE)
        weights = losses.class_weights(coarse, self.config.class_balance)
        own = self.own_names[batch.sources, : self.known]
        often = self.often[: self.known]
        return losses.auxiliary_loss(pyramid.dense, tables.first(self.known), own, coarse, weights, often)

    def _retention(self, pyramid: Pyramid) -> Weighted:
        encoder = self.model.encoder
        assert isinstance(encoder, LiteEncoder)
        with torch.no_grad():
            frozen = encoder.late(pyramid.stages[2]) - encoder.centre[:, None, None]
        return losses.retention_loss(pyramid.dense, frozen, encoder.text_map.vectors)


def _weights(config: TrainConfig, lite: bool) -> dict[str, float]:
    """Returns the weight of each part of the loss that counts at all."""
    weights = {"ce": config.cross_entropy, "bce": config.bce, "aux": config.auxiliary}
    if config.model.auxiliary_heads:
        weights["heads"] = config.heads
    if lite:
        weights["keep"] = config.retention
    return {name: weight for name, weight in weights.items() if weight > 0}
