"""Names that training makes strange: prompted without the text residual of dpseg-lite."""

from __future__ import annotations

import torch

from dpseg.config import ModelConfig
from dpseg.model.lite import LiteEncoder
from dpseg.recipe import DataSource, TrainConfig
from dpseg.training.prompt_tables import PromptSource
from dpseg.training.regions import Regions
from dpseg.training.sampler import Batch

NAMES = ["cat", "wooden spoon", "lamp", "tram"]


def select(unseen: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Batch]:
    """Returns the selected T (B, K, D), and T of the names with and without the residual."""
    model = ModelConfig(encoder="lite", text_names=len(NAMES))
    config = TrainConfig(model=model, data=(DataSource("none"),), prompt_mix=(1.0, 0.0, 0.0), unseen=unseen)
    encoder = LiteEncoder(model)
    features = encoder.text_features(NAMES)
    encoder.text_map.fit(torch.nn.functional.normalize(torch.randn(1000, 384), dim=-1))
    encoder.text_map.local_support.copy_(features)
    torch.nn.init.normal_(encoder.text_map.local_coefficients, std=0.1)
    empty = torch.empty(0, dtype=torch.long)
    regions = Regions(empty, empty, torch.empty(0, 1280), (torch.empty(0, 24), torch.empty(0, 40), torch.empty(0, 112)))
    source = PromptSource(features[:, None], regions, config)
    size = 200
    batch = Batch(
        images=torch.empty(0),
        labels=torch.empty(0),
        classes=torch.stack([torch.randperm(4) for _ in range(size)]),
        own=torch.empty(0),
        unsure=torch.empty(0),
        photos=list(range(size)),
        sources=[0] * size,
        everyone=list(range(size)),
        part=slice(0, size),
    )
    random = torch.Generator().manual_seed(0)
    tables = source.tables(encoder, [], random)
    chosen = source.select(tables, batch, encoder, random, False).text[:, :, 0]
    usual = torch.nn.functional.normalize(encoder.project_text(features), dim=-1)
    return chosen, usual, encoder.text_map.regress(features), batch


def test_every_other_name_of_some_photos_is_strange() -> None:
    chosen, usual, strange, batch = select(0.3)
    is_usual = (chosen - usual[batch.classes]).abs().amax(dim=-1) < 1e-6
    is_strange = (chosen - strange[batch.classes]).abs().amax(dim=-1) < 1e-6
    assert (is_usual ^ is_strange).all()
    touched = is_strange.any(dim=1)
    assert 0.2 < touched.float().mean() < 0.4  # 0.3 * (1 - 1 / 16)
    assert 0.4 < is_strange[touched].float().mean() < 0.66


def test_none_is_where_the_recipe_does_not_ask() -> None:
    chosen, usual, _, batch = select(0.0)
    torch.testing.assert_close(chosen, usual[batch.classes])
