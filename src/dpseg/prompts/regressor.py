"""Visual prompts out of words alone: a regression from text features to visual features, fitted on banks.

It takes the place of a generator (ours): where the paper paints pictures of a word and encodes them, this says what
the encoder would make of such pictures, from how the names of a bank and their pictures go together. It is
Gaussian-process regression with one kernel for all outputs (Rasmussen and Williams, Gaussian Processes for Machine
Learning, 2006, chapters 2 and 5): closed form, and with a spread from which several prompts can be drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dpseg.errors import PromptError
from dpseg.prompts.bank import Bank, BankMatch

REGRESSED_SOURCE = "regressed"

KERNEL_SCALES = (1.6, 3.2, 6.4)
"""gamma of the kernel exp(-gamma |a - b|^2) times the median of |a - b|^2 between a bank's names."""

RIDGES = (0.1, 0.3, 1.0, 3.0)
"""Variance of the noise, in that of the kernel."""

MAX_NAMES = 4096
"""Of larger banks so many names are used, evenly spread: time goes with the third power."""

_CHOSEN_ON = 384  # names on which kernel and ridge are chosen
_LEAST = 3  # names: fewer have no spread


@dataclass(frozen=True)
class Draws:
    """Visual features that were drawn for K classes.

    Attributes:
        dense: (K, n, F), as `VisualFeatures.dense`.
        stages: three tensors (K, n, D_j), as `VisualFeatures.stages`.
    """

    dense: Tensor
    stages: tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class FeatureRegressor:
    """A Gaussian process from text features to visual features, fitted on N names.

    Its parts are the dense features and those of the stages, side by side: P = F + D_2 + D_3 + D_4 columns. From each
    column its mean is taken, and each part is scaled to a mean square length of 1, so that parts count alike.

    Attributes:
        names: N names.
        text: (N, F_t), their text features, unit vectors.
        weights: (N, P), (K + ridge I)^-1 Y.
        residuals: (N, P), L^-1 Y for K + ridge I = L L^T; their mean outer product is the covariance of the columns.
        factor: (N, N), L.
        means: of the parts, (F,) and (D_j,).
        lengths: by which the parts were divided, above 0.
        gamma: of the kernel, above 0.
        ridge: variance of the noise, above 0.
        encoder: fingerprint of the encoder that made the features.
    """

    names: tuple[str, ...]
    text: Tensor
    weights: Tensor
    residuals: Tensor
    factor: Tensor
    means: tuple[Tensor, ...]
    lengths: tuple[float, ...]
    gamma: float
    ridge: float
    encoder: str

    @classmethod
    def fit(cls, *banks: Bank) -> FeatureRegressor:
        """Fits kernel, noise and weights; kernel and noise by leaving one name out at a time, in closed form.

        Args:
            *banks: of one encoder. Rows of one name are averaged; a name counts only in the first bank that has it.

        Raises:
            PromptError: There are too few names.
        """
        names, text, parts = _merged(banks)
        if len(names) < _LEAST:
            raise PromptError(
                f"{len(names)} names in the bank are too few to regress from; add pictures of {_LEAST} or more"
            )
        means = tuple(part.mean(dim=0) for part in parts)
        moved = [part - mean for part, mean in zip(parts, means, strict=True)]
        lengths = tuple(max(float(part.square().sum(dim=1).mean().sqrt()), 1e-6) for part in moved)
        targets = torch.cat([part / length for part, length in zip(moved, lengths, strict=True)], dim=1)
        gamma, ridge = choose(text, targets[:, : parts[0].shape[1]])
        factor = torch.linalg.cholesky(_with_noise(text, gamma, ridge))
        residuals = torch.linalg.solve_triangular(factor, targets, upper=False)
        return cls(
            names=names,
            text=text,
            weights=torch.linalg.solve_triangular(factor.T, residuals, upper=True),
            residuals=residuals,
            factor=factor,
            means=means,
            lengths=lengths,
            gamma=gamma,
            ridge=ridge,
            encoder=banks[0].encoder,
        )

    def lookup(self, text_features: Tensor, top: int = 3, floor: float = 0.8) -> BankMatch:
        """Regresses the visual features of K classes: the mean of what `draw` draws from.

        The regression draws words of which it knows little towards the mean of all names. So the difference from that
        mean is brought to the length that differences have in the bank: it keeps the direction, which tells classes
        apart.

        Args:
            text_features: (K, F_t), any length.
            top: so many names are listed with a class, by their share of the kernel, 1 or more.
            floor: of no effect: any word can be regressed.

        Raises:
            PromptError: The text features are of another encoder.
        """
        near = self._kernel(text_features)
        dense, stages = self._parts(_scaled(near @ self.weights, self._widths))
        values, places = near.topk(min(top, len(self.names)), dim=-1)
        shares = values / values.sum(dim=-1, keepdim=True)
        count = len(near)
        return BankMatch(
            found=torch.ones(count, dtype=torch.bool),
            dense=dense,
            stages=stages,
            names=tuple(tuple(self.names[place] for place in row) for row in places.tolist()),
            weights=tuple(tuple(row) for row in shares.tolist()),
            sources=(REGRESSED_SOURCE,) * count,
        )

    def draw(self, text_features: Tensor, draws: int, seed: int = 0) -> Draws:
        """Draws several visual prompts for each of K classes.

        A draw is the mean plus the residuals of the bank's names, mixed at random, by the posterior standard deviation
        of the word: so it has the covariance that the Gaussian process says. The mixture is a random linear map of the
        text features: a class gets the same draws in any list, and words of like meaning get like ones.

        Args:
            text_features: (K, F_t), any length.
            draws: n, 1 or more.
            seed: of the random map.

        Raises:
            PromptError: The text features are of another encoder, or draws is below 1.
        """
        if draws < 1:
            raise PromptError(f"{draws} draws are out of range; give 1 or more")
        near = self._kernel(text_features)
        means = _scaled(near @ self.weights, self._widths)
        spread = self.variance(text_features).sqrt()[:, None]
        queries = F.normalize(text_features.detach().cpu().float(), dim=-1)
        random = torch.Generator().manual_seed(seed)
        parts: list[list[Tensor]] = []
        for _ in range(draws):
            mixture = queries @ torch.randn(queries.shape[1], len(self.names), generator=random)
            noise = mixture @ self.residuals / len(self.names) ** 0.5
            dense, stages = self._parts(means + spread * noise)
            parts.append([dense, *stages])
        dense, s2, s3, s4 = (torch.stack(columns, dim=1) for columns in zip(*parts, strict=True))
        return Draws(dense, (s2, s3, s4))

    def variance(self, text_features: Tensor) -> Tensor:
        """Returns the posterior variance of K classes, (K,): near 0 at names of many neighbours, 1 far from all."""
        near = self._kernel(text_features)
        explained = torch.linalg.solve_triangular(self.factor, near.T, upper=False).square().sum(dim=0)
        variance: Tensor = (1 - explained).clamp(min=0)
        return variance

    @property
    def _widths(self) -> list[int]:
        return [len(mean) for mean in self.means]

    def _kernel(self, text_features: Tensor) -> Tensor:
        """Returns how near K classes are to the names, (K, N)."""
        if text_features.ndim != 2 or text_features.shape[1] != self.text.shape[1]:
            raise PromptError(
                f"text features of shape {tuple(text_features.shape)} do not fit the bank's, (K, {self.text.shape[1]});"
                " use the bank of the same model"
            )
        return kernel(F.normalize(text_features.detach().cpu().float(), dim=-1), self.text, self.gamma)

    def _parts(self, values: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Returns the features that the columns (K, P) stand for."""
        columns = values.split(self._widths, dim=-1)
        dense, s2, s3, s4 = (
            part * length + mean for part, length, mean in zip(columns, self.lengths, self.means, strict=True)
        )
        return dense, (s2, s3, s4)


def kernel(a: Tensor, b: Tensor, gamma: float) -> Tensor:
    """Returns exp(-gamma |a - b|^2) for unit vectors (K, F_t) and (N, F_t): (K, N)."""
    return torch.exp(2 * gamma * (a @ b.T - 1))


def choose(text: Tensor, targets: Tensor) -> tuple[float, float]:
    """Chooses kernel and ridge: those with which names that are left out get the direction most nearly right.

    Args:
        text: (N, F_t) unit vectors.
        targets: (N, F), dense features, centred: what V is made of.

    Returns:
        gamma and ridge; the mean cosine of the predictions with the truth is largest.
    """
    if len(text) > _CHOSEN_ON:
        rows = torch.linspace(0, len(text) - 1, _CHOSEN_ON).round().long()
        text, targets = text[rows], targets[rows]
    apart = 2 - 2 * (text @ text.T)
    median = max(float(apart[~torch.eye(len(text), dtype=torch.bool)].median()), 1e-6)
    grid = [(scale / median, ridge) for scale in KERNEL_SCALES for ridge in RIDGES]
    scores = [float(F.cosine_similarity(left_out(text, targets, *one), targets, dim=1).mean()) for one in grid]
    return grid[scores.index(max(scores))]


def left_out(text: Tensor, targets: Tensor, gamma: float, ridge: float) -> Tensor:
    """Predicts each of N names from all others: (N, P).

    In closed form, y_i - (K^-1 y)_i / (K^-1)_ii with the ridge in K (Rasmussen and Williams, equation 5.12).

    Args:
        text: (N, F_t) unit vectors.
        targets: (N, P).
        gamma: of the kernel.
        ridge: variance of the noise.
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(_with_noise(text, gamma, ridge)))
    return targets - inverse @ targets / inverse.diagonal()[:, None]


def _with_noise(text: Tensor, gamma: float, ridge: float) -> Tensor:
    gram = kernel(text, text, gamma)
    gram.diagonal().add_(ridge)
    return gram


def _scaled(differences: Tensor, widths: list[int]) -> Tensor:
    """Brings each part of the differences from the mean, (K, P), to length 1: the root mean square in the bank."""
    return torch.cat([F.normalize(part, dim=-1) for part in differences.split(widths, dim=-1)], dim=-1)


def _merged(banks: tuple[Bank, ...]) -> tuple[tuple[str, ...], Tensor, list[Tensor]]:
    """Returns names, their text features, and the dense and stage features, a row a name."""
    names: list[str] = []
    places: dict[str, tuple[int, int]] = {}  # name -> the first bank that has it, and its row here
    rows: list[list[int]] = [[] for _ in banks]  # of each bank that count
    owners: list[int] = []
    for number, bank in enumerate(banks):
        for row, name in enumerate(bank.names):
            if name.casefold() not in places:
                places[name.casefold()] = number, len(names)
                names.append(name)
            first, place = places[name.casefold()]
            if first == number:
                rows[number].append(row)
                owners.append(place)
    parts = [
        _means([tensors[number].float()[mine] for number, mine in enumerate(rows)], owners, len(names))
        for tensors in zip(*((bank.text, bank.dense, *bank.stages) for bank in banks), strict=True)
    ]
    if len(names) > MAX_NAMES:
        kept = torch.linspace(0, len(names) - 1, MAX_NAMES).round().long()
        names, parts = [names[place] for place in kept.tolist()], [part[kept] for part in parts]
    return tuple(names), F.normalize(parts[0], dim=-1), parts[1:]


def _means(rows: list[Tensor], owners: list[int], groups: int) -> Tensor:
    """Averages rows by owner: (groups, D)."""
    values, index = torch.cat(rows), torch.tensor(owners)
    return torch.zeros(groups, values.shape[1]).index_add(0, index, values) / index.bincount(minlength=groups)[:, None]
