"""Words and crops -> the embeddings of a prompt set: T, V and GAP(V_j), by an encoder, cached where that is safe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpseg.cache import EmbeddingCache, content_key
from dpseg.model.encoders import Encoder
from dpseg.model.fingerprint import weights_fingerprint
from dpseg.prompts.banks import PictureBank
from dpseg.prompts.prompt_set import VisualPrompts
from dpseg.prompts.text import ClassName, expand

TEXT_BATCH = 256
"""Texts encoded at a time."""

CROP_BATCH = 16
"""Prompt pictures encoded at a time on a GPU. A CPU takes one at a time: with more, each takes up to twice as long, for
their features no longer fit in its caches (measured with lite)."""

VisualRows = tuple[Tensor, tuple[Tensor, Tensor, Tensor]]
"""V (N, D) and GAP(V_j) for j = 2, 3, 4: (N, D_j), all unit vectors."""


def prompt_fingerprint(encoder: Encoder) -> str:
    """Returns what tells prompt embeddings apart: the encoder's own fingerprint and its trained projections."""
    assert isinstance(encoder, nn.Module)
    return weights_fingerprint(encoder.fingerprint, encoder.state_dict().values())


def text_features(encoder: Encoder, texts: Sequence[str], cache: EmbeddingCache) -> Tensor:
    """Encodes N texts with the frozen text encoder, only those that the cache does not hold: (N, F_t)."""
    keys = {text: content_key("text", text) for text in texts}
    known = cache.get_many(encoder.fingerprint, list(keys.values()))
    missing = [text for text, key in keys.items() if key not in known]
    for start in range(0, len(missing), TEXT_BATCH):
        part = missing[start : start + TEXT_BATCH]
        features = encoder.text_features(part).float().cpu()
        fresh = {keys[text]: row for text, row in zip(part, features, strict=True)}
        cache.put_many(encoder.fingerprint, fresh)
        known |= fresh
    return torch.stack([known[keys[text]] for text in texts])


@dataclass(frozen=True, eq=False)
class TextPrompts:
    """Encoded words of K classes.

    Attributes:
        embeddings: T, (K, M, D) unit vectors: for each class and template the average over the class's synonyms.
        familiarity: (K,) in [0, 1], of the best known of its synonyms, averaged over templates; see `Encoder`.
        log_frequency: (K,), of that synonym, averaged over templates; see `Encoder`.
    """

    embeddings: Tensor
    familiarity: Tensor
    log_frequency: Tensor


@torch.no_grad()
def text_prompts(
    encoder: Encoder, classes: Sequence[ClassName], sentences: Sequence[str], cache: EmbeddingCache
) -> TextPrompts:
    """Encodes the words of K classes, and says what training knew of them.

    Args:
        encoder: whose text encoder and joint space.
        classes: K classes.
        sentences: M templates.
        cache: where features of texts are kept. They are those of the frozen text encoder, before any projection that
            training changes.
    """
    expanded = [texts for entry in classes for texts in expand(entry, sentences)]  # K x M lists of synonyms
    features = text_features(encoder, [text for texts in expanded for text in texts], cache)
    features = features.to(encoder_device(encoder))
    owners = [row for row, texts in enumerate(expanded) for _ in texts]
    embeddings = _group_means(F.normalize(encoder.project_text(features), dim=-1), owners, len(expanded))
    shape, familiarity = (len(classes), len(sentences)), encoder.familiarity(features)
    ascending = familiarity.argsort()
    ascending = ascending[torch.tensor(owners, device=features.device)[ascending].argsort(stable=True)]
    ends = torch.tensor([len(texts) for texts in expanded], device=features.device).cumsum(dim=0)
    best = ascending[ends - 1]  # of each list, the synonym that training knew best
    return TextPrompts(
        embeddings.view(*shape, -1),
        familiarity[best].view(shape).mean(dim=1),
        encoder.log_frequency(features)[best].view(shape).mean(dim=1),
    )


@torch.no_grad()
def name_features(encoder: Encoder, classes: Sequence[ClassName], cache: EmbeddingCache) -> Tensor:
    """Returns unit text features of the bare names, averaged over synonyms, (K, F_t): by them a bank is looked up."""
    owners = [row for row, entry in enumerate(classes) for _ in entry.synonyms]
    features = text_features(encoder, [name for entry in classes for name in entry.synonyms], cache)
    return _group_means(F.normalize(features, dim=-1), owners, len(classes))


@torch.no_grad()
def crop_rows(encoder: Encoder, crops: Iterable[tuple[Tensor, Tensor]]) -> VisualRows:
    """Encodes prompt pictures, a few at a time.

    Args:
        encoder: whose visual prompt encoder and joint space.
        crops: N pairs of a picture (3, s, s), RGB in [0, 1], and its mask (s, s) in [0, 1].
    """
    device = encoder_device(encoder)
    size = 1 if device.type == "cpu" else CROP_BATCH
    parts: list[VisualRows] = []
    batch: list[tuple[Tensor, Tensor]] = []

    def encode() -> None:
        features = encoder.visual_features(
            torch.stack([crop for crop, _ in batch]).to(device), torch.stack([mask for _, mask in batch]).to(device)
        )
        parts.append(unit_rows(encoder, features.dense, features.stages))
        batch.clear()

    for pair in crops:
        batch.append(pair)
        if len(batch) == size:
            encode()
    if batch:
        encode()
    s2, s3, s4 = (torch.cat([stages[j] for _, stages in parts]) for j in range(3))
    return torch.cat([dense for dense, _ in parts]), (s2, s3, s4)


def visual_prompts(names: Sequence[str], owners: Sequence[int], rows: VisualRows, source: str) -> VisualPrompts:
    """Averages the pictures of each class and makes unit vectors of the averages.

    Args:
        names: C classes.
        owners: for each of N pictures the class that it shows, an index into `names`; each class has one at least.
        rows: the encoded pictures.
        source: where they come from, e.g. "reference".
    """
    visual, stages = rows
    s2, s3, s4 = (_group_means(stage, owners, len(names))[:, None] for stage in stages)
    return VisualPrompts(tuple(names), _group_means(visual, owners, len(names))[:, None], (s2, s3, s4), source)


@torch.no_grad()
def bank_prompts(
    encoder: Encoder, bank: PictureBank, classes: Sequence[ClassName], cache: EmbeddingCache
) -> list[VisualPrompts]:
    """Returns what a bank has for the classes that it knows by meaning, those of each source together.

    Args:
        encoder: whose joint space.
        bank: one, or several that are asked in turn.
        classes: K classes.
        cache: where features of texts are kept.
    """
    match = bank.lookup(name_features(encoder, classes, cache))
    device = encoder_device(encoder)
    prompts = []
    for source in dict.fromkeys(kind for kind in match.sources if kind):
        found = [row for row, kind in enumerate(match.sources) if kind == source]
        s2, s3, s4 = (stage[found].to(device) for stage in match.stages)
        rows = unit_rows(encoder, match.dense[found].to(device), (s2, s3, s4))
        prompts.append(visual_prompts([classes[row].name for row in found], range(len(found)), rows, source))
    return prompts


def unit_rows(encoder: Encoder, dense: Tensor, stages: tuple[Tensor, Tensor, Tensor]) -> VisualRows:
    """Makes V and GAP(V_j) of visual features before the projection, as `VisualFeatures` has them: N rows."""
    s2, s3, s4 = (F.normalize(stage.float(), dim=-1) for stage in stages)
    return F.normalize(encoder.project_visual(dense).float(), dim=-1), (s2, s3, s4)


def _group_means(rows: Tensor, owners: Sequence[int], groups: int) -> Tensor:
    """Averages the rows (N, D) of each group, and makes unit vectors of the averages: (groups, D)."""
    sums = rows.new_zeros(groups, rows.shape[-1])
    return F.normalize(sums.index_add(0, torch.tensor(list(owners), device=rows.device), rows), dim=-1)


def encoder_device(encoder: Encoder) -> torch.device:
    """Returns where the encoder's weights are."""
    assert isinstance(encoder, nn.Module)
    return next(encoder.parameters()).device
