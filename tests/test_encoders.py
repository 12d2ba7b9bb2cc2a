"""The random encoder for tests, the pooling and fingerprint that encoders share, and the choice of an encoder."""

from __future__ import annotations

import pytest
import torch

from dpseg.config import ModelConfig
from dpseg.errors import ConfigError
from dpseg.model.build import build_encoder
from dpseg.model.fingerprint import weights_fingerprint
from dpseg.model.pooling import masked_mean
from dpseg.model.tiny import TinyEncoder
from support.commands import python
from support.encoder_contract import check_encoder


def tiny(tune_encoder: bool = False, seed: int = 0) -> TinyEncoder:
    return TinyEncoder(ModelConfig(encoder="tiny", tune_encoder=tune_encoder), seed)


@pytest.mark.numeric
@pytest.mark.parametrize("tune_encoder", [False, True])
def test_contract(tune_encoder: bool) -> None:
    check_encoder(tiny(tune_encoder))


def test_size_and_strides() -> None:
    assert tiny().strides == (4, 8, 16, 32)
    assert 1000 < sum(parameter.numel() for parameter in tiny().parameters()) < 10_000


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = tiny()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert tiny().fingerprint == first.fingerprint
    assert torch.equal(tiny().text_features(["cat"]), first.text_features(["cat"]))
    assert tiny(seed=1).fingerprint != first.fingerprint


def test_texts_that_share_words_are_near() -> None:
    cat, a_cat, road = torch.nn.functional.normalize(tiny().text_features(["cat", "a photo of a cat", "wide road"]))
    assert cat @ a_cat > cat @ road + 0.2
    assert torch.equal(tiny().text_features(["Red  Car"]), tiny().text_features(["red car"]))
    assert tiny().text_features([]).shape == (0, 20)


def test_it_is_the_same_in_another_process_which_imports_only_what_is_asked_for() -> None:
    code = (
        "import sys; from dpseg.config import ModelConfig; from dpseg.model.build import build_encoder; "
        "e = build_encoder(ModelConfig(encoder='tiny')); "
        "print(e.fingerprint, e.text_features(['cat']).sum().item(), *{'open_clip', 'timm'} & set(sys.modules))"
    )
    encoder = tiny(tune_encoder=True)
    fingerprint, total, *imported = python(code, PYTHONHASHSEED="77").stdout.split()
    assert fingerprint == encoder.fingerprint
    assert float(total) == pytest.approx(encoder.text_features(["cat"]).sum().item(), abs=1e-6)
    assert imported == []


def test_only_a_tuned_encoder_has_two_image_networks() -> None:
    for tuned in (True, False):
        assert any(name.startswith("visual_trunk.") for name in tiny(tuned).state_dict()) is tuned


def test_masked_mean_weighs_positions_by_their_share_of_the_mask() -> None:
    features = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    mask = torch.zeros(1, 4, 4)
    mask[0, :2, :2] = 1  # the first position, wholly
    mask[0, 2, 3] = 1  # a quarter of the last
    assert masked_mean(features, mask).item() == pytest.approx((1 * 1.0 + 0.25 * 4.0) / 1.25)
    assert masked_mean(features, torch.zeros(1, 4, 4)).item() == pytest.approx(2.5)
    assert masked_mean(features).item() == pytest.approx(2.5)
    one_pixel = torch.zeros(1, 320, 320)
    one_pixel[0, 5, 319] = 1
    assert masked_mean(torch.arange(100.0).view(1, 1, 10, 10), one_pixel).item() == pytest.approx(9.0)


def test_a_fingerprint_tells_weights_and_labels_apart() -> None:
    weights = torch.randn(1000)
    name = weights_fingerprint("a-1", [weights])
    assert name.startswith("a-1-")
    assert weights_fingerprint("a-1", [weights.clone()]) == name
    assert weights_fingerprint("a-2", [weights])[-16:] != name[-16:]
    for others in (weights * 1.001, weights + 1e-6, weights.half()):
        assert weights_fingerprint("a-1", [others]) != name
    with_zero = [weights_fingerprint("a", [torch.tensor([zero, 1.5])]) for zero in (0.0, -0.0)]
    assert with_zero[0] == with_zero[1], "the sign of zero does not change it"


def test_the_encoder_that_the_config_names_is_built() -> None:
    assert isinstance(build_encoder(ModelConfig(encoder="tiny")), TinyEncoder)
    with pytest.raises(ConfigError, match="no encoder 'larg'; did you mean 'large'"):
        build_encoder(ModelConfig(encoder="larg"))  # type: ignore[arg-type]
