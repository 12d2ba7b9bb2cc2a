"""A bank's entries, looked up by meaning: the same blend as that of a bank in one file, `prompts.bank`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dpseg.errors import PromptError
from dpseg.prompts.bank import Bank, BankMatch
from dpseg.prompts.bank_contents import BankContents

_BLENDED = 3  # names at most, as in `Bank.lookup`
_QUERIES = 64  # compared with all names at a time


@dataclass(frozen=True)
class Neighbour:
    """A name of a bank beside a word.

    Attributes:
        name: the name.
        pictures: so many are averaged.
        cosine: of the text features, in [-1, 1].
        share: in the blend that the word gets, in [0, 1].
    """

    name: str
    pictures: int
    cosine: float
    share: float


def blend(contents: BankContents, text_features: Tensor, top: int = _BLENDED, floor: float = 0.8) -> BankMatch:
    """Blends, for each class, the names that are nearest in meaning; the pictures of a name are averaged first.

    The arguments and errors are those of `Bank.lookup`, which does it with the names that come into question.
    """
    queries = _unit_queries(contents, text_features)
    near: set[int] = set()
    for start in range(0, len(queries), _QUERIES):
        for cosines in contents.cosines(queries[start : start + _QUERIES]).T:
            near |= {number for number in _largest(cosines, top) if cosines[number] >= floor}
    if near:
        names = list(contents.by_name)
        return averages(contents, [names[number] for number in sorted(near)]).lookup(text_features, top, floor)
    count = len(queries)
    dense, s2, s3, s4 = (torch.zeros(count, size) for size in contents.head.sizes)
    nothing = torch.zeros(count, dtype=torch.bool)
    return BankMatch(nothing, dense, (s2, s3, s4), ((),) * count, ((),) * count, ("",) * count)


def nearest(contents: BankContents, text_features: Tensor, top: int) -> list[Neighbour]:
    """Returns the names that are nearest in meaning to a word, nearest first, and what they share of its blend.

    Args:
        contents: of the bank.
        text_features: (F_t,), any length.
        top: so many, 1 or more.

    Raises:
        PromptError: The text features are of another encoder.
    """
    cosines = contents.cosines(_unit_queries(contents, text_features[None]))[:, 0]
    names = list(contents.by_name)
    largest = _largest(cosines, max(top, _BLENDED))
    if not largest:
        return []
    match = averages(contents, [names[number] for number in largest[:_BLENDED]]).lookup(text_features[None])
    shares = dict(zip(match.names[0], match.weights[0], strict=True))
    return [
        Neighbour(
            name=names[number],
            pictures=len(contents.by_name[names[number]]),
            cosine=float(cosines[number]),
            share=shares.get(names[number], 0.0),
        )
        for number in largest[:top]
    ]


def averages(contents: BankContents, names: Sequence[str]) -> Bank:
    """Returns some names as a bank: a row a name, the average of its pictures."""
    text = torch.from_numpy(np.stack([contents.text(name) for name in names]))
    dense, stages = contents.means(names)
    return Bank(tuple(names), text, dense, stages, contents.head.encoder)


def _unit_queries(contents: BankContents, text_features: Tensor) -> NDArray[np.float32]:
    if text_features.ndim != 2 or text_features.shape[1] != contents.head.text:
        raise PromptError(
            f"text features of shape {tuple(text_features.shape)} do not fit the bank's, (K, {contents.head.text});"
            " use the bank of the same model"
        )
    queries: NDArray[np.float32] = F.normalize(text_features.detach().cpu().float(), dim=-1).numpy()
    return queries


def _largest(values: NDArray[np.float32], count: int) -> list[int]:
    """Returns the places of the largest values, the largest first."""
    count = min(count, len(values))
    largest = np.argpartition(-values, count - 1)[:count] if 0 < count < len(values) else np.arange(len(values))
    found: list[int] = largest[np.argsort(-values[largest], kind="stable")].tolist()
    return found[:count]
