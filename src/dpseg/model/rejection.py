"""Which of many classes go on, by first guesses at their logits: the auxiliary heads' (SED), or the plain cosines."""

from __future__ import annotations

import torch
from torch import Tensor

from dpseg.rejection import Rejection


class Survivors:
    """Takes guesses of the classes, some at a time, and says which go on; memory is that of a few classes."""

    def __init__(self, rejection: Rejection) -> None:
        """Starts without any class.

        Args:
            rejection: its `max_classes` is a number.
        """
        self.rejection = rejection
        self._classes: list[Tensor] = []
        self._maxima: list[Tensor] = []  # without `keep_top`
        self._top: Tensor | None = None  # (n, h, w), the n = `keep_top` largest guesses at each position, in order
        self._owners: Tensor | None = None  # whose they are

    @torch.no_grad()
    def add(self, classes: Tensor, guesses: Tensor) -> None:
        """Takes classes in.

        Args:
            classes: (k,) int64, none of which was taken in before.
            guesses: (k, h, w), the larger the likelier.
        """
        self._classes.append(classes)
        if self.rejection.keep_top is None:
            self._maxima.append(guesses.flatten(1).amax(dim=1))
            return
        owners = classes[:, None, None].expand(-1, *guesses.shape[1:])
        if self._top is not None and self._owners is not None:
            guesses, owners = torch.cat((self._top, guesses)), torch.cat((self._owners, owners))
        self._top, index = guesses.topk(min(self.rejection.keep_top, len(guesses)), dim=0)
        self._owners = owners.gather(0, index)

    def result(self) -> Tensor:
        """Returns the classes that go on, (n,) int64, ascending; n is 1 to `max_classes`.

        Without `keep_top`: those with the largest guess anywhere. With it: those that are among the `keep_top` largest
        at any position; and if these are too many, those that are the largest at most positions, then, among equals,
        the second largest at most positions, and so on.
        """
        limit = self.rejection.max_classes
        assert limit is not None
        classes = torch.cat(self._classes)
        if self._owners is None:
            best = torch.cat(self._maxima)
            return classes[best.topk(min(limit, len(best))).indices].sort().values
        counts = torch.stack([rank.flatten().bincount(minlength=int(classes.max()) + 1) for rank in self._owners])
        order = counts.sum(dim=0).nonzero()[:, 0]
        for rank in counts.flip(0):  # from the least important to the first: sorting keeps the order of equals
            order = order[rank[order].argsort(descending=True, stable=True)]
        return order[:limit].sort().values
