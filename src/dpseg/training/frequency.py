"""How often the masks of the training photos show each name."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor

from dpseg.errors import DPSegError
from dpseg.training.corpus import Corpus

RAREST = 0.01
"""No name counts as rarer than this share of its data set's average name: a few pixels more or less say nothing."""


def log_frequency(corpus: Corpus) -> Tensor:
    """Returns how much more often than a typical name each name is labelled, as a logarithm.

    A name is compared with the average name of its data sets, and the average of these logarithms is taken from all.

    A classifier learns what is frequent beside what things look like, and where classes count alike, as in mIoU, that
    does harm. Menon et al., Long-tail learning via logit adjustment (ICLR 2021), add the logarithm of the frequency to
    the logits when training, so that what is learned is the rest; or take it from them when testing.

    Args:
        corpus: every photo is read; those that cannot be read, and labels of a teacher, do not count.

    Returns:
        (N,), 0 for names that no mask shows; the others' average is 0.
    """
    pixels = torch.zeros(len(corpus.labelled), len(corpus.names), dtype=torch.double)
    for index in range(len(corpus.photos)):
        with suppress(DPSegError):  # it is counted when it is drawn
            photo = corpus.photos[index]
            labels = photo.labels[photo.labels >= 0].int()
            pixels[photo.source] += torch.bincount(labels, minlength=len(corpus.names))
    ratios, weights = torch.zeros(len(corpus.names)).double(), torch.zeros(len(corpus.names)).double()
    for counts, labelled, weight in zip(pixels, corpus.labelled, corpus.weights, strict=True):
        own = list(labelled)  # the rest is the teacher's
        if counts[own].sum() > 0:
            ratios[own] += weight * counts[own] / counts[own].mean()
            weights[own] += weight
    shown = ratios > 0
    logs = (ratios / weights).clamp_min(RAREST).log()
    return torch.where(shown, logs - logs[shown].mean(), 0.0).float()
