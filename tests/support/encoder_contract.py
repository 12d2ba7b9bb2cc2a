"""What every encoder must do, as one tester: `check_encoder(encoder)`. The encoders' own tests add what is theirs."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from dpseg.model.encoders import Encoder, VisualFeatures

TEXTS = ("a photo of a cat", "a photo of a dog", "sky", "a wooden table with four legs", "")


def check_encoder(encoder: Encoder, side: int = 64, tolerance: float = 1e-5) -> None:
    """Runs all checks and leaves the encoder as it was.

    Args:
        encoder: on any device; also an nn.Module.
        side: of the test pictures in pixels, a multiple of the coarsest stride.
        tolerance: absolute, between a batch and its items.
    """
    assert isinstance(encoder, nn.Module)
    was_training = encoder.training
    encoder.eval()
    check_attributes(encoder)
    check_pyramid(encoder, side, tolerance)
    check_text(encoder, tolerance)
    check_pieces(encoder)
    check_visual(encoder, side, tolerance)
    check_prompt_pyramid(encoder, side)
    check_frozen_parts_ignore_training(encoder, side)
    check_gradients(encoder, side)
    check_state_dict(encoder, side)
    encoder.train(was_training)


def check_attributes(encoder: Encoder) -> None:
    assert isinstance(encoder, Encoder)
    assert encoder.embed_dim > 0
    assert len(encoder.stage_dims) == 3
    assert all(dim > 0 for dim in encoder.stage_dims)
    assert len(encoder.strides) == 4
    assert list(encoder.strides) == sorted(encoder.strides)
    assert all(encoder.strides[-1] % stride == 0 for stride in encoder.strides)
    assert encoder.crop_size % encoder.strides[-1] == 0
    assert isinstance(encoder.fingerprint, str)
    assert encoder.fingerprint
    assert encoder.fingerprint == encoder.fingerprint


def check_pyramid(encoder: Encoder, side: int, tolerance: float) -> None:
    """Shapes on a picture that is not square, dtype, range of inputs, determinism, and independence within a batch."""
    images = _pictures(encoder, 2, side, side + encoder.strides[-1])
    maps = _maps(encoder, images)
    for features, dim, stride in zip(maps, (*encoder.stage_dims, encoder.embed_dim), encoder.strides, strict=True):
        assert features.shape == (2, dim, images.shape[2] // stride, images.shape[3] // stride)
        assert features.dtype == torch.float32
        assert features.isfinite().all()
    for again, features in zip(_maps(encoder, images), maps, strict=True):
        assert torch.equal(again, features)
    for alone, features in zip(_maps(encoder, images[1:]), maps, strict=True):
        torch.testing.assert_close(alone, features[1:], atol=tolerance, rtol=1e-4)
    extremes = torch.stack([torch.zeros_like(images[0]), torch.ones_like(images[0])])
    black, white = _maps(encoder, extremes)[-1]
    assert black.isfinite().all()
    assert white.isfinite().all()
    assert not torch.allclose(black, white)


def check_pieces(encoder: Encoder) -> None:
    """The pieces of a word together are the word, and a common one is not cut."""
    assert encoder.word_pieces("cat") == ("cat",)
    assert "".join(encoder.word_pieces("qzvxk-12")) == "qzvxk-12"


def check_text(encoder: Encoder, tolerance: float) -> None:
    """Shapes, no gradient, equal texts equal, other texts other, order and batch of no importance, projection."""
    features = encoder.text_features(TEXTS)
    assert features.ndim == 2
    assert len(features) == len(TEXTS)
    assert features.dtype == torch.float32
    assert features.isfinite().all()
    assert not features.requires_grad
    assert torch.equal(encoder.text_features(TEXTS), features)
    torch.testing.assert_close(encoder.text_features(TEXTS[::-1]), features.flip(0), atol=tolerance, rtol=1e-4)
    torch.testing.assert_close(encoder.text_features(TEXTS[1:2]), features[1:2], atol=tolerance, rtol=1e-4)
    assert torch.pdist(features).min() > 1e-4
    projected = encoder.project_text(features)
    assert projected.shape == (len(TEXTS), encoder.embed_dim)
    assert projected.isfinite().all()
    deep = encoder.project_text(features.reshape(len(TEXTS), 1, -1).expand(-1, 3, -1))
    assert deep.shape == (len(TEXTS), 3, encoder.embed_dim)
    torch.testing.assert_close(deep[:, 2], projected, atol=tolerance, rtol=1e-4)


def check_visual(encoder: Encoder, side: int, tolerance: float) -> None:
    """Shapes, no gradient, batch of no importance, the mask's weight, projection."""
    crops = _pictures(encoder, 3, side, side)
    whole = encoder.visual_features(crops)
    for pooled, dim in zip(whole.stages, encoder.stage_dims, strict=True):
        assert pooled.shape == (3, dim)
    assert len(whole.dense) == 3
    for pooled in _pooled(whole):
        assert pooled.dtype == torch.float32
        assert pooled.isfinite().all()
        assert not pooled.requires_grad
    _assert_same(encoder.visual_features(crops), whole, 0.0)
    _assert_same(encoder.visual_features(crops[2:]), VisualFeatures(whole.dense[2:], _rows(whole, 2)), tolerance)

    ones = torch.ones_like(crops[:, 0])
    _assert_same(encoder.visual_features(crops, ones), whole, tolerance)
    left = ones.clone()
    left[..., side // 2 :] = 0
    for half, other, full in zip(
        _pooled(encoder.visual_features(crops, left)),
        _pooled(encoder.visual_features(crops, 1 - left)),
        _pooled(whole),
        strict=True,
    ):
        assert half.isfinite().all()
        assert not torch.allclose(half, other, atol=1e-6)
        assert not torch.allclose(half, full, atol=1e-6)
    dot = torch.zeros_like(ones)
    dot[:, side // 2, side // 2] = 1
    assert all(pooled.isfinite().all() for pooled in _pooled(encoder.visual_features(crops, dot)))
    assert all(pooled.isfinite().all() for pooled in _pooled(encoder.visual_features(crops, 0 * ones)))

    projected = encoder.project_visual(whole.dense)
    assert projected.shape == (3, encoder.embed_dim)
    deep = encoder.project_visual(whole.dense[:, None].expand(-1, 2, -1))
    assert deep.shape == (3, 2, encoder.embed_dim)
    torch.testing.assert_close(deep[:, 1], projected, atol=tolerance, rtol=1e-4)


def check_prompt_pyramid(encoder: Encoder, side: int) -> None:
    """Maps of the frozen network: their means are what crops are pooled to, whatever becomes of the tuned network."""
    assert isinstance(encoder, nn.Module)
    images = _pictures(encoder, 2, side, side)
    spoilt = deepcopy(encoder)
    with torch.no_grad():
        before = encoder.pyramid(images)
        for parameter in spoilt.parameter_groups()[0]:
            parameter.mul_(0.5).add_(0.01)
        maps = spoilt.prompt_pyramid(images, spoilt.pyramid(images))
        whole = encoder.visual_features(images)
        assert maps.dense.shape == before.dense.shape
        for level, pooled in zip(maps.stages, whole.stages, strict=True):
            torch.testing.assert_close(level.mean(dim=(2, 3)), pooled, atol=1e-4, rtol=1e-3)
        visual = encoder.project_visual(whole.dense)
        pooled = maps.dense.mean(dim=(2, 3))
    assert (nn.functional.cosine_similarity(pooled, visual) > 0.9).all()


def check_frozen_parts_ignore_training(encoder: Encoder, side: int) -> None:
    """Prompts are the same in training mode: no dropout, stochastic depth or batch statistics in the frozen parts."""
    assert isinstance(encoder, nn.Module)
    crops = _pictures(encoder, 2, side, side)
    text, visual, fingerprint = encoder.text_features(TEXTS), encoder.visual_features(crops), encoder.fingerprint
    encoder.train()
    encoder.pyramid(crops)
    _assert_same(encoder.visual_features(crops), visual, 0.0)
    assert torch.equal(encoder.text_features(TEXTS), text)
    assert encoder.fingerprint == fingerprint
    encoder.eval()


def check_gradients(encoder: Encoder, side: int) -> None:
    """Gradients reach exactly the parameters of `parameter_groups`, each listed once; no others ask for one."""
    assert isinstance(encoder, nn.Module)
    tuned, others = encoder.parameter_groups()
    listed = [id(parameter) for parameter in (*tuned, *others)]
    assert len(listed) == len(set(listed))
    trainable = {id(parameter) for parameter in encoder.parameters() if parameter.requires_grad}
    assert set(listed) == trainable
    encoder.zero_grad(set_to_none=True)
    crops = _pictures(encoder, 2, side, side)
    embeddings = (
        *_maps(encoder, crops, grad=True),
        encoder.project_text(encoder.text_features(TEXTS)),
        encoder.project_visual(encoder.visual_features(crops).dense),
    )
    loss = sum(((embedding - 0.1) ** 2).mean() for embedding in embeddings)
    assert isinstance(loss, Tensor)
    assert loss.requires_grad == bool(listed)
    if listed:
        loss.backward()
    for name, parameter in encoder.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in trainable), name
    for group in (tuned, others):
        assert not group or any(parameter.grad is not None and parameter.grad.any() for parameter in group)
    encoder.zero_grad(set_to_none=True)


def check_state_dict(encoder: Encoder, side: int) -> None:
    """A copy whose weights are spoilt and then loaded again is the same encoder."""
    assert isinstance(encoder, nn.Module)
    copy = deepcopy(encoder)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.mul_(0.5).add_(0.01)
    assert copy.fingerprint != encoder.fingerprint
    copy.load_state_dict(encoder.state_dict())
    assert copy.fingerprint == encoder.fingerprint
    crops = _pictures(encoder, 1, side, side)
    for again, features in zip(_maps(copy, crops), _maps(encoder, crops), strict=True):
        assert torch.equal(again, features)
    _assert_same(copy.visual_features(crops), encoder.visual_features(crops), 0.0)
    assert torch.equal(copy.project_text(copy.text_features(TEXTS)), encoder.project_text(encoder.text_features(TEXTS)))


def _pictures(encoder: Encoder, count: int, height: int, width: int) -> Tensor:
    """Noise over a gradient from left to right, so that the halves of a picture differ at every scale."""
    assert isinstance(encoder, nn.Module)
    generator = torch.Generator().manual_seed(count)
    noise = torch.rand(count, 3, height, width, generator=generator)
    pictures = 0.5 * noise + 0.5 * torch.linspace(0, 1, width) * torch.tensor([1.0, 0.5, 0.2]).view(3, 1, 1)
    device = next((parameter.device for parameter in encoder.parameters()), torch.device("cpu"))
    return pictures.to(device)


def _maps(encoder: Encoder, images: Tensor, grad: bool = False) -> tuple[Tensor, ...]:
    with torch.set_grad_enabled(grad):
        pyramid = encoder.pyramid(images)
    return (*pyramid.stages, pyramid.dense)


def _pooled(features: VisualFeatures) -> tuple[Tensor, ...]:
    return (*features.stages, features.dense)


def _rows(features: VisualFeatures, start: int) -> tuple[Tensor, Tensor, Tensor]:
    s2, s3, s4 = features.stages
    return (s2[start:], s3[start:], s4[start:])


def _assert_same(first: VisualFeatures, second: VisualFeatures, tolerance: float) -> None:
    for one, other in zip(_pooled(first), _pooled(second), strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=1e-4 if tolerance else 0.0)
