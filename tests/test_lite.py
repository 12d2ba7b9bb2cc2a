"""dpseg-lite's encoder: its parts against the libraries they come from, and what an untrained one is."""

from __future__ import annotations

import math
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dpseg.config import ModelConfig
from dpseg.model import efficientnet_lite0 as lite0
from dpseg.model.lite import LiteEncoder, TextMap
from dpseg.model.minilm import MiniLM, weights_folder
from dpseg.pretrained import model_folder
from dpseg.training.lite_setup import imagenet_names
from support.encoder_contract import check_encoder
from support.pictures import CAT

SENTENCES = ["cat", "a photo of a couch.", "traffic light", "an extraordinarily long description of nothing at all"]


@pytest.fixture(scope="module")
def encoder() -> LiteEncoder:
    """An untrained encoder whose text regression is fitted, on the features of names that dpseg-lite keeps."""
    encoder = LiteEncoder(ModelConfig(encoder="lite", tune_encoder=True, text_names=2)).eval()
    kept = load_file(model_folder("dpseg-lite") / "model.safetensors")
    encoder.text_map.fit(kept["encoder.text_map.support"].float())
    encoder.text_map.local_support.copy_(features_of(encoder, "cat", "couch"))
    return encoder


def features_of(encoder: LiteEncoder, *names: str) -> torch.Tensor:
    return encoder.text_features([f"a photo of a {name}." for name in names])


@torch.no_grad()
def trunk(images: torch.Tensor) -> torch.Tensor:
    """Runs the frozen image network: (B, 1280, h, w)."""
    weights = lite0.load_weights()
    early, late = lite0.Lite0Early(), lite0.Lite0Late()
    early.load_state_dict(weights.early)
    late.load_state_dict(weights.late)
    features: torch.Tensor = late(early(images)[2])
    return features


@pytest.mark.numeric
def test_it_keeps_the_encoder_contract(encoder: LiteEncoder) -> None:
    check_encoder(encoder, side=64, tolerance=1e-4)


@pytest.mark.numeric
@pytest.mark.skipif(not find_spec("timm"), reason="needs timm, of the extra: pip install 'dpseg[clip]'")
@torch.no_grad()
def test_the_trunk_equals_timm_s() -> None:
    import timm

    theirs = timm.create_model("tf_efficientnet_lite0", output_stride=16).eval()
    packaged = torch.load(lite0.weights_path(), weights_only=True)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), packaged.values(), strict=True)))
    images = torch.rand(2, 3, 96, 128)
    ours = trunk(images)
    assert ours.shape == (2, 1280, 6, 8)
    torch.testing.assert_close(ours, theirs.forward_features((images * 255 - 127) / 128), atol=1e-3, rtol=1e-3)


@pytest.mark.numeric
def test_folded_weights_are_rounded_correctly_and_so_the_same_on_every_machine() -> None:
    state = torch.load(lite0.weights_path(), map_location="cpu", weights_only=True)
    folded = lite0.load_weights().late["head.conv.weight"].numpy()
    variance = state["_bn1.running_var"].numpy() + np.float32(1e-3)
    deviation = np.array([math.sqrt(value) for value in variance.tolist()]).astype(np.float32)  # rounded correctly
    scale = state["_bn1.weight"].numpy() / deviation
    assert np.array_equal(folded, state["_conv_head.weight"].numpy() * scale[:, None, None, None])


@torch.no_grad()
def test_the_classifier_knows_a_cat() -> None:
    with Image.open(CAT) as photo:
        pixels = np.array(photo.convert("RGB").crop((80, 0, 368, 288)))
    features = trunk(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255).mean(dim=(2, 3))
    best = (features @ lite0.load_weights().classifier.T)[0].topk(5).indices.tolist()
    assert {"tabby cat", "tiger cat", "Egyptian Mau", "Egyptian cat"} & {imagenet_names()[index] for index in best}


@pytest.mark.numeric
@pytest.mark.skipif(not find_spec("transformers"), reason="needs transformers")
def test_the_text_encoder_equals_transformers() -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(weights_folder())
    model = transformers.AutoModel.from_pretrained(weights_folder()).eval()
    inputs = tokenizer(SENTENCES, return_tensors="pt", padding=True)
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    torch.testing.assert_close(MiniLM()(SENTENCES), expected, atol=1e-5, rtol=1e-4)
    assert MiniLM()([]).shape == (0, 384)


@pytest.mark.numeric
def test_the_text_regression_is_kernel_ridge(encoder: LiteEncoder) -> None:
    from sklearn.kernel_ridge import KernelRidge

    names = encoder.text_map.support.numpy()
    vectors = lite0.load_weights().classifier
    centred = (vectors - vectors.mean(dim=0)).numpy()
    query = features_of(encoder, "dog", "rock")
    expected = KernelRidge(alpha=0.1, kernel="rbf", gamma=2.0).fit(names, centred).predict(query.numpy())
    wanted = torch.nn.functional.normalize(torch.from_numpy(expected).float(), dim=-1)
    torch.testing.assert_close(encoder.project_text(query).detach(), wanted, atol=2e-3, rtol=0)


def test_what_training_learns_of_a_name_holds_near_it(encoder: LiteEncoder) -> None:
    features, text_map = features_of(encoder, "cat", "kitten", "bridge", "sofa"), encoder.text_map
    known, near, far, _ = encoder.familiarity(features).tolist()
    assert known == pytest.approx(1.0, abs=1e-4)
    assert 0.9 > near > 4 * far
    assert far < 0.03

    before = encoder.project_text(features).detach()
    with torch.no_grad():
        text_map.local_coefficients[0] = 1.0
        moved = (encoder.project_text(features) - before).abs().mean(dim=-1)
        text_map.local_coefficients.zero_()
    assert moved[0] == pytest.approx(1.0, abs=1e-4)
    assert moved[0] > moved[1] > 4 * moved[2]
    assert moved[2] < 0.03

    text_map.log_frequencies.copy_(torch.tensor([2.0, -1.0]))  # cat, couch
    cat, kitten, bridge, sofa = encoder.log_frequency(features).tolist()
    text_map.log_frequencies.zero_()
    assert cat == pytest.approx(2.0, abs=1e-3)
    assert kitten == pytest.approx(2 * near - (1 - near), abs=1e-5)
    assert sofa == pytest.approx(-1.0), "couch is the rarest, and so is what is not known"
    assert bridge == pytest.approx(-1.0, abs=0.06)

    without_names = TextMap(text_map.vectors, 0)
    assert without_names.familiarity(features).tolist() == without_names.log_frequency(features).tolist() == [0.0] * 4


@torch.no_grad()
def test_an_untrained_tuned_copy_sees_what_the_frozen_network_sees(encoder: LiteEncoder) -> None:
    images = torch.rand(1, 3, 64, 64)
    frozen = trunk(images) - encoder.centre[:, None, None]
    torch.testing.assert_close(encoder.pyramid(images).dense, frozen, atol=1e-5, rtol=1e-5)


def test_packaged_weights_are_not_saved(encoder: LiteEncoder) -> None:
    kept = [name for name in encoder.state_dict() if not name.startswith(encoder.packaged)]
    assert any(name.startswith("tuned.") for name in kept)
    assert not any(name.startswith(("early.", "late.")) for name in kept)
