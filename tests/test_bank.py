"""A bank in one file: what words find in it; and several banks, in whatever place they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dpseg.errors import PromptError, WeightsError
from dpseg.prompts.bank import Bank
from dpseg.prompts.bank_store import BankStore
from dpseg.prompts.banks import chain, check_encoder, open_bank
from support.bank_rows import fill, rows, words

NAMES = ("zebra", "couch", "sofa", "lamp")
TEXT = F.normalize(torch.eye(4, 6).index_copy(0, torch.tensor([2]), torch.tensor([[0.0, 0.9, 0.3, 0, 0, 0]])), dim=-1)
"""Couch and sofa mean nearly the same; zebra and lamp stand alone."""


def make_bank() -> Bank:
    torch.manual_seed(0)
    return Bank(NAMES, TEXT, torch.rand(4, 7), (torch.rand(4, 3), torch.rand(4, 4), torch.rand(4, 5)), "tiny-1")


@pytest.mark.parametrize(
    ("query", "near"), [(5 * TEXT[0], [0]), (TEXT[1], [1, 2]), (F.normalize(TEXT[1] + TEXT[2], dim=0), [1, 2])]
)
def test_near_names_are_blended_by_the_softmax_of_their_cosines(query: Tensor, near: list[int]) -> None:
    bank = make_bank()
    match = bank.lookup(query[None], floor=0.5)
    assert match.found.tolist() == [True]
    order = [NAMES.index(name) for name in match.names[0]]
    assert sorted(order) == near
    shares = (TEXT[order] @ F.normalize(query, dim=0) / 0.05).softmax(dim=0)
    assert match.weights[0] == pytest.approx(shares.tolist())
    assert list(match.weights[0]) == sorted(match.weights[0], reverse=True)
    for blended, own in zip((match.dense, *match.stages), (bank.dense, *bank.stages), strict=True):
        torch.testing.assert_close(blended[0], shares @ own[order], rtol=1e-5, atol=1e-8)


def test_nothing_near_is_not_found_and_zero() -> None:
    bank = make_bank()
    match = bank.lookup(torch.stack([torch.eye(6)[5], torch.eye(6)[0]]))
    assert match.found.tolist() == [False, True]
    assert match.names == ((), ("zebra",))
    assert match.weights == ((), (1.0,))
    assert all(features[0].tolist() == [0] * features.shape[1] for features in (match.dense, *match.stages))
    assert bank.lookup(TEXT[1:2], top=1, floor=0.5).names == (("couch",),)
    assert len(bank.lookup(TEXT[1:2], top=99, floor=-1.0).names[0]) == len(bank)
    none = bank.lookup(torch.rand(0, 6))
    assert (none.dense.shape, none.names) == ((0, 7), ())
    with pytest.raises(PromptError, match=r"do not fit the bank's, \(K, 6\)"):
        bank.lookup(torch.rand(2, 5))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-3), (torch.float32, 1e-7)])
def test_a_saved_bank_is_loaded_as_it_was_and_a_damaged_one_refused(
    tmp_path: Path, dtype: torch.dtype, tolerance: float
) -> None:
    bank = make_bank()
    path = bank.save(tmp_path / "bank.safetensors", dtype)
    loaded = Bank.load(path)
    assert (loaded.names, loaded.encoder) == (bank.names, bank.encoder)
    for before, after in zip(
        (TEXT, bank.dense, *bank.stages), (loaded.text, loaded.dense, *loaded.stages), strict=True
    ):
        torch.testing.assert_close(after, before, atol=tolerance, rtol=1e-5)  # float32 again
    torch.testing.assert_close(loaded.text.norm(dim=-1), torch.ones(4), atol=1e-6, rtol=1e-5)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(WeightsError, match="cannot be read"):
        Bank.load(path)
    with pytest.raises(WeightsError, match="no such file"):
        Bank.load(tmp_path / "other.safetensors")


def test_banks_are_asked_in_turn(tmp_path: Path) -> None:
    own = fill(tmp_path / "own", "cat", "owl")
    vectors = words("cat", "dog")
    dense, stages = rows(2, seed=9)
    shipped = Bank(("cat", "dog"), F.normalize(torch.stack(list(vectors.values())), dim=-1), dense, stages, "tiny-1")
    both = chain(None, own, shipped)
    assert both is not None
    match = both.lookup(torch.stack([vectors["dog"], vectors["cat"], -vectors["cat"]]), floor=0.95)
    assert match.found.tolist() == [True, True, False]
    assert match.names == (("dog",), ("cat",), ())
    torch.testing.assert_close(match.dense, torch.stack([dense[1], rows(2)[0][0], torch.zeros(7)]))
    torch.testing.assert_close(match.stages[1], torch.stack([stages[1][1], rows(2)[1][1][0], torch.zeros(4)]))
    assert [sum(weights) for weights in match.weights] == pytest.approx([1.0, 1.0, 0.0])
    assert chain(None, own) is own
    assert chain(None, None) is None
    with pytest.raises(WeightsError, match="encoder 'tiny-1', the model has 'lite'"):
        check_encoder("lite", None, both)


def test_any_place_of_a_bank_is_opened(tmp_path: Path) -> None:
    store = fill(tmp_path / "own", "cat")
    (tmp_path / "model").mkdir()
    file = store.to_bank().save(tmp_path / "model" / "bank.safetensors")
    assert isinstance(open_bank(tmp_path / "own"), BankStore)
    for place in (file, tmp_path / "model"):
        assert open_bank(place).lookup(words("cat")["cat"][None]).names == (("cat",),)
    with pytest.raises(WeightsError, match="no such file"):
        open_bank(tmp_path / "nothing")
