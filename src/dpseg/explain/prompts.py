"""What prompts say about their classes: how words, pictures and classes lie to each other in the joint space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from dpseg.explain.gap import KINDS, Vectors, prompt_vectors
from dpseg.explain.origins import Origins, Picture
from dpseg.explain.prompt_report import ClassReport, Near, PictureReport, PromptReport
from dpseg.explain.prompt_warnings import (
    LEAST_PICTURES,
    UNLIKE,
    alike_classes,
    notes,
    unknown_words,
    unlike_pictures,
)
from dpseg.model.encoders import Encoder
from dpseg.prompts.prompt_set import PromptSet


def inspect_prompts(encoder: Encoder, prompts: PromptSet, origins: Origins) -> PromptReport:
    """Compares the prompts of K classes with each other.

    Args:
        encoder: that made the prompts.
        prompts: of K classes.
        origins: what is known of where they come from.
    """
    vectors = prompt_vectors(prompts.embeddings)  # T, V and R
    has_text, has_visual = (flag.cpu().numpy() for flag in (prompts.embeddings.has_text, prompts.embeddings.has_visual))
    there = {"text": has_text, "visual": has_visual, "dual": has_text | has_visual}
    cosines = {kind: _cosines(vectors[kind], there[kind]) for kind in KINDS}
    agreement = (vectors["text"] * vectors["visual"]).sum(axis=1)
    reports = []
    for k, name in enumerate(prompts.names):
        words = vectors["text"][k] if has_text[k] else None
        reports.append(
            ClassReport(
                name=name,
                words=origins.words.get(name, ()),
                sources=prompts.sources[k] if prompts.sources else (),
                agreement=float(agreement[k]) if has_text[k] and has_visual[k] else None,
                nearest=_nearest(prompts.names, k, cosines),
                bank=origins.bank.get(name, ()),
                pictures=_pictures(origins.pictures.get(name, ()), words),
            )
        )
    warnings = [
        *alike_classes(reports, cosines["dual"]),
        *unlike_pictures(reports, origins, vectors["visual"], has_visual),
        *unknown_words(encoder, reports),
    ]
    return PromptReport(tuple(reports), tuple(warnings), tuple(notes(reports, has_visual)))


def _cosines(vectors: Vectors, there: NDArray[np.bool_]) -> Vectors:
    """Returns cosines of K unit vectors with each other, (K, K); -inf with itself and where one is missing."""
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    cosines[~there] = cosines[:, ~there] = -np.inf
    return cosines


def _nearest(names: Sequence[str], k: int, cosines: Mapping[str, Vectors]) -> dict[str, Near]:
    best = {kind: int(values[k].argmax()) for kind, values in cosines.items()}
    return {
        kind: Near(names[other], float(cosines[kind][k, other]))
        for kind, other in best.items()
        if np.isfinite(cosines[kind][k, other])
    }


def _pictures(pictures: Sequence[Picture], words: Vectors | None) -> tuple[PictureReport, ...]:
    """Compares the pictures of a class with its words, T (D,), and with each other."""
    others: list[float | None] = [None] * len(pictures)
    unlike = [False] * len(pictures)
    if len(pictures) > 1:
        rows = torch.stack([picture.vector for picture in pictures])
        rest = F.normalize(rows.sum(dim=0) - rows, dim=-1)  # the average of the others, each time
        found = (rest * rows).sum(dim=-1)
        others = [float(value) for value in found]
        if len(pictures) >= LEAST_PICTURES:
            middle = found.quantile(0.5)  # pictures that have nothing in common tell nothing
            unlike = ((found < UNLIKE * middle) & (middle > 0)).tolist()
    return tuple(
        PictureReport(
            source=picture.source,
            reference=picture.reference,
            to_words=None if words is None else float(picture.vector.numpy() @ words),
            to_others=to_others,
            unlike=odd,
        )
        for picture, to_others, odd in zip(pictures, others, unlike, strict=True)
    )
