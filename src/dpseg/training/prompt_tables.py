"""The prompts of a training step: T and V of all names, and for each crop the rows of its categories."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dpseg.model.encoders import Encoder
from dpseg.model.lite import LiteEncoder
from dpseg.prompts.prompt_set import PromptEmbeddings
from dpseg.recipe import TrainConfig
from dpseg.training.regions import Regions
from dpseg.training.sampler import Batch


@dataclass(frozen=True, eq=False)
class PromptTables:
    """Prompts of all N names.

    Attributes:
        text: T, (N, M, D) unit vectors, with gradient where the encoder's projection is trained.
        visual: V, (N, 1, D) unit vectors; zero where a name has no region.
        stages: GAP(V_j): three tensors (N, 1, D_j).
        has_visual: (N,) bool.
        unseen: T as it is for a name that training never saw, (N, M, D) unit vectors.
    """

    text: Tensor
    visual: Tensor
    stages: tuple[Tensor, Tensor, Tensor]
    has_visual: Tensor
    unseen: Tensor

    def first(self, count: int) -> PromptTables:
        """Returns the prompts of the first names alone."""
        s2, s3, s4 = (stage[:count] for stage in self.stages)
        return PromptTables(
            self.text[:count], self.visual[:count], (s2, s3, s4), self.has_visual[:count], self.unseen[:count]
        )


class PromptSource:
    """Makes prompt tables from features that were encoded once."""

    def __init__(self, text_features: Tensor, regions: Regions, config: TrainConfig) -> None:
        """Sorts the regions by name.

        Args:
            text_features: (N, M, F_t).
            regions: of the training photos.
            config: the recipe.
        """
        self.text_features = text_features
        self.regions = regions
        self.config = config
        count = len(text_features)
        self.by_name = [(regions.names == name).nonzero()[:, 0] for name in range(count)]
        self.by_photo: dict[int, list[int]] = {}
        for row, photo in enumerate(regions.photos.tolist()):
            self.by_photo.setdefault(photo, []).append(row)

    def tables(self, encoder: Encoder, photos: list[int], random: torch.Generator) -> PromptTables:
        """Encodes all names, their pictures drawn from photos that are not in the batch.

        Args:
            encoder: whose projections.
            photos: those of all crops of the step.
            random: of the draw.
        """
        forbidden = torch.tensor(photos)
        device = self.text_features.device
        rows, owners = [], []
        for name, mine in enumerate(self.by_name):
            mine = mine[~torch.isin(self.regions.photos[mine], forbidden)]
            if len(mine):
                some = int(torch.randint(1, self.config.references + 1, (), generator=random))
                chosen = mine[torch.randperm(len(mine), generator=random)[:some]]
                rows.append(chosen)
                owners += [name] * len(chosen)
        text = F.normalize(encoder.project_text(self.text_features), dim=-1)  # T
        row = torch.cat([torch.empty(0, dtype=torch.long), *rows]).to(device)
        owner = torch.tensor(owners, dtype=torch.long, device=device)
        visual = self._average(encoder.project_visual(self.regions.dense[row]), owner)  # V
        s2, s3, s4 = (self._average(stage[row], owner) for stage in self.regions.stages)  # GAP(V_j)
        has_visual = torch.zeros(len(self.by_name), dtype=torch.bool, device=device)
        has_visual[owner] = True
        unseen = text
        if isinstance(encoder, LiteEncoder):
            unseen = encoder.text_map.regress(self.text_features)
        return PromptTables(text, visual, (s2, s3, s4), has_visual, unseen)

    def _average(self, rows: Tensor, owner: Tensor) -> Tensor:
        """Averages unit vectors by name: (R, D) -> (N, 1, D)."""
        sums = rows.new_zeros(len(self.by_name), rows.shape[-1])
        return F.normalize(sums.index_add(0, owner, F.normalize(rows, dim=-1)), dim=-1)[:, None]

    def select(
        self, tables: PromptTables, batch: Batch, encoder: Encoder, random: torch.Generator, refined: bool
    ) -> PromptEmbeddings:
        """Returns the prompts of each crop's K categories: text alone, pictures alone or both, at random.

        Of some photos, every other name is as strange as one that training never sees. With `refined`, some are
        prompted as in Inference II.
        """
        size, count = len(batch.everyone), batch.classes.shape[1]
        mix = torch.tensor(self.config.prompt_mix)
        kind = torch.multinomial(mix, size, replacement=True, generator=random)[:, None].expand(size, count)
        each = torch.multinomial(mix, size * count, replacement=True, generator=random).view(size, count)
        mixed = torch.rand(size, 1, generator=random) < self.config.mixed_prompts
        kind = torch.where(mixed, each, kind)[batch.part].to(batch.classes.device)
        has_visual = (kind != 0) & tables.has_visual[batch.classes]
        has_text = (kind != 1) | ~has_visual
        strange = torch.rand(size, 1, generator=random) < self.config.unseen
        strange = (strange & (torch.rand(size, count, generator=random) < 0.5))[batch.part].to(batch.classes.device)
        text = torch.where(strange[..., None, None], tables.unseen[batch.classes], tables.text[batch.classes])
        text = text * has_text[..., None, None]
        keep = has_visual[..., None, None]
        s2, s3, s4 = (stage[batch.classes] * keep for stage in tables.stages)
        prompts = PromptEmbeddings(text, tables.visual[batch.classes] * keep, (s2, s3, s4), has_text, has_visual)
        crops, owners, rows = self._found(batch, random) if refined else ([], [], [])
        return self._replace(prompts, encoder, crops, owners, rows) if rows else prompts

    def _found(self, batch: Batch, random: torch.Generator) -> tuple[list[int], list[int], list[int]]:
        """Plays Inference I: crops, positions in their K categories, and the region that each is prompted with."""
        crops: list[int] = []
        owners: list[int] = []
        rows: list[int] = []
        chances = torch.rand(len(batch.everyone), 1 + batch.classes.shape[1], generator=random)[batch.part]
        picks = torch.rand(len(batch.everyone), batch.classes.shape[1], generator=random)[batch.part].tolist()
        for crop, (photo, chance) in enumerate(zip(batch.photos, chances.tolist(), strict=True)):
            mine = self.by_photo.get(photo, [])
            if chance[0] >= self.config.refined or not mine:
                continue
            by_name: dict[int, list[int]] = {}
            for row in mine:
                by_name.setdefault(int(self.regions.names[row]), []).append(row)
            for position, name in enumerate(batch.classes[crop].tolist()):
                right = name in by_name
                if chance[1 + position] < (1 - 2 * self.config.false_finds if right else self.config.false_finds):
                    choice = by_name[name] if right else mine
                    crops.append(crop)
                    owners.append(position)
                    rows.append(choice[int(picks[crop][position] * len(choice))])
        return crops, owners, rows

    def _replace(
        self, prompts: PromptEmbeddings, encoder: Encoder, crops: list[int], owners: list[int], rows: list[int]
    ) -> PromptEmbeddings:
        """Puts V and GAP(V_j) of regions in the place of some categories'."""
        device = prompts.visual.device
        place = torch.tensor(crops, device=device), torch.tensor(owners, device=device)
        features = self.regions.dense[rows], *(stage[rows] for stage in self.regions.stages)
        new = (encoder.project_visual(features[0]), *features[1:])
        visual, s2, s3, s4 = (
            old.index_put(place, F.normalize(value, dim=-1)[:, None])
            for old, value in zip((prompts.visual, *prompts.stages), new, strict=True)
        )
        has_visual = prompts.has_visual.index_put(place, torch.tensor(True, device=device))
        return PromptEmbeddings(prompts.text, visual, (s2, s3, s4), prompts.has_text, has_visual)
