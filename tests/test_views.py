"""Several views of a photo when testing: mirrored, at other sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from dpseg.model.class_logits import UNDECODED
from dpseg.model.dpseg import DPSeg
from dpseg.model.preprocess import mirror, scaled_size
from support.random_prompts import prompts_for
from support.tiny import decoder_config, tiny_model


def with_views(*scales: float, decode_classes: int | None = None) -> tuple[DPSeg, DPSeg]:
    """One model with views and the same model without, whose decoder says something."""
    config = decoder_config()
    viewed = replace(config, mirrored_scales=scales, decode_classes=decode_classes)
    return tiny_model(viewed, trained=True), tiny_model(config, trained=True)


@pytest.mark.numeric
def test_the_logits_are_the_mean_of_all_views() -> None:
    model, plain = with_views(1.0, 0.5)
    images, prompts = torch.rand(2, 3, 128, 64), prompts_for(plain, 5)
    with torch.no_grad():
        logits = model(images, prompts)
        one = plain(images, prompts)
        same_size = plain(images.flip(-1), prompts).flip(-1)
        half = plain(F.interpolate(images.flip(-1), (64, 32), mode="bilinear", antialias=True), prompts).flip(-1)
        half = F.interpolate(half, one.shape[-2:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(logits, (one + same_size + half) / 3)
    assert not torch.allclose(one, same_size)
    assert model.train().encode(torch.rand(1, 3, 64, 64)).mirrored == (), "training sees a photo once"
    assert len(model.eval().encode(torch.rand(1, 3, 64, 64)).mirrored) == 2


def test_all_views_decode_the_same_classes() -> None:
    model, plain = with_views(0.5, decode_classes=3)
    with torch.no_grad():
        logits = model(torch.rand(2, 3, 64, 64), prompts_for(plain, 7))
    decoded = (logits > UNDECODED / 2).all(dim=(2, 3))
    assert decoded.sum(dim=1).tolist() == [3, 3]
    assert ((logits == UNDECODED).all(dim=(2, 3)) == ~decoded).all()


def test_sizes_are_multiples_of_the_stride() -> None:
    assert scaled_size((384, 512), 2 / 3, 16) == (256, 336)
    assert scaled_size((32, 32), 0.1, 16) == (16, 16)
    image = torch.arange(4.0).expand(1, 3, 2, 4)
    assert torch.equal(mirror(image, (2, 4)), image.flip(-1))
