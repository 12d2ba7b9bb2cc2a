"""Prompt sets from words, pictures and a bank, with the tiny encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dpseg.cache import EmbeddingCache
from dpseg.config import ModelConfig
from dpseg.errors import ImageError, PromptError
from dpseg.model.prompt_encoding import name_features, prompt_fingerprint
from dpseg.model.prompting import References, build_prompts
from dpseg.model.tiny import TinyEncoder
from dpseg.prompts.bank import Bank
from dpseg.prompts.prompt_set import PromptSet
from dpseg.prompts.text import parse_classes
from dpseg.prompts.visual import Reference

RED, BLUE = (200, 30, 20), (20, 40, 210)


class CountingEncoder(TinyEncoder):
    """Notes the texts that it encodes."""

    def __init__(self) -> None:
        super().__init__(ModelConfig(encoder="tiny"))
        self.encoded: list[str] = []

    def text_features(self, texts: Sequence[str]) -> Tensor:
        self.encoded += texts
        return super().text_features(texts)


@pytest.fixture
def encoder() -> CountingEncoder:
    return CountingEncoder()


@pytest.fixture
def cache(tmp_path: Path) -> EmbeddingCache:
    return EmbeddingCache(tmp_path / "cache")


@pytest.fixture
def bank(encoder: CountingEncoder, cache: EmbeddingCache) -> Bank:
    names = ("cat", "sofa")
    features = name_features(encoder, parse_classes(names), cache)
    generator = torch.Generator().manual_seed(0)
    s2, s3, s4 = (torch.randn(2, size, generator=generator) for size in encoder.stage_dims)
    dense = torch.randn(2, encoder.embed_dim, generator=generator)
    return Bank(names, features, dense, (s2, s3, s4), encoder.fingerprint)


def build(
    encoder: TinyEncoder,
    cache: EmbeddingCache,
    text: list[str] | None,
    references: References | None = None,
    templates: int = 2,
    bank: Bank | None = None,
) -> PromptSet:
    return build_prompts(encoder, text, references, templates, cache, bank)


def test_text_is_the_mean_of_unit_vectors_over_synonyms(encoder: CountingEncoder, cache: EmbeddingCache) -> None:
    prompts = build(encoder, cache, ["cat", "couch, sofa"])
    assert prompts.names == ("cat", "couch")
    assert prompts.sources == (("text",), ("text",))
    assert prompts.encoder == prompt_fingerprint(encoder)
    embeddings = prompts.embeddings
    assert embeddings.text.shape == (2, 2, encoder.embed_dim)
    for m, sentence in enumerate(("a photo of a {}.", "a photo of the {}.")):
        texts = [sentence.format("couch"), sentence.format("sofa")]
        units = F.normalize(encoder.project_text(encoder.text_features(texts)), dim=-1)
        torch.testing.assert_close(embeddings.text[1, m], F.normalize(units.mean(dim=0), dim=-1))
    assert embeddings.has_text.tolist() == [True, True]
    assert embeddings.has_visual.tolist() == [False, False]
    assert not embeddings.visual.any()
    assert not embeddings.text.requires_grad


def test_a_text_is_encoded_once_for_all_times(encoder: CountingEncoder, cache: EmbeddingCache) -> None:
    first = build(encoder, cache, ["cat", "dog"], templates=1)
    assert encoder.encoded == ["a photo of a cat.", "a photo of a dog."]
    again = build(encoder, EmbeddingCache(cache.folder), ["dog", "cow"], templates=1)
    assert encoder.encoded[2:] == ["a photo of a cow."]
    assert torch.equal(again.embeddings.text[0], first.embeddings.text[1])


def test_trained_projections_are_never_cached(encoder: CountingEncoder, cache: EmbeddingCache) -> None:
    before = build(encoder, cache, ["cat"])
    with torch.no_grad():
        encoder.text_projection.weight.mul_(-1.0).add_(0.1)
    after = build(encoder, cache, ["cat"])
    assert not torch.allclose(before.embeddings.text, after.embeddings.text)
    assert before.encoder != after.encoder


def test_pictures_are_unit_vectors_averaged(encoder: CountingEncoder, cache: EmbeddingCache) -> None:
    pictures = [Image.new("RGB", (40, 40), colour) for colour in (RED, BLUE)]
    prompts = build(encoder, cache, ["wall", "mug, cup"], {"mug": pictures})
    embeddings = prompts.embeddings
    assert prompts.sources == (("text",), ("text", "reference"))
    assert embeddings.has_visual.tolist() == [False, True]
    crops, masks = zip(*(Reference(picture).crop(encoder.crop_size) for picture in pictures), strict=True)
    features = encoder.visual_features(torch.stack(crops), torch.stack(masks))
    mean = F.normalize(features.dense, dim=-1).mean(dim=0)
    torch.testing.assert_close(embeddings.visual[1, 0], F.normalize(mean, dim=-1))
    for j in range(3):
        mean = F.normalize(features.stages[j], dim=-1).mean(dim=0)
        torch.testing.assert_close(embeddings.stages[j][1, 0], F.normalize(mean, dim=-1))
        assert not embeddings.stages[j][0].any()


def test_many_pictures_are_encoded_in_parts(encoder: CountingEncoder, cache: EmbeddingCache) -> None:
    pictures = [Image.new("RGB", (20, 20), (number * 5, 90, 200)) for number in range(37)]
    together = build(encoder, cache, None, {"a": pictures[:20], "b": pictures[20:]})
    alone = build(encoder, cache, None, {"b": pictures[20:]})
    torch.testing.assert_close(together.embeddings.visual[1], alone.embeddings.visual[0])


def test_a_mask_decides_what_is_encoded(encoder: CountingEncoder, cache: EmbeddingCache) -> None:
    picture = Image.new("RGB", (64, 64), RED)
    picture.paste(BLUE, (0, 0, 32, 64))
    left = np.zeros((64, 64), dtype=bool)
    left[:, :32] = True
    prompts = build(
        encoder,
        cache,
        None,
        {"left": Reference(picture, mask=left), "blue": Image.new("RGB", (64, 64), BLUE), "all": picture},
    )
    visual = prompts.embeddings.visual[:, 0]
    assert visual[0] @ visual[1] > visual[2] @ visual[1] + 0.01


def test_without_words_the_classes_are_the_pictures(encoder: CountingEncoder, cache: EmbeddingCache) -> None:
    prompts = build(encoder, cache, None, {"part 7": [Image.new("RGB", (20, 20), RED)]})
    assert prompts.names == ("part 7",)
    assert prompts.sources == (("reference",),)
    assert prompts.embeddings.has_text.tolist() == [False]
    assert prompts.embeddings.text.shape == (1, 2, encoder.embed_dim)
    assert not prompts.embeddings.text.any()
    assert prompts.embeddings.has_visual.tolist() == [True]
    assert encoder.encoded == []


def test_references_go_by_any_name_of_their_class(encoder: CountingEncoder, cache: EmbeddingCache) -> None:
    picture = Image.new("RGB", (20, 20), RED)
    prompts = build(encoder, cache, ["couch, sofa", "lamp"], {"Sofa": picture, "couch": [picture]})
    assert prompts.sources == (("text", "reference"), ("text",))


def test_the_bank_fills_in_for_words_alone(encoder: CountingEncoder, cache: EmbeddingCache, bank: Bank) -> None:
    picture = Image.new("RGB", (20, 20), RED)
    prompts = build(encoder, cache, ["cat", "couch, sofa", "qqq"], {"couch": picture}, bank=bank)
    assert prompts.sources == (("text", "bank"), ("text", "reference"), ("text",))
    embeddings = prompts.embeddings
    assert embeddings.has_visual.tolist() == [True, True, False]
    torch.testing.assert_close(embeddings.visual[0, 0], F.normalize(bank.dense[0], dim=-1))
    torch.testing.assert_close(embeddings.stages[2][0, 0], F.normalize(bank.stages[2][0], dim=-1))
    own = build(encoder, cache, ["couch"], {"couch": picture})
    torch.testing.assert_close(embeddings.visual[1], own.embeddings.visual[0])


def test_the_bank_leaves_pictures_without_words_alone(
    encoder: CountingEncoder, cache: EmbeddingCache, bank: Bank
) -> None:
    prompts = build(encoder, cache, None, {"cat": Image.new("RGB", (20, 20), RED)}, bank=bank)
    assert prompts.sources == (("reference",),)


@pytest.mark.parametrize(
    ("text", "references", "message"),
    [
        ([], None, "no classes given"),
        (None, None, "no classes given"),
        (None, {}, "no classes given"),
        (["cat", "Cat"], None, "given twice"),
        (["mug", "wall"], {"mugg": RED}, "not listed, 'mugg'; did you mean 'mug'"),
        (["mug"], {"mug": []}, "empty list of references"),
    ],
)
def test_what_cannot_be_used_is_refused(
    encoder: CountingEncoder,
    cache: EmbeddingCache,
    text: list[str] | None,
    references: dict[str, object] | None,
    message: str,
) -> None:
    usable = {
        name: Image.new("RGB", (9, 9), value) if isinstance(value, tuple) else value
        for name, value in (references or {}).items()
    }
    with pytest.raises(PromptError, match=message):
        build(encoder, cache, text, usable if references is not None else None)  # type: ignore[arg-type]


def test_faulty_pictures_are_named(encoder: CountingEncoder, cache: EmbeddingCache, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nowhere\.jpg"):
        build(encoder, cache, ["mug"], {"mug": str(tmp_path / "nowhere.jpg")})
    empty = Reference(Image.new("RGB", (9, 9), RED), mask=np.zeros((9, 9), dtype=bool))
    with pytest.raises(PromptError, match="empty"):
        build(encoder, cache, ["mug"], {"mug": empty})
