"""Names in training: how often masks show each, what the losses make of it, and names that are made strange."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from dpseg.config import ModelConfig
from dpseg.errors import DataError
from dpseg.model.lite import LiteEncoder
from dpseg.recipe import DataSource, TrainConfig
from dpseg.training.corpus import IGNORE, NONE, Corpus, LabelledPhoto
from dpseg.training.frequency import RAREST, log_frequency
from dpseg.training.loop import prepare
from dpseg.training.prompt_tables import PromptSource
from dpseg.training.regions import Regions
from dpseg.training.sampler import Batch
from support.tiny_recipe import tiny_recipe


def photo(source: int, **pixels: int) -> LabelledPhoto:
    """A photo with so many pixels of each name n0, n1, ..., and some without a label."""
    values = [int(name[1:]) for name, count in pixels.items() for _ in range(count)]
    labels = torch.tensor([[*values, IGNORE, NONE]], dtype=torch.int16)
    return LabelledPhoto(torch.zeros(3, *labels.shape, dtype=torch.uint8), labels, source, "photo")


def corpus(*photos: LabelledPhoto, labelled: tuple[tuple[int, ...], ...], weights: tuple[float, ...]) -> Corpus:
    names = tuple(f"n{number}" for number in range(5))
    vocabularies = tuple((*own, 4) if own else () for own in labelled)  # a teacher gives name 4 besides
    return Corpus(names, vocabularies, labelled, weights, photos, tuple(p.source for p in photos))


def centred(*logs: float) -> list[float]:
    """Logarithms of those that are shown, less their average; 0 for the rest."""
    return [log - sum(logs) / len(logs) for log in logs] + [0.0] * (5 - len(logs))


class OneDamaged(list[LabelledPhoto]):
    """Photos that are read when they are asked for, the first of which is damaged."""

    def __getitem__(self, index: int) -> LabelledPhoto:  # type: ignore[override]
        if index == 0:
            raise DataError("photo: is damaged")
        return super().__getitem__(index)


def test_a_name_is_compared_with_the_average_name_of_its_set_where_photos_can_be_read() -> None:
    one = corpus(photo(0, n0=30, n1=10), photo(0, n0=20, n4=99), labelled=((0, 1),), weights=(3.0,))
    wanted = centred(math.log(50 / 30), math.log(10 / 30))  # 30 on average; name 4 is the teacher's
    assert log_frequency(one).tolist() == pytest.approx(wanted, abs=1e-6)
    damaged = replace(one, photos=OneDamaged([photo(0, n0=9, n1=90), *one.photos]))
    assert log_frequency(damaged).tolist() == pytest.approx(wanted, abs=1e-6)


def test_sets_count_as_often_as_they_are_drawn() -> None:
    photos = photo(0, n0=30, n1=10), photo(1, n1=30, n2=30), photo(2)
    found = log_frequency(corpus(*photos, labelled=((0, 1), (1, 2), ()), weights=(3.0, 1.0, 4.0)))
    wanted = centred(math.log(30 / 20), math.log((3 * 10 / 20 + 1) / 4), math.log(30 / 30))
    assert found.tolist() == pytest.approx(wanted, abs=1e-6)


def test_a_few_pixels_are_no_reason_for_more_than_the_bound() -> None:
    found = log_frequency(corpus(photo(0, n0=100_000, n1=1), labelled=((0, 1, 2),), weights=(1.0,)))
    assert found[0] - found[1] == pytest.approx(math.log(100_000 / (100_001 / 3) / RAREST), abs=1e-4)
    assert found[2] == 0  # never shown: nothing is known


def test_the_softmax_losses_see_frequent_names_raised(tmp_path: Path) -> None:
    config = tiny_recipe(tmp_path)
    plain, adjusted = (prepare(replace(config, logit_adjustment=one), lambda _: None) for one in (0.0, 1.0))
    often = adjusted.step.often
    assert often.abs().max() > 0.1
    assert not plain.step.often.any()
    adjusted.step.load_state_dict(plain.step.state_dict())
    batch = plain.sampler[0]
    with torch.no_grad():
        before, after = plain.step(batch, 0), adjusted.step(batch, 0)
        adjusted.step.often = torch.full_like(often, 2.0)  # all alike: a softmax does not see it
        alike = adjusted.step(batch, 0)
    assert torch.equal(before["bce"].total, after["bce"].total)
    for part in ("ce", "aux"):
        assert float(after[part].mean) != pytest.approx(float(before[part].mean), rel=1e-4)
        assert float(alike[part].mean) == pytest.approx(float(before[part].mean), rel=1e-4)


@pytest.mark.parametrize("unseen", [0.0, 0.3])
def test_every_other_name_of_some_photos_is_strange(unseen: float) -> None:
    """Strange: prompted without the text residual of dpseg-lite."""
    names, size = ["cat", "wooden spoon", "lamp", "tram"], 200
    model = ModelConfig(encoder="lite", text_names=len(names))
    config = TrainConfig(model=model, data=(DataSource("none"),), prompt_mix=(1.0, 0.0, 0.0), unseen=unseen)
    encoder = LiteEncoder(model)
    features = encoder.text_features(names)
    encoder.text_map.fit(F.normalize(torch.randn(1000, 384), dim=-1))
    encoder.text_map.local_support.copy_(features)
    torch.nn.init.normal_(encoder.text_map.local_coefficients, std=0.1)
    empty = torch.empty(0, dtype=torch.long)
    regions = Regions(empty, empty, torch.empty(0, 1280), (torch.empty(0, 24), torch.empty(0, 40), torch.empty(0, 112)))
    source, random = PromptSource(features[:, None], regions, config), torch.Generator().manual_seed(0)
    classes = torch.stack([torch.randperm(4, generator=random) for _ in range(size)])
    batch = Batch(empty, empty, classes, empty, empty, list(range(size)), [0] * size, list(range(size)), slice(0, size))
    chosen = source.select(source.tables(encoder, [], random), batch, encoder, random, False).text[:, :, 0]
    usual, strange = F.normalize(encoder.project_text(features), dim=-1), encoder.text_map.regress(features)
    if not unseen:
        torch.testing.assert_close(chosen, usual[classes])
        return
    is_usual, is_strange = ((chosen - one[classes]).abs().amax(dim=-1) < 1e-6 for one in (usual, strange))
    assert (is_usual ^ is_strange).all()
    touched = is_strange.any(dim=1)
    assert 0.2 < touched.float().mean() < 0.4  # 0.3 * (1 - 1 / 16)
    assert 0.4 < is_strange[touched].float().mean() < 0.66
