"""The whole model, on the tiny encoder."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpseg.errors import PromptError, WeightsError
from dpseg.model.cost_volume import dual_cost_volume
from dpseg.model.dpseg import DPSeg
from support.random_prompts import prompts_for
from support.tiny import decoder_config, tiny_model

TINY = decoder_config(image_size=64, train_pool=2)
FUSIONS = ("average", "text", "visual", "cost_average", "cost_concat")
GUIDANCES = ("visual234", "visual2", "none", "upsampled", "cost_chain")


@pytest.mark.parametrize(("fusion", "guidance"), list(itertools.product(FUSIONS, GUIDANCES)))
def test_every_ablation_is_one_field_and_trains(fusion: Any, guidance: Any) -> None:
    model = tiny_model(replace(TINY, fusion=fusion, guidance=guidance)).train()
    logits = model(torch.rand(2, 3, 64, 96), prompts_for(model, 4))
    assert logits.shape == (2, 4, 16, 24)
    logits.square().mean().backward()
    assert not [name for name, parameter in model.decoder.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("changes", [{}, {"spatial": "depthwise9", "guidance": "cost_chain"}], ids=["ours", "sed"])
def test_auxiliary_heads_see_what_the_stages_see_and_train_nothing_else(changes: dict[str, Any]) -> None:
    config = replace(TINY, **changes)
    plain = tiny_model(config)
    assert plain.decode_with_auxiliary(plain.encode(torch.rand(1, 3, 32, 32)), prompts_for(plain, 2))[1] == ()
    model = tiny_model(replace(config, auxiliary_heads=True, logit_scale=5.0), trained=True)
    prompts, images = prompts_for(model, 4), torch.rand(2, 3, 64, 96)
    logits, auxiliary = model.decode_with_auxiliary(model.encode(images), prompts)
    torch.testing.assert_close(logits, model(images, prompts))
    assert [tuple(part.shape) for part in auxiliary] == [(2, 4, 2, 3), (2, 4, 4, 6), (2, 4, 8, 12)]
    torch.stack([part.square().mean() for part in auxiliary]).sum().backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    heads = {f"decoder.auxiliary.{number}.{kind}" for number in range(3) for kind in ("weight", "bias")}
    assert reached == heads == {name for name in model.state_dict() if "auxiliary" in name}


@torch.no_grad()
def test_permuting_the_classes_permutes_the_output() -> None:
    model = tiny_model(TINY)
    prompts, images, order = prompts_for(model, 7), torch.rand(1, 3, 64, 64), torch.randperm(7)
    permuted = model(images, prompts.map(lambda t: t[order]))
    torch.testing.assert_close(permuted, model(images, prompts)[:, order], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_an_untrained_model_with_a_logit_scale_is_the_plain_cosine() -> None:
    model = tiny_model(replace(TINY, logit_scale=20.0))
    prompts, pyramid = prompts_for(model, 3), model.encode(torch.rand(1, 3, 64, 64))
    cosines = dual_cost_volume(pyramid.dense, prompts, "average").mean(dim=2)
    expected = 20 * torch.nn.functional.interpolate(cosines, (16, 16), mode="bilinear")
    torch.testing.assert_close(model.decode(pyramid, prompts), expected)


@pytest.mark.parametrize("tuned", [True, False])
def test_gradients_reach_what_the_recipe_trains_and_nothing_else(tuned: bool) -> None:
    model = tiny_model(replace(TINY, tune_encoder=tuned, logit_scale=10.0), trained=True).train()
    features = model.encoder.text_features(["a", "b", "c", "d"])
    text = model.encoder.project_text(features)[:, None].expand(-1, 2, -1)
    prompts = replace(prompts_for(model, 4), text=torch.nn.functional.normalize(text, dim=-1))
    model(torch.rand(2, 3, 64, 64), prompts).square().mean().backward()
    reached = {
        name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()
    }
    encoder, others = model.encoder.parameter_groups()
    assert model.baseline is not None
    trained = {id(p) for p in (*encoder, *others, *model.decoder.parameters(), *model.baseline.parameters())}
    assert reached == {name for name, parameter in model.named_parameters() if id(parameter) in trained}
    assert any(name.startswith("encoder.trunk") for name in reached) == tuned


@torch.no_grad()
def test_saving_and_loading_changes_nothing(tmp_path: Path) -> None:
    model = tiny_model(replace(TINY, logit_scale=7.0), trained=True)
    model.save_pretrained(tmp_path / "model")
    again = DPSeg.from_pretrained(tmp_path / "model")
    assert again.config == model.config
    prompts, images = prompts_for(model, 5), torch.rand(1, 3, 64, 64)
    assert torch.equal(again(images, prompts), model(images, prompts))


def test_wrong_weights_are_named(tmp_path: Path) -> None:
    tiny_model(TINY).save_pretrained(tmp_path)
    path, bias = tmp_path / "model.safetensors", "decoder.head.bias"
    good = load_file(path)
    for wrong, message in (
        ({name: tensor for name, tensor in good.items() if name != bias}, r"lacks decoder\.head\.bias"),
        (good | {"decoder.extra": torch.zeros(1)}, r"unknown decoder\.extra"),
        (good | {bias: torch.zeros(2)}, r"another shape for decoder\.head\.bias"),
        (None, "cannot be read"),
    ):
        path.write_bytes(b"no weights") if wrong is None else save_file(wrong, path)
        with pytest.raises(WeightsError, match=message):
            DPSeg.from_pretrained(tmp_path)


def test_prompts_of_another_model_are_refused() -> None:
    model, other = tiny_model(TINY), tiny_model(replace(TINY, templates=1))
    with pytest.raises(PromptError, match="1 templates and the model has 2"):
        model(torch.rand(1, 3, 64, 64), prompts_for(other, 2))
