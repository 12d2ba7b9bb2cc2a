"""The facade from end to end with the tiny encoder: colours as classes, told by pictures."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dpseg.photos
from dpseg.cache import EmbeddingCache
from dpseg.config import ModelConfig, RefineConfig
from dpseg.errors import ConfigError, ImageError, PromptError, WeightsError
from dpseg.model.dpseg import DPSeg
from dpseg.photos import Photo
from dpseg.prompts.bank import Bank
from dpseg.prompts.prompt_set import PromptSet
from dpseg.result import Segmentation
from dpseg.segmenter import Segmenter

CONFIG = ModelConfig(encoder="tiny", image_size=64, keep_aspect=True, templates=2, logit_scale=10.0, tune_encoder=False)
RED, BLUE = (220, 30, 20), (20, 40, 220)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(DPSeg(CONFIG), cache=EmbeddingCache(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def colours(segmenter: Segmenter) -> PromptSet:
    pictures = {"red": Image.new("RGB", (32, 32), RED), "blue": Image.new("RGB", (32, 32), BLUE)}
    return segmenter.prompts(references=pictures)


def halves(width: int = 128, height: int = 64) -> Image.Image:
    """A photo whose left half is red and whose right half is blue."""
    photo = Image.new("RGB", (width, height), RED)
    photo.paste(BLUE, (width // 2, 0, width, height))
    return photo


def count_encodings(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    shapes: list[torch.Size] = []
    original = segmenter.model.encoder.pyramid
    monkeypatch.setattr(
        segmenter.model.encoder, "pyramid", lambda images: (shapes.append(images.shape), original(images))[1]
    )
    return shapes


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
    photo = halves()
    photo.save(tmp_path / "photo.png")
    values = np.asarray(photo)
    kinds = [photo, tmp_path / "photo.png", str(tmp_path / "photo.png"), values, torch.from_numpy(values.copy())]
    results = [segmenter(kind, prompts=colours) for kind in kinds]
    assert all(np.array_equal(result.labels, results[0].labels) for result in results)
    assert [result.source for result in results] == [
        None,
        str(tmp_path / "photo.png"),
        str(tmp_path / "photo.png"),
        None,
        None,
    ]


def test_words_and_pictures_go_in_directly(segmenter: Segmenter) -> None:
    pictures = {"red": [Image.new("RGB", (32, 32), RED)], "blue": [Image.new("RGB", (32, 32), BLUE)]}
    result = segmenter(halves(), text=["red, crimson", "blue"], references=pictures, refine=False)
    assert result.names == ("red", "blue")
    assert result.prompts == (("text", "reference"), ("text", "reference"))
    one = segmenter(halves(), text=["thing"])
    assert (one.labels == 0).all()


def test_prompts_can_be_kept(segmenter: Segmenter, colours: PromptSet, tmp_path: Path) -> None:
    colours.save(tmp_path / "colours.safetensors")
    loaded = PromptSet.load(tmp_path / "colours.safetensors")
    first, second = (segmenter(halves(), prompts=prompts) for prompts in (colours, loaded))
    assert np.array_equal(first.logits, second.logits)


def test_prompts_of_another_model_are_refused(segmenter: Segmenter, colours: PromptSet) -> None:
    foreign = PromptSet(colours.names, colours.embeddings, "other", colours.sources)
    with pytest.raises(PromptError, match="another model"):
        segmenter(halves(), prompts=foreign)
    with pytest.raises(PromptError, match="another model"):
        segmenter.stream([halves()], foreign)


def test_a_bank_of_another_encoder_is_refused(segmenter: Segmenter) -> None:
    bank = Bank(("a",), torch.ones(1, 20), torch.ones(1, 24), (torch.ones(1, 8),) * 3, "other")
    with pytest.raises(WeightsError, match="'other'"):
        Segmenter(segmenter.model, bank)


def test_refinement_encodes_the_photo_once(
    segmenter: Segmenter, colours: PromptSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = count_encodings(segmenter, monkeypatch)
    result = segmenter(halves(), prompts=colours)
    assert shapes == [(1, 3, 64, 128)]
    assert result.prompts == (("crop",), ("crop",))
    assert segmenter(halves(), prompts=colours, refine=False).prompts == (("reference",), ("reference",))


def test_refinement_keeps_to_its_thresholds(segmenter: Segmenter, colours: PromptSet) -> None:
    strict = Segmenter(segmenter.model, refinement=RefineConfig(min_area=0.9), cache=segmenter.cache)
    assert strict(halves(), prompts=colours).prompts == (("reference",), ("reference",))


def test_background_gets_no_class(segmenter: Segmenter, colours: PromptSet) -> None:
    plain = segmenter(halves(), prompts=colours, refine=False)
    limit = float(np.median(plain.scores.max(axis=0)))
    result = segmenter(halves(), prompts=colours, refine=False, background=limit)
    none = result.labels == -1
    assert 0.2 < none.mean() < 0.8
    assert (plain.scores.max(axis=0)[none] <= limit + 1e-5).all()
    assert np.array_equal(result.labels[~none], plain.labels[~none])
    assert (segmenter(halves(), prompts=colours, background=1.0).labels == -1).all()


def test_size_changes_the_encoder_size_only(
    segmenter: Segmenter, colours: PromptSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = count_encodings(segmenter, monkeypatch)
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
    other = segmenter.decode(encoded, colours.select(["blue"]))
    assert other[1].names == ("blue",)
    with pytest.raises(ConfigError, match="several encoder sizes"):
        segmenter.encode([halves(), halves(64, 128)])


def test_options_out_of_range_are_refused(segmenter: Segmenter, colours: PromptSet) -> None:
    with pytest.raises(ConfigError, match=r"background 1\.5"):
        segmenter(halves(), prompts=colours, background=1.5)
    with pytest.raises(ConfigError, match="size 7"):
        segmenter(halves(), prompts=colours, size=7)
    with pytest.raises(ConfigError, match="batch size 0"):
        segmenter.stream([], colours, batch_size=0)
    with pytest.raises(PromptError, match="one of the two"):
        segmenter(halves(), text=["red"], prompts=colours)
    with pytest.raises(PromptError, match="no classes given"):
        segmenter(halves())


def test_stream_keeps_the_order_and_carries_on_after_errors(
    segmenter: Segmenter, colours: PromptSet, tmp_path: Path
) -> None:
    halves().save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:200])
    images = [str(tmp_path / "good.png"), tmp_path / "bad.png", halves(64, 128), halves(), tmp_path / "missing.png"]
    pairs = list(segmenter.stream(images, colours, batch_size=3))
    assert [image for image, _ in pairs] == images
    kinds = [type(result) for _, result in pairs]
    assert kinds == [Segmentation, ImageError, Segmentation, Segmentation, ImageError]
    assert "bad.png" in str(pairs[1][1])
    assert "missing.png" in str(pairs[4][1])


def test_stream_gives_what_single_calls_give(
    segmenter: Segmenter, colours: PromptSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [halves(), halves(64, 128), halves(256, 128), halves(128, 128), halves()]
    alone = [segmenter(image, prompts=colours) for image in images]
    shapes = count_encodings(segmenter, monkeypatch)
    streamed = [result for _, result in segmenter.stream(images, colours, batch_size=4)]
    assert shapes == [(2, 3, 64, 128), (1, 3, 128, 64), (1, 3, 64, 64), (1, 3, 64, 128)]
    for one, other in zip(alone, streamed, strict=True):
        assert isinstance(other, Segmentation)
        np.testing.assert_allclose(one.logits, other.logits, atol=1e-4)
        assert (one.labels == other.labels).mean() > 0.999


def test_stream_is_lazy_and_flat_in_memory(
    segmenter: Segmenter, colours: PromptSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Photo]] = []
    original = dpseg.photos.load_photo

    def load(*arguments: object) -> Photo:
        photo = original(*arguments)  # type: ignore[arg-type]
        alive.append(weakref.ref(photo))
        return photo

    def images() -> Iterator[Image.Image]:
        while True:
            yield halves()

    monkeypatch.setattr(dpseg.photos, "load_photo", load)
    stream = segmenter.stream(images(), colours, batch_size=2)
    assert not alive
    for _ in range(12):
        next(stream)
        gc.collect()
        assert sum(reference() is not None for reference in alive) <= 2 + 2 + 2
    stream.close()  # type: ignore[attr-defined]
    assert 12 <= len(alive) <= 18


def test_large_photos_end_a_batch_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dpseg.photos, "BATCH_PIXELS", 16_000)
    images = [halves(), halves(), halves(), Image.new("RGB", (200, 200)), halves()]
    batches = dpseg.photos.photo_batches(images, CONFIG, 32, None, batch_size=8)
    assert [len(batch) for batch in batches] == [2, 2, 1]


def test_crops_come_from_a_photo_of_bounded_size() -> None:
    photo = dpseg.photos.load_photo(Image.new("RGB", (2560, 100), RED), CONFIG, 32)
    assert photo.crop_source().shape == (3, 50, 1280)
    assert dpseg.photos.load_photo(halves(), CONFIG, 32).crop_source().shape == (3, 64, 128)
