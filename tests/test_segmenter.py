"""The facade from end to end with the tiny encoder: colours as classes, told by pictures."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dpseg.photos
from dpseg.config import RefineConfig
from dpseg.errors import ConfigError, ImageError, PromptError, WeightsError
from dpseg.photos import Photo
from dpseg.prompts.bank import Bank
from dpseg.prompts.prompt_set import PromptSet
from dpseg.result import Segmentation
from dpseg.segmenter import Segmenter
from support.pictures import BLUE, RED, halves, plain, write_damaged
from support.tiny import tiny_config, tiny_segmenter


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    """As models come: Inference II runs."""
    return tiny_segmenter(tmp_path_factory.mktemp("cache"), templates=2, refine=True)


@pytest.fixture
def shapes(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Takes the shapes of what is encoded from now on."""
    taken: list[torch.Size] = []
    original = segmenter.model.encoder.pyramid
    monkeypatch.setattr(
        segmenter.model.encoder, "pyramid", lambda images: (taken.append(images.shape), original(images))[1]
    )
    return taken


def test_a_photo_gets_its_labels(segmenter: Segmenter, colours: PromptSet) -> None:
    result = segmenter(halves(), prompts=colours)
    assert result.names == ("red", "blue")
    assert result.labels.shape == (64, 128)
    assert result.labels.dtype == np.int32
    assert (result.labels[:, :60] == 0).all()
    assert (result.labels[:, 68:] == 1).all()
    assert result.areas == pytest.approx({"red": 0.5, "blue": 0.5}, abs=0.05)
    assert np.array_equal(result.scores.argmax(axis=0), result.labels)
    assert result.logits.dtype == np.float32


def test_every_kind_of_image_gives_the_same(segmenter: Segmenter, colours: PromptSet, tmp_path: Path) -> None:
    photo, path = halves(), tmp_path / "photo.png"
    photo.save(path)
    values = np.asarray(photo)
    kinds: list[Any] = [photo, path, str(path), values, torch.from_numpy(values.copy())]
    results = [segmenter(kind, prompts=colours) for kind in kinds]
    assert all(np.array_equal(result.labels, results[0].labels) for result in results)
    assert [result.source for result in results] == [None, str(path), str(path), None, None]


def test_words_and_pictures_go_in_directly(segmenter: Segmenter) -> None:
    pictures = {"red": [plain(RED)], "blue": [plain(BLUE)]}
    result = segmenter(halves(), text=["red, crimson", "blue"], references=pictures, refine=False)
    assert result.names == ("red", "blue")
    assert result.prompts == (("text", "reference"), ("text", "reference"))
    assert (segmenter(halves(), text=["thing"]).labels == 0).all()


def test_prompts_can_be_kept(segmenter: Segmenter, colours: PromptSet, tmp_path: Path) -> None:
    loaded = PromptSet.load(colours.save(tmp_path / "colours.safetensors"))
    first, second = (segmenter(halves(), prompts=prompts) for prompts in (colours, loaded))
    assert np.array_equal(first.logits, second.logits)


def test_prompts_and_banks_of_another_model_are_refused(segmenter: Segmenter, colours: PromptSet) -> None:
    foreign = dataclasses.replace(colours, encoder="other")
    for segment in (lambda: segmenter(halves(), prompts=foreign), lambda: segmenter.stream([halves()], foreign)):
        with pytest.raises(PromptError, match="another model"):
            segment()
    bank = Bank(("a",), torch.ones(1, 20), torch.ones(1, 24), (torch.ones(1, 8),) * 3, "other")
    with pytest.raises(WeightsError, match="'other'"):
        Segmenter(segmenter.model, bank)


def test_refinement_encodes_the_photo_once_and_keeps_to_its_thresholds(
    segmenter: Segmenter, colours: PromptSet, shapes: list[torch.Size]
) -> None:
    assert segmenter(halves(), prompts=colours).prompts == (("crop",), ("crop",))
    assert shapes == [(1, 3, 64, 128)]
    strict = Segmenter(segmenter.model, refinement=RefineConfig(min_area=0.9), cache=segmenter.cache)
    for result in (segmenter(halves(), prompts=colours, refine=False), strict(halves(), prompts=colours)):
        assert result.prompts == (("reference",), ("reference",))


@pytest.mark.numeric
def test_background_gets_no_class(segmenter: Segmenter, colours: PromptSet) -> None:
    without = segmenter(halves(), prompts=colours, refine=False)
    limit = float(np.median(without.scores.max(axis=0)))
    result = segmenter(halves(), prompts=colours, refine=False, background=limit)
    none = result.labels == -1
    assert 0.2 < none.mean() < 0.8
    assert (without.scores.max(axis=0)[none] <= limit + 1e-5).all()
    assert np.array_equal(result.labels[~none], without.labels[~none])
    assert (segmenter(halves(), prompts=colours, background=1.0).labels == -1).all()


def test_size_changes_the_encoder_size_only(segmenter: Segmenter, colours: PromptSet, shapes: list[torch.Size]) -> None:
    result = segmenter(halves(), prompts=colours, size=128)
    assert shapes == [(1, 3, 128, 256)]
    assert result.labels.shape == (64, 128)


@pytest.mark.parametrize("size", [(1, 1), (3, 400), (400, 3), (37, 61)])
def test_any_proportions_work(segmenter: Segmenter, colours: PromptSet, size: tuple[int, int]) -> None:
    assert segmenter(Image.new("RGB", size, RED), prompts=colours).labels.shape == (size[1], size[0])


def test_encode_once_decode_twice(segmenter: Segmenter, colours: PromptSet) -> None:
    encoded = segmenter.encode([halves(), halves()])
    first = segmenter.decode(encoded, colours)
    assert len(first) == 2
    assert np.array_equal(first[0].labels, segmenter(halves(), prompts=colours).labels)
    assert segmenter.decode(encoded, colours.select(["blue"]))[1].names == ("blue",)
    with pytest.raises(ConfigError, match="several encoder sizes"):
        segmenter.encode([halves(), halves(64, 128)])


def test_options_that_cannot_be_are_refused(segmenter: Segmenter, colours: PromptSet) -> None:
    for options, kind, said in [
        ({"prompts": colours, "background": 1.5}, ConfigError, r"background 1\.5"),
        ({"prompts": colours, "size": 7}, ConfigError, "size 7"),
        ({"prompts": colours, "text": ["red"]}, PromptError, "one of the two"),
        ({}, PromptError, "no classes given"),
    ]:
        with pytest.raises(kind, match=said):
            segmenter(halves(), **options)
    with pytest.raises(ConfigError, match="batch size 0"):
        segmenter.stream([], colours, batch_size=0)


# Streams


def test_a_stream_keeps_the_order_and_carries_on_after_errors(
    segmenter: Segmenter, colours: PromptSet, tmp_path: Path
) -> None:
    halves().save(tmp_path / "good.png")
    bad, missing = write_damaged(tmp_path / "bad.png"), tmp_path / "missing.png"
    images = [str(tmp_path / "good.png"), bad, halves(64, 128), halves(), missing]
    pairs = list(segmenter.stream(images, colours, batch_size=3))
    assert [image for image, _ in pairs] == images
    kinds = [type(result) for _, result in pairs]
    assert kinds == [Segmentation, ImageError, Segmentation, Segmentation, ImageError]
    assert "bad.png" in str(pairs[1][1])
    assert "missing.png" in str(pairs[4][1])


@pytest.mark.numeric
def test_a_stream_gives_what_single_calls_give(
    segmenter: Segmenter, colours: PromptSet, shapes: list[torch.Size]
) -> None:
    images = [halves(), halves(64, 128), halves(256, 128), halves(128, 128), halves()]
    alone = [segmenter(image, prompts=colours) for image in images]
    shapes.clear()
    streamed = [result for _, result in segmenter.stream(images, colours, batch_size=4)]
    assert shapes == [(2, 3, 64, 128), (1, 3, 128, 64), (1, 3, 64, 64), (1, 3, 64, 128)]
    for one, other in zip(alone, streamed, strict=True):
        assert isinstance(other, Segmentation)
        np.testing.assert_allclose(one.logits, other.logits, atol=1e-4)
        assert (one.labels == other.labels).mean() > 0.999


def test_a_stream_is_lazy_and_flat_in_memory(
    segmenter: Segmenter, colours: PromptSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[Photo]] = []
    original = dpseg.photos.load_photo

    def load(*arguments: Any) -> Photo:
        photo = original(*arguments)
        loaded.append(weakref.ref(photo))
        return photo

    def images() -> Iterator[Image.Image]:
        while True:
            yield halves()

    monkeypatch.setattr(dpseg.photos, "load_photo", load)
    stream = segmenter.stream(images(), colours, batch_size=2)
    assert not loaded
    for _ in range(12):
        next(stream)  # photos go as soon as nobody needs them: no round of the garbage collector is waited for
        assert sum(reference() is not None for reference in loaded) <= 2 + 2 + 2
    stream.close()  # type: ignore[attr-defined]
    assert 12 <= len(loaded) <= 18


def test_large_photos_end_a_batch_early_and_crops_come_from_photos_of_bounded_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny_config(templates=2)
    monkeypatch.setattr(dpseg.photos, "BATCH_PIXELS", 16_000)
    images = [halves(), halves(), halves(), Image.new("RGB", (200, 200)), halves()]
    batches = dpseg.photos.photo_batches(images, config, 32, None, batch_size=8)
    assert [len(batch) for batch in batches] == [2, 2, 1]
    photo = dpseg.photos.load_photo(Image.new("RGB", (2560, 100), RED), config, 32)
    assert photo.crop_source().shape == (3, 50, 1280)
    assert dpseg.photos.load_photo(halves(), config, 32).crop_source().shape == (3, 64, 128)
