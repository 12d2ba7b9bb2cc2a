"""Visual prompts regressed from words: what is predicted, how far draws spread, and who asks for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dpseg.errors import ConfigError, PromptError
from dpseg.prompts.bank import Bank
from dpseg.prompts.bank_store import BankStore
from dpseg.prompts.banks import RegressedBank, chain, feature_bank
from dpseg.prompts.regressor import KERNEL_SCALES, RIDGES, FeatureRegressor, choose, kernel, left_out
from support.bank_rows import fill

TEXT, DENSE, STAGES = 8, 20, (3, 4, 5)


def make_bank(count: int = 60, noise: float = 0.05, seed: int = 0) -> Bank:
    """Pictures are a smooth function of words, but for the noise."""
    random = torch.Generator().manual_seed(seed)
    world = torch.Generator().manual_seed(99)
    text = F.normalize(torch.randn(count, TEXT, generator=random), dim=-1)
    columns = []
    for size in (DENSE, *STAGES):
        truth = 3.0 + 2.0 * torch.tanh(text @ torch.randn(TEXT, size, generator=world))
        columns.append(truth + noise * torch.randn(count, size, generator=random))
    return Bank(tuple(f"name {k}" for k in range(count)), text, columns[0], tuple(columns[1:]), "tiny-1")


def directions(features: Tensor, bank: Bank) -> Tensor:
    return F.normalize(features - bank.dense.mean(dim=0), dim=-1)


def nearest_share(guess: Tensor, truth: Tensor, bank: Bank) -> float:
    table = directions(guess, bank) @ directions(truth, bank).T
    return float((table.argmax(dim=1) == torch.arange(len(table))).float().mean())


def test_new_words_get_features_like_their_pictures() -> None:
    bank, new = make_bank(), make_bank(20, seed=1)
    match = FeatureRegressor.fit(bank).lookup(new.text * 5)
    assert match.found.all()
    assert match.sources == ("regressed",) * 20
    assert nearest_share(match.dense, new.dense, bank) > 0.8
    blended = bank.lookup(new.text, floor=-1.0)
    assert nearest_share(match.dense, new.dense, bank) > nearest_share(blended.dense, new.dense, bank)
    for j, size in enumerate(STAGES):
        mean = bank.stages[j].mean(dim=0)
        assert match.stages[j].shape == (20, size)
        assert F.cosine_similarity(match.stages[j] - mean, new.stages[j] - mean, dim=1).mean() > 0.8


def test_what_a_word_far_from_all_gets_is_as_long_as_the_others() -> None:
    bank = make_bank()
    bank = Bank(bank.names, F.pad(bank.text, (0, 1)), bank.dense, bank.stages, bank.encoder)
    regressor = FeatureRegressor.fit(bank)
    queries = torch.eye(TEXT + 1)
    lengths = (regressor.lookup(queries).dense - bank.dense.mean(dim=0)).norm(dim=1)
    usual = (bank.dense - bank.dense.mean(dim=0)).square().sum(dim=1).mean().sqrt()
    assert torch.allclose(lengths, usual.expand(TEXT + 1), rtol=1e-4)
    variance = regressor.variance(queries)
    assert variance.argmax() == TEXT  # the word that is orthogonal to all names
    assert regressor.variance(bank.text).max() < variance[TEXT] <= 1


def test_leaving_out_in_closed_form_is_leaving_out() -> None:
    bank = make_bank(12)
    targets = bank.dense - bank.dense.mean(dim=0)
    predicted = left_out(bank.text, targets, gamma=0.7, ridge=0.3)
    for k in (0, 5, 11):
        rest = [row for row in range(12) if row != k]
        gram = kernel(bank.text[rest], bank.text[rest], 0.7) + 0.3 * torch.eye(11)
        expected = kernel(bank.text[k : k + 1], bank.text[rest], 0.7) @ torch.linalg.solve(gram, targets[rest])
        assert torch.allclose(predicted[k], expected[0], atol=1e-4)


def test_noise_and_kernel_are_those_that_predict_left_out_names_best() -> None:
    ridges = []
    for bank in (make_bank(noise=0.01), make_bank(noise=4.0)):
        targets = bank.dense - bank.dense.mean(dim=0)
        apart = torch.cdist(bank.text, bank.text).square()
        median = float(apart[~torch.eye(len(bank), dtype=torch.bool)].median())
        scores = {
            (scale, ridge): F.cosine_similarity(
                left_out(bank.text, targets, scale / median, ridge), targets, dim=1
            ).mean()
            for scale in KERNEL_SCALES
            for ridge in RIDGES
        }
        scale, ridge = max(scores, key=lambda pair: float(scores[pair]))
        assert choose(bank.text, targets) == pytest.approx((scale / median, ridge), rel=1e-3)
        ridges.append(ridge)
    assert ridges[0] < ridges[1]


def test_draws_repeat_and_differ() -> None:
    bank, new = make_bank(), make_bank(4, seed=1)
    regressor = FeatureRegressor.fit(bank)
    first = regressor.draw(new.text, 3, seed=7)
    assert first.dense.shape == (4, 3, DENSE)
    assert [stage.shape for stage in first.stages] == [(4, 3, size) for size in STAGES]
    assert torch.equal(first.dense, regressor.draw(new.text, 3, seed=7).dense)
    assert not torch.allclose(first.dense, regressor.draw(new.text, 3, seed=8).dense)
    assert not torch.allclose(first.dense[:, 0], first.dense[:, 1])
    assert torch.allclose(first.dense[2:], regressor.draw(new.text[2:], 3, seed=7).dense, atol=1e-5)
    assert torch.equal(first.dense[:, :2], regressor.draw(new.text, 2, seed=7).dense)


def test_draws_have_the_mean_and_the_spread_of_the_process() -> None:
    bank, new = make_bank(noise=1.0), make_bank(3, seed=1)
    regressor = FeatureRegressor.fit(bank)
    draws = regressor.draw(new.text, 3000)
    spread = (draws.dense - regressor.lookup(new.text).dense[:, None]) / regressor.lengths[0]
    assert spread.mean(dim=1).norm(dim=1).max() < 0.05
    columns = regressor.residuals[:, :DENSE]
    covariance = columns.T @ columns / len(bank)
    for k, variance in enumerate(regressor.variance(new.text).tolist()):
        found = spread[k].T @ spread[k] / 3000
        assert torch.allclose(found, variance * covariance, atol=0.15 * variance * float(covariance.diagonal().max()))


def test_rows_of_one_name_are_averaged_and_the_first_bank_wins() -> None:
    bank = make_bank(6)
    twice = Bank(("a", "A", "b", "c", "d", "e"), bank.text[[0, 0, 2, 3, 4, 5]], bank.dense, bank.stages, bank.encoder)
    once = Bank(
        ("a", "b", "c", "d", "e"),
        bank.text[[0, 2, 3, 4, 5]],
        torch.cat([bank.dense[:2].mean(dim=0, keepdim=True), bank.dense[2:]]),
        tuple(torch.cat([stage[:2].mean(dim=0, keepdim=True), stage[2:]]) for stage in bank.stages),
        bank.encoder,
    )
    other = Bank(("A", "e"), bank.text[:2], bank.dense[:2] + 100, tuple(s[:2] + 100 for s in bank.stages), "tiny-1")
    expected = FeatureRegressor.fit(once).lookup(bank.text)
    for found in (FeatureRegressor.fit(twice).lookup(bank.text), FeatureRegressor.fit(once, other).lookup(bank.text)):
        assert torch.allclose(found.dense, expected.dense, atol=1e-4)
        assert found.names == expected.names


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(PromptError, match="2 names in the bank are too few"):
        FeatureRegressor.fit(make_bank(2))
    regressor = FeatureRegressor.fit(make_bank(6))
    with pytest.raises(PromptError, match=r"do not fit the bank's, \(K, 8\)"):
        regressor.lookup(torch.rand(2, 5))
    with pytest.raises(PromptError, match="0 draws are out of range"):
        regressor.draw(torch.rand(2, TEXT), 0)
    assert regressor.lookup(torch.rand(0, TEXT)).dense.shape == (0, DENSE)


def test_the_regression_is_asked_last() -> None:
    bank = make_bank()
    new = F.normalize(-bank.text[:1] + 0.1 * torch.ones(1, TEXT), dim=-1)
    source = feature_bank("regress", None, bank)
    assert source is not None
    match = source.lookup(torch.cat([bank.text[:1], new]), floor=0.999)
    assert match.sources == ("bank", "regressed")
    assert match.found.all()
    assert torch.allclose(match.dense[:1], bank.dense[:1])
    assert torch.allclose(match.dense[1:], FeatureRegressor.fit(bank).lookup(new).dense, atol=1e-4)


def test_each_kind_of_feature_prompts_gives_its_bank() -> None:
    bank = make_bank()
    assert feature_bank("off", bank) is None
    assert feature_bank("blend", None, bank) is bank
    assert feature_bank("blend", None) is None
    with pytest.raises(ConfigError, match="there is no bank with pictures"):
        feature_bank("regress", None, None)
    with pytest.raises(ConfigError, match="'regres' are unknown; did you mean 'regress'"):
        feature_bank("regres", bank)  # type: ignore[arg-type]


def test_a_folder_is_regressed_from_as_it_is_when_asked(tmp_path: Path) -> None:
    store = fill(tmp_path, "cat", "dog")
    source = RegressedBank((store,))
    fill(tmp_path, "sofa", "lamp", seed=1)
    store.refresh()
    queries = torch.eye(6)[:2]
    expected = FeatureRegressor.fit(BankStore(tmp_path).to_bank()).lookup(queries)
    torch.testing.assert_close(source.lookup(queries).dense, expected.dense, rtol=1e-4, atol=1e-4)
    assert source.encoder == store.encoder
    empty = BankStore.create(tmp_path / "empty", store._contents.head)
    with pytest.raises(ConfigError, match="no bank with pictures"):
        feature_bank("regress", empty)
    assert chain(empty, source) is not None
