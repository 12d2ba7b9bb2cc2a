"""How often masks show each name, and what the softmax losses make of it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dpseg.config import ModelConfig
from dpseg.errors import DataError
from dpseg.recipe import DataSource, TrainConfig
from dpseg.training.corpus import IGNORE, NONE, Corpus, LabelledPhoto
from dpseg.training.frequency import RAREST, log_frequency
from dpseg.training.loop import prepare
from support.labelled_set import write_set


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


def test_a_name_is_compared_with_the_average_name_of_its_set() -> None:
    found = log_frequency(
        corpus(photo(0, n0=30, n1=10), photo(0, n0=20, n4=99), labelled=((0, 1),), weights=(3.0,))
    )  # 50 and 10 pixels: 30 on average; name 4 is the teacher's
    assert found.tolist() == pytest.approx(centred(math.log(50 / 30), math.log(10 / 30)), abs=1e-6)


def test_sets_count_as_often_as_they_are_drawn() -> None:
    photos = photo(0, n0=30, n1=10), photo(1, n1=30, n2=30), photo(2)
    found = log_frequency(corpus(*photos, labelled=((0, 1), (1, 2), ()), weights=(3.0, 1.0, 4.0)))
    wanted = centred(math.log(30 / 20), math.log((3 * 10 / 20 + 1) / 4), math.log(30 / 30))
    assert found.tolist() == pytest.approx(wanted, abs=1e-6)


def test_a_few_pixels_are_no_reason_for_more_than_the_bound() -> None:
    found = log_frequency(corpus(photo(0, n0=100_000, n1=1), labelled=((0, 1, 2),), weights=(1.0,)))
    assert found[0] - found[1] == pytest.approx(math.log(100_000 / (100_001 / 3) / RAREST), abs=1e-4)
    assert found[2] == 0  # never shown: nothing is known


class OneDamaged(list[LabelledPhoto]):
    """Photos that are read when they are asked for, the first of which is damaged."""

    def __getitem__(self, index: int) -> LabelledPhoto:  # type: ignore[override]
        if index == 0:
            raise DataError("photo: is damaged")
        return super().__getitem__(index)


def test_a_photo_that_cannot_be_read_does_not_count() -> None:
    whole = corpus(photo(0, n0=9, n1=90), photo(0, n0=30, n1=10), labelled=((0, 1),), weights=(1.0,))
    found = log_frequency(replace(whole, photos=OneDamaged(whole.photos)))
    assert found.tolist() == pytest.approx(centred(math.log(30 / 20), math.log(10 / 20)), abs=1e-6)


def test_the_softmax_losses_see_frequent_names_raised(tmp_path: Path) -> None:
    write_set(tmp_path / "shapes")
    model = ModelConfig(
        encoder="tiny", image_size=64, templates=1, widths=(16, 12, 8, 8), image_widths=(4, 4, 4), train_pool=1, heads=2
    )
    config = TrainConfig(
        model, (DataSource("shapes"),), str(tmp_path), batch_size=2, crop=64, photo_size=64, classes=3, retention=0.0
    )
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
