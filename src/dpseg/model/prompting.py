"""Words, reference pictures and a bank -> a PromptSet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from dpseg.cache import EmbeddingCache
from dpseg.errors import PromptError, did_you_mean
from dpseg.images import ImageLike
from dpseg.matching import Matching
from dpseg.model.encoders import Encoder
from dpseg.model.matching import contrast_rows, words_worth
from dpseg.model.prompt_encoding import (
    TextPrompts,
    bank_prompts,
    crop_rows,
    encoder_device,
    prompt_fingerprint,
    text_prompts,
    visual_prompts,
)
from dpseg.prompts.banks import PictureBank
from dpseg.prompts.prompt_set import TEXT_SOURCE, PromptEmbeddings, PromptSet
from dpseg.prompts.text import ClassName, parse_classes, templates
from dpseg.prompts.visual import Reference

AnyReference: TypeAlias = "Reference | ImageLike"
References: TypeAlias = "Mapping[str, AnyReference | Sequence[AnyReference]]"
"""Pictures by class: one or several each, with a mask or a box where a `Reference` says so."""


def build_prompts(
    encoder: Encoder,
    text: Sequence[str] | None,
    references: References | None,
    template_count: int,
    cache: EmbeddingCache,
    bank: PictureBank | None = None,
    matching: Matching | None = None,
) -> PromptSet:
    """Encodes the prompts of K classes.

    Args:
        encoder: of the model that will use them.
        text: K classes, synonyms after commas; None: the classes are those of `references`, by their pictures alone.
        references: pictures of some or all of the classes, under any of a class's names.
        template_count: M, 1 to 80.
        cache: where features of texts are kept.
        bank: pictures for classes that have words and no references.
        matching: how references and words are weighed; None: as in the paper.

    Raises:
        PromptError: there is no class, one stands twice, a reference is of a class that is not listed, or a picture's
            mask or box does not fit.
        ImageError: a picture cannot be read.
    """
    pictures = _by_name(references or {})
    classes = parse_classes(list(pictures) if text is None else text)
    owned = _by_class(classes, pictures)
    matching, sentences = matching or Matching(), templates(template_count)
    words = None if text is None else text_prompts(encoder, classes, sentences, cache)  # T
    prompts = _without_pictures(encoder, classes, words, matching, template_count)
    prior = torch.zeros(len(classes), device=prompts.embeddings.text.device)  # in pictures
    if words is not None:
        prior = matching.prior * words.familiarity
    if bank is not None and words is not None:
        place = {entry.name: number for number, entry in enumerate(classes)}
        wordy = [entry for entry in classes if entry.name not in owned]
        for found in bank_prompts(encoder, bank, wordy, cache) if wordy else ():
            places = [place[name] for name in found.names]
            prompts = _weigh_words(prompts.replace(found), places, 1 + prior[places])
    if owned:
        prompts = _with_references(encoder, prompts, owned, matching, prior)
    return prompts if words is None else _adjust_what_was_known(prompts, words.familiarity)


def _by_name(references: References) -> dict[str, list[Reference]]:
    """Puts every value of `references` into the form of a list."""
    pictures: dict[str, list[Reference]] = {}
    for name, value in references.items():
        several = isinstance(value, Sequence) and not isinstance(value, str)
        items: Sequence[AnyReference] = value if several else [value]  # type: ignore[assignment, list-item]
        if not items:
            raise PromptError(f"class {name!r} has an empty list of references; give a picture, or leave the class out")
        pictures[name] = [item if isinstance(item, Reference) else Reference(item) for item in items]
    return pictures


def _by_class(classes: Sequence[ClassName], pictures: Mapping[str, list[Reference]]) -> dict[str, list[Reference]]:
    """Finds each reference's class, by any of its names: display name -> its pictures."""
    names = {synonym.casefold(): entry.name for entry in reversed(classes) for synonym in entry.synonyms}
    names |= {entry.name.casefold(): entry.name for entry in classes}
    owned: dict[str, list[Reference]] = {}
    for given, items in pictures.items():
        spelling = " ".join(given.split(",")[0].split())
        if spelling.casefold() not in names:
            hint = did_you_mean(spelling, [entry.name for entry in classes])
            raise PromptError(f"reference for a class that is not listed, {given!r}; {hint}, or add it to the classes")
        owned.setdefault(names[spelling.casefold()], []).extend(items)
    return owned


def _without_pictures(
    encoder: Encoder, classes: Sequence[ClassName], words: TextPrompts | None, matching: Matching, template_count: int
) -> PromptSet:
    """Returns prompts of words alone; or, where there are no words, of nothing yet."""
    count, has_text = len(classes), words is not None
    zeros = torch.zeros(count, template_count, encoder.embed_dim, device=encoder_device(encoder))
    text = zeros if words is None else words.embeddings
    s2, s3, s4 = (text.new_zeros(count, 1, size) for size in encoder.stage_dims)
    embeddings = PromptEmbeddings(
        text=text,
        visual=text.new_zeros(count, 1, encoder.embed_dim),  # V
        stages=(s2, s3, s4),
        has_text=torch.full((count,), has_text, device=text.device),
        has_visual=torch.zeros(count, dtype=torch.bool, device=text.device),
        adjustment=-matching.logit_adjustment * words.log_frequency if words and matching.logit_adjustment else None,
    )
    sources = ((TEXT_SOURCE,) if has_text else (),) * count
    return PromptSet(tuple(entry.name for entry in classes), embeddings, prompt_fingerprint(encoder), sources)


def _with_references(
    encoder: Encoder, prompts: PromptSet, owned: Mapping[str, Sequence[Reference]], matching: Matching, prior: Tensor
) -> PromptSet:
    """Encodes the pictures of each class, and puts their average in; words count for `prior` (K,) pictures more."""
    names = list(owned)
    places = [prompts.names.index(name) for name in names]
    owners = [number for number, name in enumerate(names) for _ in owned[name]]
    rows = crop_rows(encoder, (crop for name in names for crop in _crops(encoder, owned[name])))
    found = visual_prompts(names, owners, rows, "reference")
    counts = torch.tensor([float(len(owned[name])) for name in names], device=found.visual.device)
    weights = 1 + prior[places] / counts  # of T, where V is a unit vector
    if matching.contrast:
        directions = contrast_rows(encoder, (_crops(encoder, owned[name]) for name in names), matching.turned)
        visual = found.visual + matching.contrast * directions[:, None]
        found = replace(found, visual=F.normalize(visual, dim=-1))
        weights = weights / visual.norm(dim=-1).mean(dim=1)  # contrast joins Avg(T, V)
    old = prompts.embeddings
    if matching.weigh_words and bool(old.has_text.all()):
        weights = weights * words_worth(old.text, [places[owner] for owner in owners], rows[0])
    return _weigh_words(prompts.replace(found), places, weights)


def _adjust_what_was_known(prompts: PromptSet, familiarity: Tensor) -> PromptSet:
    """Keeps the adjustment of classes that have pictures as far as training knew their words: the rest is pictures'."""
    old = prompts.embeddings
    if old.adjustment is None:
        return prompts
    kept = torch.where(old.has_visual, familiarity, 1.0)
    return prompts.with_embeddings(replace(old, adjustment=old.adjustment * kept))


def _weigh_words(prompts: PromptSet, places: Sequence[int], weights: Tensor) -> PromptSet:
    """Multiplies T of the classes at `places` with weights (C,)."""
    text = prompts.embeddings.text.clone()
    text[list(places)] *= weights[:, None, None].to(text)
    return prompts.with_embeddings(replace(prompts.embeddings, text=text))


def _crops(encoder: Encoder, pictures: Sequence[Reference]) -> Iterator[tuple[Tensor, Tensor]]:
    return (picture.crop(encoder.crop_size) for picture in pictures)
