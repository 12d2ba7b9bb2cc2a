"""Which photos, pasted objects and categories a training step draws, and the objects that are its visual prompts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dpseg.model.encoders import Encoder
from dpseg.prompts.visual import crop_region
from dpseg.recipe import DataSource, TrainConfig
from dpseg.training.corpus import IGNORE, NONE, Corpus, LabelledPhoto
from dpseg.training.loop import Setup, prepare
from dpseg.training.regions import encode_regions
from dpseg.training.sampler import Sampler
from support.tiny import tiny_model
from support.tiny_recipe import tiny_recipe

COMMON, RARE = 0, 1


def photo(name: int, source: int = 0) -> LabelledPhoto:
    """A grey photo whose left half shows one name."""
    labels = torch.full((32, 32), NONE, dtype=torch.int16)
    labels[:, :16] = name
    return LabelledPhoto(torch.full((3, 32, 32), 128, dtype=torch.uint8), labels, source, f"photo of {name}")


def sampler(photos: list[LabelledPhoto], names: int, vocabularies: list[list[int]], **changes: object) -> Sampler:
    """Draws crops of 32 pixels, as large as the photos."""
    values = {"batch_size": 8, "crop": 32, "photo_size": 32, "scale": [1, 1], "paste": 0, "classes": 2, **changes}
    sources = tuple(DataSource(f"set{number}") for number in range(len(vocabularies)))
    config = TrainConfig.from_dict({"model": {}, "data": [{"name": source.name} for source in sources], **values})
    own = tuple(map(tuple, vocabularies))
    shares = (1.0,) * len(vocabularies)
    corpus = Corpus(tuple(map(str, range(names))), own, own, shares, tuple(photos), tuple(p.source for p in photos))
    return Sampler(corpus, torch.eye(names), config)


def test_names_are_equally_likely_where_classes_are_balanced() -> None:
    photos = [photo(COMMON) for _ in range(9)] + [photo(RARE)]

    def drawn(balanced: float) -> Counter[int]:
        one = sampler(photos, 3, [[0, 1, 2]], class_balanced=balanced)
        return Counter(index for step in range(50) for index in one[step].photos)

    assert 20 < drawn(0.0)[9] < 60  # of 400: one photo of ten
    assert 160 < drawn(1.0)[9] < 240  # one name of the two that occur
    assert set(drawn(1.0)) == set(range(10))


def test_pasted_objects_are_drawn_by_name() -> None:
    one = sampler([photo(COMMON) for _ in range(9)] + [photo(RARE)], 3, [[0, 1, 2]], paste=1.0)
    batches = [one[step] for step in range(40)]
    of_common = [labels for batch in batches for labels, i in zip(batch.labels, batch.photos, strict=True) if i != 9]
    with_rare = sum(bool((labels == RARE).any()) for labels in of_common)
    assert with_rare / len(of_common) > 0.4  # two tries with one half each, less those that fell outside or beneath


def test_categories_are_picked_in_the_given_order() -> None:
    one = sampler([photo(COMMON)], 8, [[0, 1, 2, 3, 4, 5]], classes=4)
    labels = torch.full((2, 8, 8), COMMON)
    labels[1] = IGNORE
    order = torch.tensor([[9.0, 1, 2, 5, 4, 3, 7, 8], [1.0, 9, 2, 8, 3, 4, 6, 7]])
    unsure = torch.zeros(2, 8, dtype=torch.bool)
    classes, own = one.pick_classes(labels, [0, 0], order, unsure)
    assert classes.tolist() == [[0, 3, 4, 7], [1, 3, 4 + 1, 7]]  # present; own ones; a quarter of other sets
    assert own.tolist() == [[True, True, True, False], [True, True, True, False]]


def test_what_pictures_without_masks_may_show_is_not_their_negative() -> None:
    picture = replace(photo(7, 1), unsure=(5, 6))
    one = sampler([photo(COMMON), picture], 8, [[0, 1, 2], []], classes=4, batch_size=16)
    batch = one[0]
    pictures = [row for row, index in enumerate(batch.photos) if index == 1]
    assert 0 < len(pictures) < 16
    for row in range(16):
        assert batch.unsure[row].nonzero()[:, 0].tolist() == ([5, 6] if row in pictures else [])
        if row in pictures:
            assert batch.classes[row, 0] == 7
            assert not {5, 6} & set(batch.classes[row].tolist())
            assert not batch.own[row].any()  # nobody said what they do not show
    assert any({5, 6} & set(batch.classes[row].tolist()) for row in range(16) if row not in pictures)


def test_a_set_without_names_in_its_photos_still_gives_crops() -> None:
    batch = sampler([photo(NONE), photo(RARE, 1)], 3, [[0], [1, 2]], class_balanced=1.0, paste=1.0)[0]
    assert len(batch.photos) == 8


def shapes(folder: Path, **changes: Any) -> Setup:
    return prepare(tiny_recipe(folder, **changes), lambda line: None)


def test_batches_depend_on_the_step_alone_and_always_decode_what_is_present(tmp_path: Path) -> None:
    one = shapes(tmp_path).sampler
    first = one[3]
    assert not torch.equal(first.images, one[4].images)
    again = one[3]
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.classes, again.classes)
    batch = one[0]
    for labels, classes in zip(batch.labels, batch.classes, strict=True):
        assert set(labels.unique().tolist()) - {IGNORE, NONE} <= set(classes.tolist())
        assert len(set(classes.tolist())) == len(classes)


def test_crops_keep_their_labels_in_place(tmp_path: Path) -> None:
    setup = shapes(tmp_path, colour_jitter=0.0)
    for step in range(4):
        batch = setup.sampler[step]
        small = batch.images[:, :, 2::4, 2::4]
        red = (small[:, 0] > 0.6) & (small[:, 1] < 0.3)
        inside = batch.labels == setup.corpus.names.index("red square")
        assert (red == inside).float().mean() > 0.95
        assert inside.any()


@pytest.fixture
def encoder() -> Encoder:
    return tiny_model().encoder


def squares_of(*squares: tuple[int, int, int]) -> Corpus:
    """One random photo with squares (top, left, side) of one name."""
    labels = torch.full((100, 100), NONE, dtype=torch.int16)
    for top, left, side in squares:
        labels[top : top + side, left : left + side] = 0
    image = torch.randint(0, 256, (3, 100, 100), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Corpus(("square",), ((0,),), ((0,),), (1.0,), (LabelledPhoto(image, labels, 0, "photo"),), (0,))


def test_the_two_largest_connected_regions_are_encoded_apart(encoder: Encoder, tmp_path: Path) -> None:
    squares = [(0, 0, 20), (50, 50, 30), (80, 0, 10), (0, 60, 2)]
    photos = squares_of(*squares)
    regions = encode_regions(photos, encoder, tmp_path / "regions.safetensors")
    assert regions.names.tolist() == [0, 0]
    for row, (top, left, side) in enumerate([squares[1], squares[0]]):
        alone = torch.zeros(100, 100, dtype=torch.bool)
        alone[top : top + side, left : left + side] = True
        crop, mask = crop_region(photos.photos[0].image.float() / 255, alone, encoder.crop_size)
        expected = encoder.visual_features(crop[None], mask[None]).dense[0]
        torch.testing.assert_close(regions.dense[row].float(), expected, atol=2e-3, rtol=2e-3)


def test_regions_of_nothing_but_crumbs_are_none(encoder: Encoder, tmp_path: Path) -> None:
    photos = squares_of((0, 0, 20), (60, 60, 4))  # 16 of 10,000 pixels
    assert len(encode_regions(photos, encoder, tmp_path / "regions.safetensors").names) == 1


def test_encoded_regions_are_read_again_for_the_same_photos_only(encoder: Encoder, tmp_path: Path) -> None:
    cache = tmp_path / "regions.safetensors"
    first = encode_regions(squares_of((0, 0, 20)), encoder, cache)
    written = cache.stat().st_mtime_ns
    again = encode_regions(squares_of((0, 0, 20)), encoder, cache)
    assert cache.stat().st_mtime_ns == written
    torch.testing.assert_close(again.dense, first.dense, atol=2e-3, rtol=2e-3)
    assert len(encode_regions(squares_of((0, 0, 20), (50, 50, 20)), encoder, cache).names) == 2
