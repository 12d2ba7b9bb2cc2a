"""CLIP ConvNeXt: parity of base and large with open_clip (random weights), all else on a small model of the kind."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dpseg.config import ModelConfig
from dpseg.model.build import build_encoder
from dpseg.model.clip import ClipEncoder
from support.encoder_contract import check_encoder

open_clip = pytest.importorskip("open_clip", reason="needs the extra: pip install 'dpseg[clip]'")

from support.small_clip import enliven, small_clip, small_encoder  # noqa: E402 - it imports open_clip

TEXTS = ["a photo of a cat", "sky", "a very long text " * 40, ""]


def colour_normalised(images: Tensor) -> Tensor:
    """CLIP's preprocessing, written out."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    return (images - mean) / std


@pytest.fixture
def small(tmp_path: Path) -> Iterator[None]:
    with small_clip(tmp_path):
        yield


@pytest.fixture(params=["base", "large"])
def full_size(request: pytest.FixtureRequest) -> Iterator[ClipEncoder]:
    """Base and large with random weights, one at a time; 0.7 and 1.4 GB."""
    torch.manual_seed(0)
    encoder = build_encoder(ModelConfig(encoder=request.param, weights="random", tune_encoder=False))
    assert isinstance(encoder, ClipEncoder)
    enliven(encoder.clip)
    yield encoder.eval()
    del encoder
    gc.collect()


@torch.no_grad()
def test_parity_with_open_clip(full_size: ClipEncoder) -> None:
    assert full_size.strides == (4, 8, 16, 32)
    assert full_size.crop_size == 320
    dims = {"convnext_base_w_320": ((128, 256, 512), 640), "convnext_large_d_320": ((192, 384, 768), 768)}
    assert (full_size.stage_dims, full_size.embed_dim) == dims[full_size.name]
    assert full_size.parameter_groups() == ([], [])

    images = torch.rand(2, 3, 32, 32)  # the last map is 1 x 1
    embedding = full_size.clip.encode_image(colour_normalised(images))
    assert embedding.std() > 0.05
    dense = full_size.pyramid(images).dense
    assert dense.shape == (2, full_size.embed_dim, 1, 1)
    torch.testing.assert_close(dense[:, :, 0, 0], embedding, atol=1e-5, rtol=0)
    torch.testing.assert_close(full_size.visual_features(images).dense, embedding, atol=1e-5, rtol=0)

    text = full_size.clip.encode_text(open_clip.get_tokenizer(full_size.name)(TEXTS))  # T
    assert text.std() > 0.05
    torch.testing.assert_close(full_size.project_text(full_size.text_features(TEXTS)), text, atol=1e-5, rtol=0)

    assert_pyramid_is_the_trunks(full_size, torch.rand(1, 3, 64, 96))
    if full_size.name == "convnext_base_w_320":
        assert_parity_at_crop_size(full_size)


def assert_pyramid_is_the_trunks(encoder: ClipEncoder, images: Tensor) -> None:
    """Stages as timm lists them, and each position of E as the model's own head maps a picture with that map alone."""
    visual = encoder.clip.visual
    last, maps = visual.trunk.forward_intermediates(colour_normalised(images))
    pyramid = encoder.pyramid(images)
    for stage, expected in zip(pyramid.stages, maps[:3], strict=True):
        torch.testing.assert_close(stage, expected, atol=1e-5, rtol=1e-5)
    rows, columns = last.shape[2:]
    assert pyramid.dense.shape[2:] == (rows, columns)
    for row in range(rows):
        for column in range(columns):
            alone = last[:, :, row : row + 1, column : column + 1]
            expected = visual.head(visual.trunk.forward_head(alone))
            torch.testing.assert_close(pyramid.dense[:, :, row, column], expected, atol=1e-5, rtol=0)


def assert_parity_at_crop_size(encoder: ClipEncoder) -> None:
    """At 320 px: V is the whole CLIP embedding, and, where the head is linear, E averages to it."""
    crop = torch.rand(1, 3, 320, 320)
    visual = encoder.visual_features(crop)
    embedding = encoder.clip.encode_image(colour_normalised(crop))
    torch.testing.assert_close(visual.dense, embedding, atol=1e-5, rtol=0)
    encoder.clip.visual.trunk.head.norm = nn.Identity()  # LayerNorm is all that is not linear in base's head
    pyramid = encoder.pyramid(crop)
    linear = encoder.clip.encode_image(colour_normalised(crop))
    torch.testing.assert_close(pyramid.dense.mean(dim=(2, 3)), linear, atol=1e-5, rtol=1e-5)
    for pooled, stage in zip(visual.stages, pyramid.stages, strict=True):
        torch.testing.assert_close(pooled, stage.mean(dim=(2, 3)), atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("tune_encoder", [False, True])
def test_contract(tune_encoder: bool) -> None:
    check_encoder(small_encoder(tune_encoder=tune_encoder))


@pytest.mark.usefixtures("small")
def test_visual_prompts_share_the_weights_until_they_are_tuned() -> None:
    shared = small_encoder()
    assert shared.visual_trunk is None
    assert not any(name.startswith("visual_trunk") for name in shared.state_dict())

    tuned = small_encoder(tune_encoder=True)
    tuned.clip.load_state_dict(shared.clip.state_dict())
    assert tuned.visual_trunk is not None
    tuned.visual_trunk.load_state_dict(shared.clip.visual.state_dict())
    assert tuned.fingerprint == shared.fingerprint
    crops = torch.rand(2, 3, 64, 64)
    before, image = tuned.visual_features(crops), tuned.pyramid(crops).dense
    assert torch.equal(before.dense, shared.visual_features(crops).dense)

    with torch.no_grad():
        for parameter in tuned.parameter_groups()[0]:
            parameter.add_(0.05)
    assert not torch.allclose(tuned.pyramid(crops).dense, image)
    assert torch.equal(tuned.visual_features(crops).dense, before.dense)
    assert tuned.fingerprint == shared.fingerprint
    trained = {name for name, parameter in tuned.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in tuned.named_parameters() if name.startswith("clip.visual.")}


@pytest.mark.usefixtures("small")
def test_activations_that_write_over_their_input_change_nothing() -> None:
    encoder, plain = small_encoder(tune_encoder=True), open_clip.create_model("dpseg_small_clip").eval()
    plain.load_state_dict(encoder.clip.state_dict())
    kinds = [(type(own), type(other)) for own, other in zip(encoder.clip.modules(), plain.modules(), strict=True)]
    assert sum(own is not other for own, other in kinds) > 5
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(encoder.clip.encode_image(images), plain.encode_image(images))
    for model in (encoder.clip, plain):
        model.encode_image(images).square().sum().backward()
    pairs = zip(encoder.clip.visual.named_parameters(), plain.visual.parameters(), strict=True)
    assert all(torch.equal(own.grad, other.grad) for (_, own), other in pairs), "gradients"


@pytest.mark.usefixtures("small")
def test_only_a_tuned_image_encoder_has_stochastic_depth() -> None:
    images = torch.rand(4, 3, 64, 64)
    for tune_encoder in (False, True):
        encoder = small_encoder(tune_encoder=tune_encoder).train()
        same = torch.equal(encoder.pyramid(images).dense, encoder.pyramid(images).dense)
        assert same is not tune_encoder


@pytest.mark.usefixtures("small")
def test_checkpointing_changes_no_gradient() -> None:
    encoder = small_encoder(tune_encoder=True)
    images = torch.rand(1, 3, 64, 64)
    gradients = []
    for enable in (False, True):
        encoder.set_grad_checkpointing(enable)
        encoder.zero_grad(set_to_none=True)
        encoder.pyramid(images).dense.square().mean().backward()
        gradients.append(encoder.clip.visual.trunk.stem[0].weight.grad.clone())
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-7, rtol=1e-4)


@pytest.mark.usefixtures("small")
def test_batches_are_of_no_importance(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = small_encoder()
    crops, masks = torch.rand(5, 3, 64, 64), torch.rand(5, 64, 64)
    visual, text = encoder.visual_features(crops, masks), encoder.text_features(TEXTS)
    monkeypatch.setattr("dpseg.model.clip._VISUAL_BATCH", 2)
    monkeypatch.setattr("dpseg.model.clip._TEXT_BATCH", 3)
    torch.testing.assert_close(encoder.visual_features(crops, masks).dense, visual.dense, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.visual_features(crops, masks).stages[0], visual.stages[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.text_features(TEXTS), text, atol=1e-5, rtol=0)
    assert encoder.text_features([]).shape == (0, encoder.embed_dim)
