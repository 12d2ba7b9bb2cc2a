"""What every encoder must do, as one tester: `check_encoder(encoder)`. The encoders' own tests add what is theirs."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.testing import assert_close

from dpseg.model.encoders import Encoder

TEXTS = ("a photo of a cat", "a photo of a dog", "sky", "a wooden table with four legs", "")


def check_encoder(encoder: Encoder, side: int = 64, tolerance: float = 1e-5) -> None:
    """Runs all checks and leaves the encoder as it was.

    Args:
        encoder: on any device; also an nn.Module.
        side: of the test pictures in pixels, a multiple of the coarsest stride.
        tolerance: absolute, between a batch and its items.
    """
    assert isinstance(encoder, Encoder)
    assert isinstance(encoder, nn.Module)
    was_training = encoder.training
    encoder.eval()
    check_attributes(encoder)
    check_pyramid(encoder, side, tolerance)
    check_text(encoder, tolerance)
    check_visual(encoder, side, tolerance)
    check_copies(encoder, side)
    check_frozen_parts_ignore_training(encoder, side)
    check_gradients(encoder, side)
    encoder.train(was_training)


def check_attributes(encoder: Encoder) -> None:
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
        _check_features(features, 2, dim, images.shape[2] // stride, images.shape[3] // stride)
    assert_close(_maps(encoder, images), maps, atol=0, rtol=0)
    assert_close(_maps(encoder, images[1:]), tuple(features[1:] for features in maps), atol=tolerance, rtol=1e-4)
    black, white = _maps(encoder, torch.stack([torch.zeros_like(images[0]), torch.ones_like(images[0])]))[-1]
    assert black.isfinite().all()
    assert white.isfinite().all()
    assert not torch.allclose(black, white)


def check_text(encoder: Encoder, tolerance: float) -> None:
    """Shapes, no gradient, equal texts equal, others not, order and batch of no importance, projection, word pieces."""
    features = encoder.text_features(TEXTS)
    _check_features(features, len(TEXTS), features.shape[1])
    assert not features.requires_grad
    assert torch.equal(encoder.text_features(TEXTS), features)
    assert_close(encoder.text_features(TEXTS[::-1]), features.flip(0), atol=tolerance, rtol=1e-4)
    assert_close(encoder.text_features(TEXTS[1:2]), features[1:2], atol=tolerance, rtol=1e-4)
    assert torch.pdist(features).min() > 1e-4
    projected = encoder.project_text(features)
    _check_features(projected, len(TEXTS), encoder.embed_dim)
    deep = encoder.project_text(features[:, None].expand(-1, 3, -1))
    assert deep.shape == (len(TEXTS), 3, encoder.embed_dim)
    assert_close(deep[:, 2], projected, atol=tolerance, rtol=1e-4)
    assert encoder.word_pieces("cat") == ("cat",), "a common word is not cut"
    assert "".join(encoder.word_pieces("qzvxk-12")) == "qzvxk-12"


def check_visual(encoder: Encoder, side: int, tolerance: float) -> None:
    """Shapes, no gradient, batch of no importance, the mask's weight, projection."""
    crops = _pictures(encoder, 3, side, side)
    whole = _pooled(encoder, crops)
    for pooled, dim in zip(whole, (*encoder.stage_dims, whole[-1].shape[1]), strict=True):
        _check_features(pooled, 3, dim)
        assert not pooled.requires_grad
    assert_close(_pooled(encoder, crops), whole, atol=0, rtol=0)
    last = tuple(pooled[2:] for pooled in whole)
    assert_close(_pooled(encoder, crops[2:]), last, atol=tolerance, rtol=1e-4)

    ones, left, dot = torch.ones_like(crops[:, 0]), torch.ones_like(crops[:, 0]), torch.zeros_like(crops[:, 0])
    left[..., side // 2 :] = 0
    dot[:, side // 2, side // 2] = 1
    assert_close(_pooled(encoder, crops, ones), whole, atol=tolerance, rtol=1e-4)
    for half, other, full in zip(_pooled(encoder, crops, left), _pooled(encoder, crops, 1 - left), whole, strict=True):
        assert half.isfinite().all()
        assert not torch.allclose(half, other, atol=1e-6)
        assert not torch.allclose(half, full, atol=1e-6)
    for mask in (dot, 0 * ones):
        assert all(pooled.isfinite().all() for pooled in _pooled(encoder, crops, mask))

    projected = encoder.project_visual(whole[-1])
    assert projected.shape == (3, encoder.embed_dim)
    deep = encoder.project_visual(whole[-1][:, None].expand(-1, 2, -1))
    assert deep.shape == (3, 2, encoder.embed_dim)
    assert_close(deep[:, 1], projected, atol=tolerance, rtol=1e-4)


@torch.no_grad()
def check_copies(encoder: Encoder, side: int) -> None:
    """Prompts of a copy are the same whatever becomes of its tuned network; loaded again, it is the same encoder."""
    assert isinstance(encoder, nn.Module)
    images = _pictures(encoder, 2, side, side)
    before, pooled, text = encoder.pyramid(images), _pooled(encoder, images), encoder.text_features(TEXTS)
    copy = deepcopy(encoder)
    for parameter in copy.parameter_groups()[0]:
        parameter.mul_(0.5).add_(0.01)
    assert copy.fingerprint == encoder.fingerprint
    assert_close(_pooled(copy, images), pooled, atol=0, rtol=0)
    assert torch.equal(copy.pyramid(images).dense, before.dense) != bool(copy.parameter_groups()[0])
    maps = copy.prompt_pyramid(images, copy.pyramid(images))
    assert maps.dense.shape == before.dense.shape
    means = tuple(level.mean(dim=(2, 3)) for level in maps.stages)
    assert_close(means, pooled[:3], atol=1e-4, rtol=1e-3)  # what crops are pooled to
    visual = encoder.project_visual(pooled[-1])
    assert (nn.functional.cosine_similarity(maps.dense.mean(dim=(2, 3)), visual) > 0.9).all()

    for parameter in copy.parameters():
        parameter.mul_(0.5).add_(0.01)
    assert copy.fingerprint != encoder.fingerprint
    copy.load_state_dict(encoder.state_dict())
    assert copy.fingerprint == encoder.fingerprint
    assert_close(_maps(copy, images), _maps(encoder, images), atol=0, rtol=0)
    assert_close(_pooled(copy, images), pooled, atol=0, rtol=0)
    assert torch.equal(copy.project_text(copy.text_features(TEXTS)), encoder.project_text(text))


def check_frozen_parts_ignore_training(encoder: Encoder, side: int) -> None:
    """Prompts are the same in training mode: no dropout, stochastic depth or batch statistics in the frozen parts."""
    assert isinstance(encoder, nn.Module)
    crops = _pictures(encoder, 2, side, side)
    text, visual, fingerprint = encoder.text_features(TEXTS), _pooled(encoder, crops), encoder.fingerprint
    encoder.train()
    encoder.pyramid(crops)
    assert_close(_pooled(encoder, crops), visual, atol=0, rtol=0)
    assert torch.equal(encoder.text_features(TEXTS), text)
    assert encoder.fingerprint == fingerprint
    encoder.eval()


def check_gradients(encoder: Encoder, side: int) -> None:
    """Gradients reach exactly the parameters of `parameter_groups`, each listed once; no others ask for one."""
    assert isinstance(encoder, nn.Module)
    groups = encoder.parameter_groups()
    listed = [id(parameter) for group in groups for parameter in group]
    trainable = {id(parameter) for parameter in encoder.parameters() if parameter.requires_grad}
    assert len(listed) == len(trainable)
    assert set(listed) == trainable
    encoder.zero_grad(set_to_none=True)
    crops = _pictures(encoder, 2, side, side)
    pyramid = encoder.pyramid(crops)
    text = encoder.project_text(encoder.text_features(TEXTS))
    visual = encoder.project_visual(encoder.visual_features(crops).dense)
    embeddings = (*pyramid.stages, pyramid.dense, text, visual)
    loss = torch.stack([((embedding - 0.1) ** 2).mean() for embedding in embeddings]).sum()
    assert loss.requires_grad == bool(listed)
    if listed:
        loss.backward()
    for name, parameter in encoder.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in trainable), name
    for group in groups:
        assert not group or any(parameter.grad is not None and parameter.grad.any() for parameter in group)
    encoder.zero_grad(set_to_none=True)


def _check_features(features: Tensor, *shape: int) -> None:
    assert features.shape == shape
    assert features.dtype == torch.float32
    assert features.isfinite().all()


def _pictures(encoder: Encoder, count: int, height: int, width: int) -> Tensor:
    """Noise over a gradient from left to right, so that the halves of a picture differ at every scale."""
    assert isinstance(encoder, nn.Module)
    noise = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(count))
    pictures = 0.5 * noise + 0.5 * torch.linspace(0, 1, width) * torch.tensor([1.0, 0.5, 0.2]).view(3, 1, 1)
    return pictures.to(next((parameter.device for parameter in encoder.parameters()), torch.device("cpu")))


@torch.no_grad()
def _maps(encoder: Encoder, images: Tensor) -> tuple[Tensor, ...]:
    pyramid = encoder.pyramid(images)
    return (*pyramid.stages, pyramid.dense)


def _pooled(encoder: Encoder, crops: Tensor, masks: Tensor | None = None) -> tuple[Tensor, ...]:
    features = encoder.visual_features(crops, masks)
    return (*features.stages, features.dense)
