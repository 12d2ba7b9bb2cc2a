"""The whole model, on the tiny encoder."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpseg.config import ModelConfig
from dpseg.errors import PromptError, WeightsError
from dpseg.model.dpseg import UNDECODED, DPSeg
from dpseg.prompts.prompt_set import PromptEmbeddings

TINY = ModelConfig(
    encoder="tiny", image_size=64, templates=2, widths=(16, 12, 8, 8), image_widths=(4, 4, 4), train_pool=2, heads=2
)
FUSIONS = ("average", "text", "visual", "cost_average", "cost_concat")
GUIDANCES = ("visual234", "visual2", "none", "upsampled", "cost_chain")


def build(config: ModelConfig = TINY) -> DPSeg:
    torch.manual_seed(0)
    return DPSeg(config).eval()


def some_prompts(model: DPSeg, count: int) -> PromptEmbeddings:
    """Every third class has text only, every third pictures only."""
    random = torch.Generator().manual_seed(count)
    index = torch.arange(count)
    has_text, has_visual = index % 3 != 1, index % 3 != 2

    def rows(size: int, keep: torch.Tensor, templates: int) -> torch.Tensor:
        values = torch.randn(count, templates, size, generator=random)
        return torch.nn.functional.normalize(values, dim=-1) * keep[:, None, None]

    s2, s3, s4 = (rows(size, has_visual, 1) for size in model.encoder.stage_dims)
    templates = model.config.templates
    text, visual = rows(model.encoder.embed_dim, has_text, templates), rows(model.encoder.embed_dim, has_visual, 1)
    return PromptEmbeddings(text, visual, (s2, s3, s4), has_text, has_visual)


@pytest.mark.parametrize(("fusion", "guidance"), list(itertools.product(FUSIONS, GUIDANCES)))
def test_every_ablation_is_one_field_and_trains(fusion: str, guidance: str) -> None:
    model = build(replace(TINY, fusion=fusion, guidance=guidance)).train()  # type: ignore[arg-type]
    logits = model(torch.rand(2, 3, 64, 96), some_prompts(model, 4))
    assert logits.shape == (2, 4, 16, 24)
    logits.square().mean().backward()
    unused = [name for name, p in model.decoder.named_parameters() if p.grad is None]
    assert unused == []


@pytest.mark.parametrize(
    "config", [TINY, replace(TINY, spatial="depthwise9", guidance="cost_chain")], ids=["ours", "sed"]
)
def test_auxiliary_heads_see_what_the_stages_see_and_train_nothing_else(config: ModelConfig) -> None:
    plain = build(config)
    assert plain.decode_with_auxiliary(plain.encode(torch.rand(1, 3, 32, 32)), some_prompts(plain, 2))[1] == ()
    model = build(replace(config, auxiliary_heads=True, logit_scale=5.0))
    torch.nn.init.normal_(model.decoder.head.weight)
    prompts, images = some_prompts(model, 4), torch.rand(2, 3, 64, 96)
    logits, auxiliary = model.decode_with_auxiliary(model.encode(images), prompts)
    torch.testing.assert_close(logits, model(images, prompts))
    assert [tuple(part.shape) for part in auxiliary] == [(2, 4, 2, 3), (2, 4, 4, 6), (2, 4, 8, 12)]
    sum(part.square().mean() for part in auxiliary).backward()  # type: ignore[union-attr]
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    heads = {f"decoder.auxiliary.{number}.{kind}" for number in range(3) for kind in ("weight", "bias")}
    assert reached == heads == {name for name in model.state_dict() if "auxiliary" in name}


def test_seds_decoder_runs_on_maps_of_any_size() -> None:
    model = build(replace(TINY, fusion="text", spatial="depthwise9", guidance="cost_chain"))
    prompts = some_prompts(model, 3)
    pyramid = model.encode(torch.rand(1, 3, 64, 64))
    odd = replace(pyramid, stages=tuple(stage[..., :-1] for stage in pyramid.stages))  # type: ignore[arg-type]
    with torch.no_grad():
        assert model.decode(odd, prompts).shape == (1, 3, 16, 15)


def test_permuting_the_classes_permutes_the_output() -> None:
    model = build()
    prompts, images = some_prompts(model, 7), torch.rand(1, 3, 64, 64)
    order = torch.randperm(7)
    with torch.no_grad():
        torch.testing.assert_close(
            model(images, prompts.map(lambda t: t[order])), model(images, prompts)[:, order], atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("count", [1, 847])
def test_any_number_of_classes_works(count: int) -> None:
    model = build()
    with torch.no_grad():
        logits = model(torch.rand(1, 3, 32, 32), some_prompts(model, count))
    assert logits.shape == (1, count, 8, 8)
    assert torch.isfinite(logits).all()


def test_only_the_best_classes_are_decoded_when_the_config_says_so() -> None:
    model = build(replace(TINY, decode_classes=5))
    with torch.no_grad():
        logits = model(torch.rand(2, 3, 64, 64), some_prompts(model, 12))
    decoded = (logits > UNDECODED).all(dim=(2, 3))
    assert decoded.sum(dim=1).tolist() == [5, 5]
    assert (logits[~decoded] == UNDECODED).all()


def test_an_untrained_model_with_a_logit_scale_is_the_plain_cosine() -> None:
    model = build(replace(TINY, logit_scale=20.0))
    prompts, images = some_prompts(model, 3), torch.rand(1, 3, 64, 64)
    from dpseg.model.cost_volume import dual_cost_volume

    with torch.no_grad():
        pyramid = model.encode(images)
        cosines = dual_cost_volume(pyramid.dense, prompts, "average").mean(dim=2)
        expected = 20 * torch.nn.functional.interpolate(cosines, (16, 16), mode="bilinear")
        torch.testing.assert_close(model.decode(pyramid, prompts), expected)


@pytest.mark.parametrize("tuned", [True, False])
def test_gradients_reach_what_the_recipe_trains_and_nothing_else(tuned: bool) -> None:
    model = build(replace(TINY, tune_encoder=tuned, logit_scale=10.0)).train()
    torch.nn.init.normal_(model.decoder.head.weight)
    prompts = some_prompts(model, 4)
    features = model.encoder.text_features(["a", "b", "c", "d"])
    text = model.encoder.project_text(features)[:, None].expand(-1, 2, -1)
    prompts = replace(prompts, text=torch.nn.functional.normalize(text, dim=-1))
    model(torch.rand(2, 3, 64, 64), prompts).square().mean().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    encoder, others = model.encoder.parameter_groups()
    trained = {id(p) for p in (*encoder, *others, *model.decoder.parameters(), *model.baseline.parameters())}  # type: ignore[union-attr]
    expected = {name for name, p in model.named_parameters() if id(p) in trained}
    assert reached == expected
    assert any(name.startswith("encoder.trunk") for name in reached) == tuned


def test_saving_and_loading_changes_nothing(tmp_path: Path) -> None:
    model = build(replace(TINY, logit_scale=7.0))
    model.save_pretrained(tmp_path / "model")
    again = DPSeg.from_pretrained(tmp_path / "model")
    assert again.config == model.config
    prompts, images = some_prompts(model, 5), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(images, prompts), model(images, prompts))


def test_wrong_weights_are_named(tmp_path: Path) -> None:
    build().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    good = load_file(path)
    save_file({k: v for k, v in good.items() if k != "decoder.head.bias"}, path)
    with pytest.raises(WeightsError, match=r"lacks decoder\.head\.bias"):
        DPSeg.from_pretrained(tmp_path)
    save_file(good | {"decoder.extra": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"unknown decoder\.extra"):
        DPSeg.from_pretrained(tmp_path)
    save_file(good | {"decoder.head.bias": torch.zeros(2)}, path)
    with pytest.raises(WeightsError, match=r"another shape for decoder\.head\.bias"):
        DPSeg.from_pretrained(tmp_path)
    path.write_bytes(b"no weights")
    with pytest.raises(WeightsError, match="cannot be read"):
        DPSeg.from_pretrained(tmp_path)


def test_prompts_of_another_model_are_refused() -> None:
    model, other = build(), build(replace(TINY, templates=1))
    with pytest.raises(PromptError, match="1 templates and the model has 2"):
        model(torch.rand(1, 3, 64, 64), some_prompts(other, 2))
