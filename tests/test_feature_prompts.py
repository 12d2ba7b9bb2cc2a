"""Which pictures words get from a bank: none, blended ones, or ones regressed from words, and how those spread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dpseg.cli import run
from dpseg.config import FeaturePrompts
from dpseg.errors import ConfigError, PromptError, WeightsError
from dpseg.model.prompt_encoding import name_features
from dpseg.prompts.bank import Bank
from dpseg.prompts.bank_store import BankStore
from dpseg.prompts.banks import RegressedBank, chain, feature_bank
from dpseg.prompts.prompt_set import PromptSet
from dpseg.prompts.regressor import KERNEL_SCALES, RIDGES, FeatureRegressor, choose, kernel, left_out
from dpseg.prompts.text import parse_classes
from dpseg.segmenter import Segmenter
from support.bank_rows import HEAD, fill
from support.pictures import RED, plain
from support.tiny import tiny_segmenter

TEXT, DENSE, STAGES = 8, 20, (3, 4, 5)


def make_bank(count: int = 60, noise: float = 0.05, seed: int = 0) -> Bank:
    """Pictures are a smooth function of words, but for the noise."""
    random, world = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(99)
    text = F.normalize(torch.randn(count, TEXT, generator=random), dim=-1)
    columns = []
    for size in (DENSE, *STAGES):
        truth = 3.0 + 2.0 * torch.tanh(text @ torch.randn(TEXT, size, generator=world))
        columns.append(truth + noise * torch.randn(count, size, generator=random))
    dense, s2, s3, s4 = columns
    return Bank(tuple(f"name {k}" for k in range(count)), text, dense, (s2, s3, s4), "tiny-1")


def test_new_words_get_features_like_their_pictures() -> None:
    bank, new = make_bank(), make_bank(20, seed=1)
    match, blended = FeatureRegressor.fit(bank).lookup(new.text * 5), bank.lookup(new.text, floor=-1.0)

    def nearest_share(guess: Tensor) -> float:
        found, truth = (F.normalize(one - bank.dense.mean(dim=0), dim=-1) for one in (guess, new.dense))
        return float(((found @ truth.T).argmax(dim=1) == torch.arange(20)).float().mean())

    assert match.found.all()
    assert match.sources == ("regressed",) * 20
    assert nearest_share(match.dense) > max(0.8, nearest_share(blended.dense))
    for j, size in enumerate(STAGES):
        mean = bank.stages[j].mean(dim=0)
        assert match.stages[j].shape == (20, size)
        assert F.cosine_similarity(match.stages[j] - mean, new.stages[j] - mean, dim=1).mean() > 0.8


def test_what_a_word_far_from_all_gets_is_as_long_as_the_others() -> None:
    bank = make_bank()
    bank = Bank(bank.names, F.pad(bank.text, (0, 1)), bank.dense, bank.stages, bank.encoder)
    regressor, queries = FeatureRegressor.fit(bank), torch.eye(TEXT + 1)
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

        def score(pair: tuple[float, float], bank: Bank = bank, targets: Tensor = targets, by: float = median) -> float:
            predicted = left_out(bank.text, targets, pair[0] / by, pair[1])
            return float(F.cosine_similarity(predicted, targets, dim=1).mean())

        scale, ridge = max(((scale, ridge) for scale in KERNEL_SCALES for ridge in RIDGES), key=score)
        assert choose(bank.text, targets) == pytest.approx((scale / median, ridge), rel=1e-3)
        ridges.append(ridge)
    assert ridges[0] < ridges[1]


def test_draws_repeat_and_differ() -> None:
    regressor, text = FeatureRegressor.fit(make_bank()), make_bank(4, seed=1).text
    first = regressor.draw(text, 3, seed=7)
    assert first.dense.shape == (4, 3, DENSE)
    assert [stage.shape for stage in first.stages] == [(4, 3, size) for size in STAGES]
    assert torch.equal(first.dense, regressor.draw(text, 3, seed=7).dense)
    assert not torch.allclose(first.dense, regressor.draw(text, 3, seed=8).dense)
    assert not torch.allclose(first.dense[:, 0], first.dense[:, 1])
    assert torch.allclose(first.dense[2:], regressor.draw(text[2:], 3, seed=7).dense, atol=1e-5)
    assert torch.equal(first.dense[:, :2], regressor.draw(text, 2, seed=7).dense)


def test_draws_have_the_mean_and_the_spread_of_the_process() -> None:
    bank, text = make_bank(noise=1.0), make_bank(3, seed=1).text
    regressor = FeatureRegressor.fit(bank)
    spread = (regressor.draw(text, 3000).dense - regressor.lookup(text).dense[:, None]) / regressor.lengths[0]
    assert spread.mean(dim=1).norm(dim=1).max() < 0.05
    columns = regressor.residuals[:, :DENSE]
    covariance = columns.T @ columns / len(bank)
    for k, variance in enumerate(regressor.variance(text).tolist()):
        found = spread[k].T @ spread[k] / 3000
        assert torch.allclose(found, variance * covariance, atol=0.15 * variance * float(covariance.diagonal().max()))


def test_rows_of_one_name_are_averaged_and_the_first_bank_wins() -> None:
    bank = make_bank(6)

    def averaged(features: Tensor) -> Tensor:
        return torch.cat([features[:2].mean(dim=0, keepdim=True), features[2:]])

    names, text = ("a", "b", "c", "d", "e"), bank.text[[0, 2, 3, 4, 5]]
    twice = Bank(("a", "A", *names[1:]), bank.text[[0, 0, 2, 3, 4, 5]], bank.dense, bank.stages, bank.encoder)
    s2, s3, s4 = (averaged(stage) for stage in bank.stages)
    once = Bank(names, text, averaged(bank.dense), (s2, s3, s4), bank.encoder)
    s2, s3, s4 = (stage[:2] + 100 for stage in bank.stages)
    other = Bank(("A", "e"), bank.text[:2], bank.dense[:2] + 100, (s2, s3, s4), "tiny-1")
    expected = FeatureRegressor.fit(once).lookup(bank.text)
    for found in (FeatureRegressor.fit(twice).lookup(bank.text), FeatureRegressor.fit(once, other).lookup(bank.text)):
        assert torch.allclose(found.dense, expected.dense, atol=1e-4)
        assert found.names == expected.names


def test_each_kind_of_feature_prompts_gives_its_bank_and_the_regression_is_asked_last() -> None:
    bank = make_bank()
    assert feature_bank("off", bank) is None
    assert feature_bank("blend", None, bank) is bank
    assert feature_bank("blend", None) is None
    new = F.normalize(-bank.text[:1] + 0.1 * torch.ones(1, TEXT), dim=-1)
    source = feature_bank("regress", None, bank)
    assert source is not None
    match = source.lookup(torch.cat([bank.text[:1], new]), floor=0.999)
    assert match.sources == ("bank", "regressed")
    assert match.found.all()
    assert torch.allclose(match.dense[:1], bank.dense[:1])
    assert torch.allclose(match.dense[1:], FeatureRegressor.fit(bank).lookup(new).dense, atol=1e-4)


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    bank, empty = make_bank(6), BankStore.create(tmp_path, HEAD)
    regressor = FeatureRegressor.fit(bank)
    with pytest.raises(PromptError, match="2 names in the bank are too few"):
        FeatureRegressor.fit(make_bank(2))
    with pytest.raises(PromptError, match=r"do not fit the bank's, \(K, 8\)"):
        regressor.lookup(torch.rand(2, 5))
    with pytest.raises(PromptError, match="0 draws are out of range"):
        regressor.draw(torch.rand(2, TEXT), 0)
    assert regressor.lookup(torch.rand(0, TEXT)).dense.shape == (0, DENSE)
    for nothing in (None, empty):
        with pytest.raises(ConfigError, match="there is no bank with pictures"):
            feature_bank("regress", None, nothing)
    with pytest.raises(ConfigError, match="'regres' are unknown; did you mean 'regress'"):
        feature_bank("regres", bank)  # type: ignore[arg-type]


def test_a_folder_is_regressed_from_as_it_is_when_asked(tmp_path: Path) -> None:
    store = fill(tmp_path / "bank", "cat", "dog")
    source = RegressedBank((store,))
    fill(tmp_path / "bank", "sofa", "lamp", seed=1)
    store.refresh()
    queries = torch.eye(6)[:2]
    expected = FeatureRegressor.fit(BankStore(tmp_path / "bank").to_bank()).lookup(queries)
    torch.testing.assert_close(source.lookup(queries).dense, expected.dense, rtol=1e-4, atol=1e-4)
    assert source.encoder == store.encoder
    assert chain(BankStore.create(tmp_path / "empty", HEAD), source) is not None


@pytest.fixture(scope="module")
def banked(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    """The tiny model with a bank of four names."""
    segmenter, names = tiny_segmenter(tmp_path_factory.mktemp("cache")), ("cat", "sofa", "lamp", "wall")
    encoder, random = segmenter.model.encoder, torch.Generator().manual_seed(0)
    dense, s2, s3, s4 = (torch.randn(4, size, generator=random) for size in (encoder.embed_dim, *encoder.stage_dims))
    text = name_features(encoder, parse_classes(names), segmenter.cache)
    segmenter.bank = Bank(names, text, dense, (s2, s3, s4), encoder.fingerprint)
    return segmenter


@pytest.fixture(scope="module")
def folder(banked: Segmenter, tmp_path_factory: pytest.TempPathFactory) -> str:
    """It, saved."""
    place = tmp_path_factory.mktemp("model")
    banked.model.save_pretrained(place)
    assert isinstance(banked.bank, Bank)
    banked.bank.save(place / "bank.safetensors", torch.float32)
    return str(place)


@pytest.mark.parametrize(
    ("kind", "known", "new"),
    [("off", (), ()), ("blend", ("bank",), ()), ("regress", ("bank",), ("regressed",))],
)
def test_words_get_what_is_asked_for(
    folder: str, banked: Segmenter, kind: FeaturePrompts, known: tuple[str, ...], new: tuple[str, ...]
) -> None:
    own, words = Segmenter.from_pretrained(folder, "cpu", feature_prompts=kind), ["cat", "xyzzy", "lamp"]
    prompts = own.prompts(words, {"lamp": plain(RED)})
    assert prompts.sources == (("text", *known), ("text", *new), ("text", "reference"))
    assert prompts.embeddings.has_visual.tolist() == [bool(known), bool(new), True]
    assert all(row == ("text",) for row in own.prompts(words, bank=False).sources)
    if kind == "regress":
        assert isinstance(banked.bank, Bank)
        features = name_features(banked.model.encoder, parse_classes(["xyzzy"]), banked.cache)
        expected = F.normalize(FeatureRegressor.fit(banked.bank).lookup(features).dense[0], dim=0)
        torch.testing.assert_close(prompts.embeddings.visual[1, 0], expected, rtol=1e-3, atol=1e-3)
        bare = Segmenter(banked.model, cache=banked.cache, feature_prompts="regress")
        with pytest.raises(ConfigError, match="there is no bank with pictures"):
            bare.prompts(["cat"])
        assert bare.prompts(["cat"], bank=False).sources == (("text",),)


def test_a_bank_of_ones_own_is_asked_before_that_of_the_model(folder: str, banked: Segmenter, tmp_path: Path) -> None:
    shipped = banked.bank
    assert isinstance(shipped, Bank)
    s2, s3, s4 = (stage[3:] for stage in shipped.stages)
    own = Bank(("cat",), shipped.text[:1], shipped.dense[3:], (s2, s3, s4), shipped.encoder)
    BankStore.from_bank(tmp_path / "own", own)
    segmenter = Segmenter.from_pretrained(folder, store=tmp_path / "own")
    prompts = segmenter.prompts(["cat", "sofa", "xyzzy"])
    assert prompts.sources == (("text", "bank"), ("text", "bank"), ("text",))
    visual = prompts.embeddings.visual[:, 0]
    torch.testing.assert_close(visual[0], F.normalize(own.dense[0], dim=-1), atol=2e-3, rtol=0)
    torch.testing.assert_close(visual[1], F.normalize(shipped.dense[1], dim=-1))
    assert segmenter.prompts(["cat"], bank=False).sources == (("text",),)
    with pytest.raises(WeightsError, match="make it again"):
        Segmenter(segmenter.model, store=replace(own, encoder="other"))


def test_predict_has_the_option(folder: str, workplace: Path, refused: Callable[..., str]) -> None:
    command = ["predict", "red.png", "--text", "xyzzy", "--text", "wall", "--model", folder, "--out", "out"]
    command += ["--format", "json", "--save-prompts", "prompts.safetensors", "--feature-prompts"]
    for kind, source in (("regress", ("text", "regressed")), ("OFF", ("text",))):
        assert run([*command, kind]) == 0
        assert PromptSet.load("prompts.safetensors").sources[0] == source
    unknown = "feature prompts 'blends' are unknown; did you mean 'blend'?"
    assert unknown in refused(*command, "blends")
    assert "leave out one of them" in refused(*command, "off", "--bank", "mine")
