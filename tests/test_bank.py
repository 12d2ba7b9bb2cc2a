from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dpseg.errors import PromptError, WeightsError
from dpseg.prompts.bank import Bank

NAMES = ("zebra", "couch", "sofa", "lamp")


def make_bank() -> Bank:
    """Couch and sofa mean nearly the same; zebra and lamp stand alone."""
    torch.manual_seed(0)
    text = torch.eye(4, 6)
    text[2] = torch.tensor([0.0, 0.9, 0.3, 0.0, 0.0, 0.0])
    stages = (torch.rand(4, 3), torch.rand(4, 4), torch.rand(4, 5))
    return Bank(NAMES, F.normalize(text, dim=-1), torch.rand(4, 7), stages, "tiny-1")


def test_the_very_name_gets_its_own_features() -> None:
    bank = make_bank()
    match = bank.lookup(bank.text[:1] * 5)
    assert match.found.tolist() == [True]
    assert match.names == (("zebra",),)
    assert match.weights[0] == pytest.approx((1.0,))
    assert torch.allclose(match.dense, bank.dense[:1])
    for blended, stage in zip(match.stages, bank.stages, strict=True):
        assert torch.allclose(blended, stage[:1])


def test_near_names_are_blended_by_their_weights() -> None:
    bank = make_bank()
    query = F.normalize(bank.text[1] + bank.text[2], dim=0)[None]
    match = bank.lookup(query, top=3, floor=0.5)
    assert set(match.names[0]) == {"couch", "sofa"}
    assert sum(match.weights[0]) == pytest.approx(1.0)
    assert match.weights[0] == pytest.approx((0.5, 0.5), abs=1e-3)
    expected = sum(w * bank.dense[NAMES.index(n)] for n, w in zip(match.names[0], match.weights[0], strict=True))
    assert torch.allclose(match.dense[0], torch.as_tensor(expected))


def test_weights_are_the_softmax_of_the_cosines() -> None:
    bank = make_bank()
    match = bank.lookup(bank.text[1:2], floor=0.5)
    cosines = bank.text[1:3] @ bank.text[1]
    assert match.names[0] == ("couch", "sofa")
    assert match.weights[0] == pytest.approx((cosines / 0.05).softmax(0).tolist())


def test_nothing_near_is_not_found_and_zero() -> None:
    match = make_bank().lookup(torch.stack([torch.eye(6)[5], torch.eye(6)[0]]))
    assert match.found.tolist() == [False, True]
    assert match.names == ((), ("zebra",))
    assert match.weights[0] == ()
    assert match.dense[0].abs().sum() == 0
    assert all(stage[0].abs().sum() == 0 for stage in match.stages)
    assert not match.dense.isnan().any()


def test_top_limits_the_entries() -> None:
    bank = make_bank()
    assert bank.lookup(bank.text[1:2], top=1, floor=0.5).names == (("couch",),)
    assert len(bank.lookup(bank.text[1:2], top=99, floor=-1.0).names[0]) == len(bank)


def test_text_features_of_another_size_are_refused() -> None:
    with pytest.raises(PromptError, match=r"do not fit the bank's, \(K, 6\)"):
        make_bank().lookup(torch.rand(2, 5))


def test_no_classes_give_no_rows() -> None:
    match = make_bank().lookup(torch.rand(0, 6))
    assert match.dense.shape == (0, 7)
    assert match.names == ()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-3), (torch.float32, 1e-7)])
def test_save_and_load(tmp_path: Path, dtype: torch.dtype, tolerance: float) -> None:
    bank = make_bank()
    loaded = Bank.load(bank.save(tmp_path / "bank.safetensors", dtype))
    assert (loaded.names, loaded.encoder) == (bank.names, bank.encoder)
    pairs = [(bank.text, loaded.text), (bank.dense, loaded.dense), *zip(bank.stages, loaded.stages, strict=True)]
    for before, after in pairs:
        assert after.dtype == torch.float32
        assert torch.allclose(before, after, atol=tolerance)
    assert torch.allclose(loaded.text.norm(dim=-1), torch.ones(4), atol=1e-6)


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = make_bank().save(tmp_path / "bank.safetensors")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(WeightsError, match="cannot be read"):
        Bank.load(path)
    with pytest.raises(WeightsError, match="no such file"):
        Bank.load(tmp_path / "other.safetensors")
