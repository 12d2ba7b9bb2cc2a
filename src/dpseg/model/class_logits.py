"""Logits of one image as they come, some classes at a time, and what is kept of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpseg.model.label_map import LabelMap

UNDECODED = -1e4
"""The logit of a category that was not decoded or not kept: a score of 0."""

ALL_CLASSES = 1024
"""Up to so many classes the logits of all are kept; of more, those of `KEPT_CLASSES`."""

KEPT_CLASSES = 256
"""Of many classes, those that lead at most positions."""

COMPETING = 1024
"""Of more classes, those whose logit is highest somewhere in the photo compete for labels by `presence_shift`."""

_LEAST_SHARE = 1e-4
"""What a photo shows at least of any class, so that none is ruled out."""

_STEPS = 2
"""From the average scores to the shift, and from the shifted scores again; more change nothing (docs/decisions.md)."""


@dataclass(frozen=True, eq=False)
class ClassLogits:
    """Logits of some classes.

    Attributes:
        classes: (k,) int64 indices into the K classes.
        logits: (k, h, w).
    """

    classes: Tensor
    logits: Tensor


@dataclass(frozen=True, eq=False)
class Decoded:
    """What is kept of one image's logits, enough for labels, scores and refinement.

    Attributes:
        logits: (k, h, w).
        kept: (k,) int64, the classes that they are of, ascending: those that were decoded, or of very many those that
            lead; None: all K in order.
        best: (h, w), the logit of the class that leads.
        leaders: (h, w) int64, which of all K classes that is.
        labelling: labels at the photo's size.
    """

    logits: Tensor
    kept: Tensor | None
    best: Tensor
    leaders: Tensor
    labelling: LabelMap

    def labels(self) -> NDArray[np.int32]:
        """Returns the photo's labels, (H, W): in [0, K), or -1."""
        if not self.labelling.begun:
            self.labelling.add_all(self.logits, self.kept)
        return self.labelling.labels()

    def spread(self, count: int) -> tuple[Tensor, Tensor | None]:
        """Returns logits as users get them: with a row for each of K classes, of up to `ALL_CLASSES`.

        Args:
            count: K.

        Returns:
            (K, h, w), `UNDECODED` for classes that were not decoded, and None; of more classes `logits` and `kept`.
        """
        if self.kept is None or count > ALL_CLASSES:
            return self.logits, self.kept
        return all_logits([ClassLogits(self.kept, self.logits)], count), None


def all_logits(blocks: Iterable[ClassLogits], count: int) -> Tensor:
    """Puts blocks together: (K, h, w), `UNDECODED` for classes in none of them.

    Args:
        blocks: one or more.
        count: K.
    """
    logits: Tensor | None = None
    for block in blocks:
        if logits is None:
            logits = block.logits.new_full((count, *block.logits.shape[-2:]), UNDECODED)
        logits[block.classes] = block.logits
    assert logits is not None
    return logits


def _joined(blocks: Iterable[ClassLogits], count: int) -> ClassLogits:
    """Puts blocks together, classes ascending, in the memory of those that there are."""
    buffer: Tensor | None = None
    classes: list[Tensor] = []
    filled = 0
    for block in blocks:
        if buffer is None:
            buffer = block.logits.new_empty((count, *block.logits.shape[-2:]))  # rows that stay empty take no memory
        buffer[filled : filled + len(block.classes)] = block.logits
        filled += len(block.classes)
        classes.append(block.classes)
    assert buffer is not None
    order = torch.cat(classes)
    if bool((order.diff() > 0).all()):
        return ClassLogits(order, buffer[:filled])
    rows = order.argsort()
    return ClassLogits(order[rows], buffer[:filled][rows])


def strongest(blocks: Iterable[ClassLogits]) -> list[ClassLogits]:
    """Keeps the `COMPETING` classes with the highest largest logits, in memory that does not grow with K.

    Args:
        blocks: of one image, in any order.

    Returns:
        The blocks as they came, where they hold no more classes than that; else one block.
    """
    kept: list[ClassLogits] = []
    for block in blocks:
        kept.append(block)
        if sum(len(part.classes) for part in kept) > 2 * COMPETING:
            kept = [_strongest(kept)]
    return [_strongest(kept)] if sum(len(part.classes) for part in kept) > COMPETING else kept


def _strongest(blocks: Sequence[ClassLogits]) -> ClassLogits:
    peaks = torch.cat([block.logits.flatten(1).amax(dim=1) for block in blocks])
    chosen = torch.zeros(len(peaks), dtype=torch.bool, device=peaks.device)
    chosen[peaks.topk(COMPETING).indices] = True
    parts = chosen.split([len(block.classes) for block in blocks])
    return ClassLogits(
        torch.cat([block.classes[part] for block, part in zip(blocks, parts, strict=True)]),
        torch.cat([block.logits[part] for block, part in zip(blocks, parts, strict=True)]),
    )


def presence_shift(
    blocks: Sequence[ClassLogits], count: int, strength: float, adjustment: Tensor | None = None
) -> Tensor:
    """Returns what each class's logits gain when classes compete, by how much of the photo seems to show it.

    A photo shows few of many classes, and its own average scores say which: strength * log of a class's mean softmax
    over the photo, and once more with the softmax that this gives (`_STEPS` steps of Saerens, Latinne and Decaestecker,
    Neural Computation 2002, which adjust a classifier to new class frequencies; a strength below 1 tempers them).

    Args:
        blocks: of one image, all classes that were decoded.
        count: K.
        strength: 0 or more.
        adjustment: (K,), what they gain in any photo (`PromptEmbeddings.adjustment`); the average scores are those
            with it, and it is in the result. None: nothing.

    Returns:
        (K,); `adjustment` for classes that were not decoded.
    """
    classes = torch.cat([block.classes for block in blocks])
    logits = torch.cat([block.logits for block in blocks]).float()
    shift = logits.new_zeros(count) if adjustment is None else adjustment.to(logits, copy=True)
    if not strength:
        return shift
    logits += shift[classes, None, None]
    gain = logits.new_zeros(len(logits))
    for _ in range(_STEPS):
        shares = (logits + gain[:, None, None]).softmax(dim=0).mean(dim=(1, 2))
        gain = strength * (shares + _LEAST_SHARE).clamp_max(1).log()
    shift[classes] += gain
    return shift


def collect(
    blocks: Iterable[ClassLogits],
    count: int,
    labelling: LabelMap,
    presence: float = 0.0,
    adjustment: Tensor | None = None,
) -> Decoded:
    """Keeps of blocks what is needed later, in memory that does not grow with K above `ALL_CLASSES`.

    Args:
        blocks: of one image, one or more.
        count: K.
        labelling: an empty label map.
        presence: strength of `presence_shift`, for which the `strongest` classes are in memory at once; the others get
            no label.
        adjustment: (K,), see there.
    """
    labelling.shift = adjustment
    if presence:
        blocks = strongest(blocks)
        labelling.shift = presence_shift(blocks, count, presence, adjustment)
    if count <= ALL_CLASSES:
        found = _joined(blocks, count)
        best, index = lead(found.logits, None if labelling.shift is None else labelling.shift[found.classes])
        kept = None if len(found.classes) == count else found.classes
        return Decoded(found.logits, kept, best, found.classes[index], labelling)
    leading = _Leading(labelling.shift)
    for block in blocks:
        labelling.add(block.classes, block.logits)
        leading.add(block)
    return leading.decoded(labelling)


def lead(logits: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns which class leads at each position, and its logit.

    Args:
        logits: (k, h, w).
        shift: (k,) or None, what is added to them when classes compete.

    Returns:
        Logits (h, w), without what was added, and indices (h, w) int64 into the k classes.
    """
    if shift is None:
        best, index = logits.max(dim=0)
        return best, index
    best, index = (logits + shift[:, None, None]).max(dim=0)
    return best - shift[index], index


class _Leading:
    """The logit that leads at each position, and the logits of the classes that lead at most positions."""

    def __init__(self, shift: Tensor | None) -> None:
        self.shift = shift  # (K,)
        self.best: Tensor | None = None
        self.leaders: Tensor | None = None
        self.kept: list[ClassLogits] = []

    def add(self, block: ClassLogits) -> None:
        """Takes a block in."""
        best, index = lead(block.logits, None if self.shift is None else self.shift[block.classes])
        leaders = block.classes[index]
        if self.best is None or self.leaders is None:
            self.best, self.leaders = best, leaders
        else:
            larger = self._rank(best, leaders) > self._rank(self.best, self.leaders)
            self.best, self.leaders = best.where(larger, self.best), leaders.where(larger, self.leaders)
        self.kept.append(self._leading(block, 1))
        if sum(len(part.classes) for part in self.kept) > 2 * KEPT_CLASSES:
            self._thin()

    def decoded(self, labelling: LabelMap) -> Decoded:
        """Returns what is left."""
        self._thin()
        (kept,), best, leaders = self.kept, self.best, self.leaders
        assert best is not None
        assert leaders is not None
        return Decoded(kept.logits, kept.classes, best, leaders, labelling)

    def _rank(self, best: Tensor, leaders: Tensor) -> Tensor:
        return best if self.shift is None else best + self.shift[leaders]

    def _thin(self) -> None:
        """Puts the parts together and keeps the classes that lead at most positions."""
        whole = ClassLogits(torch.cat([p.classes for p in self.kept]), torch.cat([p.logits for p in self.kept]))
        counts = self._counts(whole.classes)
        threshold = int(counts.topk(min(KEPT_CLASSES, len(counts))).values[-1])
        order = whole.classes.argsort()
        self.kept = [self._leading(ClassLogits(whole.classes[order], whole.logits[order]), max(1, threshold))]

    def _leading(self, block: ClassLogits, smallest: int) -> ClassLogits:
        """Keeps the classes that lead at so many positions or more, `KEPT_CLASSES` at most."""
        led = (self._counts(block.classes) >= smallest).nonzero()[:KEPT_CLASSES, 0]
        return ClassLogits(block.classes[led], block.logits[led])

    def _counts(self, classes: Tensor) -> Tensor:
        """Returns at how many positions each class leads."""
        assert self.leaders is not None
        counts = torch.bincount(self.leaders.flatten(), minlength=int(classes.max()) + 1)
        return counts[classes]
