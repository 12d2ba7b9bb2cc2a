"""Prompt sets from words, pictures and a bank, with the tiny encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dpseg.cache import EmbeddingCache
from dpseg.config import ModelConfig
from dpseg.errors import DPSegError, ImageError, PromptError
from dpseg.model.prompt_encoding import name_features, prompt_fingerprint
from dpseg.model.prompting import References, build_prompts
from dpseg.model.tiny import TinyEncoder
from dpseg.prompts.bank import Bank
from dpseg.prompts.prompt_set import PromptSet
from dpseg.prompts.text import parse_classes
from dpseg.prompts.visual import Reference
from support.pictures import BLUE, RED, halves, plain


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


def test_a_text_is_encoded_once_for_all_times_and_its_trained_projection_never_cached(
    encoder: CountingEncoder, cache: EmbeddingCache
) -> None:
    first = build(encoder, cache, ["cat", "dog"], templates=1)
    assert encoder.encoded == ["a photo of a cat.", "a photo of a dog."]
    again = build(encoder, EmbeddingCache(cache.folder), ["dog", "cow"], templates=1)
    assert encoder.encoded[2:] == ["a photo of a cow."]
    assert torch.equal(again.embeddings.text[0], first.embeddings.text[1])
    with torch.no_grad():
        encoder.text_projection.weight.mul_(-1.0).add_(0.1)
    after = build(encoder, cache, ["cat", "dog"], templates=1)
    assert len(encoder.encoded) == 3
    assert not torch.allclose(first.embeddings.text, after.embeddings.text)
    assert first.encoder != after.encoder


def test_pictures_are_unit_vectors_averaged_under_any_name_of_their_class(
    encoder: CountingEncoder, cache: EmbeddingCache
) -> None:
    pictures = [plain(RED, 40), plain(BLUE, 40)]
    prompts = build(encoder, cache, ["wall", "mug, cup"], {"Cup": pictures[0], "mug": pictures[1:]})
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
    pictures = [plain((number * 5, 90, 200), 20) for number in range(37)]
    together = build(encoder, cache, None, {"a": pictures[:20], "b": pictures[20:]})
    alone = build(encoder, cache, None, {"b": pictures[20:]})
    torch.testing.assert_close(together.embeddings.visual[1], alone.embeddings.visual[0])


def test_a_mask_decides_what_is_encoded(encoder: CountingEncoder, cache: EmbeddingCache) -> None:
    picture = halves(64, left=BLUE, right=RED)
    left = np.zeros((64, 64), dtype=bool)
    left[:, :32] = True
    references: References = {"left": Reference(picture, mask=left), "blue": plain(BLUE, 64), "all": picture}
    visual = build(encoder, cache, None, references).embeddings.visual[:, 0]
    assert visual[0] @ visual[1] > visual[2] @ visual[1] + 0.01


def test_without_words_the_classes_are_the_pictures(encoder: CountingEncoder, cache: EmbeddingCache) -> None:
    prompts = build(encoder, cache, None, {"part 7": [plain(RED, 20)]})
    assert prompts.names == ("part 7",)
    assert prompts.sources == (("reference",),)
    assert prompts.embeddings.has_text.tolist() == [False]
    assert prompts.embeddings.text.shape == (1, 2, encoder.embed_dim)
    assert not prompts.embeddings.text.any()
    assert prompts.embeddings.has_visual.tolist() == [True]
    assert encoder.encoded == []


def test_the_bank_fills_in_for_words_alone(encoder: CountingEncoder, cache: EmbeddingCache) -> None:
    generator = torch.Generator().manual_seed(0)
    s2, s3, s4, dense = (torch.randn(2, d, generator=generator) for d in (*encoder.stage_dims, encoder.embed_dim))
    features = name_features(encoder, parse_classes(["cat", "sofa"]), cache)
    bank = Bank(("cat", "sofa"), features, dense, (s2, s3, s4), encoder.fingerprint)
    picture = plain(RED, 20)
    prompts = build(encoder, cache, ["cat", "couch, sofa", "qqq"], {"couch": picture}, bank=bank)
    assert prompts.sources == (("text", "bank"), ("text", "reference"), ("text",))
    embeddings = prompts.embeddings
    assert embeddings.has_visual.tolist() == [True, True, False]
    torch.testing.assert_close(embeddings.visual[0, 0], F.normalize(dense[0], dim=-1))
    torch.testing.assert_close(embeddings.stages[2][0, 0], F.normalize(s4[0], dim=-1))
    own = build(encoder, cache, ["couch"], {"couch": picture})
    torch.testing.assert_close(embeddings.visual[1], own.embeddings.visual[0])
    assert build(encoder, cache, None, {"cat": picture}, bank=bank).sources == (("reference",),)


@pytest.mark.parametrize(
    ("text", "references", "error", "message"),
    [
        ([], None, PromptError, "no classes given"),
        (None, None, PromptError, "no classes given"),
        (None, {}, PromptError, "no classes given"),
        (["cat", "Cat"], None, PromptError, "given twice"),
        (["mug", "wall"], {"mugg": plain(RED, 9)}, PromptError, "not listed, 'mugg'; did you mean 'mug'"),
        (["mug"], {"mug": []}, PromptError, "empty list of references"),
        (["mug"], {"mug": "none/nowhere.jpg"}, ImageError, r"nowhere\.jpg"),
        (["mug"], {"mug": Reference(plain(RED, 9), mask=np.zeros((9, 9), dtype=bool))}, PromptError, "empty"),
    ],
)
def test_what_cannot_be_used_is_refused(
    encoder: CountingEncoder, cache: EmbeddingCache, text: Any, references: Any, error: type[DPSegError], message: str
) -> None:
    with pytest.raises(error, match=message):
        build(encoder, cache, text, references)
