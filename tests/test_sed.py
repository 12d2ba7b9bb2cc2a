"""SED's decoder against one pass of its own, its names, and its protocol."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dpseg.config import ModelConfig
from dpseg.model.cost_volume import cosine_volume
from dpseg.model.decoder import Decoder, EncoderShape
from dpseg.model.dpseg import DPSeg
from dpseg.model.label_map import label_map
from dpseg.model.preprocess import prepare
from dpseg.model.sed import DECODER_PREFIX, SED_BASE, SED_MODELS, reorder_templates, sed_name
from dpseg.prompts.text import TEMPLATES, parse_class, templates
from support.small_sed import CLIP, DECODER, decoder_shapes

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "parity" / "sed_decoder_b.safetensors"
STAGE_DIMS = {"sed-base": (128, 256, 512), "sed-large": (192, 384, 768)}

needs_golden = pytest.mark.skipif(
    not GOLDEN.is_file(), reason="the data of SED's own pass, ../shared/parity, is not here"
)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(GOLDEN)


def template_order() -> list[int]:
    """For each of our templates, its place in SED's list."""
    return [TEMPLATES.index(template) for template in templates(80)]


@needs_golden
@torch.no_grad()
def test_the_decoder_is_seds_own(golden: dict[str, Tensor]) -> None:
    decoder = Decoder(SED_BASE, EncoderShape(STAGE_DIMS["sed-base"], (4, 8, 16, 32)))
    weights = {}
    for name in decoder.state_dict():
        theirs = sed_name(f"decoder.{name}").removeprefix(DECODER_PREFIX)
        weights[name] = reorder_templates(f"decoder.{name}", golden[f"weights.{theirs}"])
    decoder.load_state_dict(weights)
    decoder.train()  # SED's pass pooled 2 x 2 before the attention, as training does; nothing else depends on the mode
    cost = cosine_volume(golden["in.image_embedding"], golden["in.text_embeddings"][:, :, template_order()])  # F_c
    stages = golden["in.res2"], golden["in.res3"], golden["in.res4"]
    logits, auxiliary = decoder.with_auxiliary(cost, stages, {})
    torch.testing.assert_close(logits, golden["out.logits"], atol=1e-4, rtol=0)
    for ours, stride in zip(auxiliary, (32, 16, 8), strict=True):
        torch.testing.assert_close(ours, golden[f"out.aux_s{stride}"], atol=1e-4, rtol=0)
    assert torch.equal(decoder(cost, stages, {}), logits)
    unpooled = decoder.eval()(cost, stages, {})
    assert (unpooled - golden["out.logits"]).abs().max() > 1e-3


@needs_golden
def test_the_tests_write_the_names_that_sed_has(golden: dict[str, Tensor]) -> None:
    weights = {
        name.removeprefix("weights."): tuple(golden[name].shape) for name in golden if name.startswith("weights")
    }
    assert decoder_shapes(STAGE_DIMS["sed-base"]) == weights


@pytest.mark.parametrize("name", ["sed-base", "sed-large"])
def test_every_tensor_of_the_full_models_has_a_place(name: str) -> None:
    open_clip = pytest.importorskip("open_clip", reason="needs the extra: pip install 'dpseg[clip]'")
    with torch.device("meta"):  # shapes without numbers
        model = DPSeg(replace(SED_MODELS[name], weights="random"))
        clip = open_clip.CLIP(**open_clip.get_model_config(model.encoder.name)).state_dict()  # type: ignore[attr-defined]
    ours = {sed_name(name): tuple(tensor.shape) for name, tensor in model.saved_state().items()}
    expected = {DECODER + name: shape for name, shape in decoder_shapes(STAGE_DIMS[name]).items()}
    assert ours == expected | {CLIP + name: tuple(tensor.shape) for name, tensor in clip.items()}


def test_channels_of_templates_are_put_in_our_order() -> None:
    channels = torch.arange(80.0)
    ours = reorder_templates("decoder.embed.weight", channels.expand(3, 80))
    assert [TEMPLATES[int(channel)] for channel in ours[0]] == list(templates(80))
    chain = reorder_templates("decoder.cost_chain.0.0.weight", channels[:, None].expand(80, 2))
    assert torch.equal(chain[:, 1], ours[0])
    assert reorder_templates("decoder.head.weight", channels) is channels


def test_the_presets_follow_seds_protocol() -> None:
    assert list(SED_MODELS) == ["sed-base", "sed-large"]
    for config in SED_MODELS.values():
        assert (config.image_size, config.keep_aspect, config.shortest_edge) == (768, False, 640)
        assert (config.templates, config.train_pool, config.resize_scores) == (80, 2, True)
        assert (config.decode_classes, config.logit_scale) == (None, 0.0)
        assert ModelConfig.from_dict({"encoder": config.encoder, "spatial": "depthwise9"}).spatial == config.spatial


def test_colours_are_normalised_as_sed_does() -> None:
    pytest.importorskip("open_clip", reason="needs the extra: pip install 'dpseg[clip]'")
    from dpseg.model.clip_weights import CLIP_SOURCES, colour_statistics

    for source in CLIP_SOURCES.values():
        mean, std = (255 * np.array(values) for values in colour_statistics(source))
        assert mean == pytest.approx([122.7709, 116.7460, 104.0937], abs=1e-3)
        assert std == pytest.approx([68.5005, 66.6322, 70.3232], abs=1e-3)


def test_names_of_the_benchmarks_are_split_as_sed_does() -> None:
    names = Path(__file__).resolve().parents[1] / "src" / "dpseg" / "data" / "names"
    for vocabulary in ("ade150", "pc59", "voc20", "cocostuff171"):
        for line in (names / f"{vocabulary}.txt").read_text(encoding="utf-8").splitlines():
            assert parse_class(line).synonyms == tuple(line.split(", "))


@pytest.mark.parametrize(
    ("photo", "edge"), [((500, 375), (853, 640)), ((300, 900), (640, 1920)), ((100, 500), (512, 2560))]
)
def test_photos_are_resized_in_two_steps(photo: tuple[int, int], edge: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (photo[1], photo[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    first = torch.from_numpy(np.array(image.resize(edge, Image.Resampling.BILINEAR))).permute(2, 0, 1)[None].float()
    expected = F.interpolate(first, size=(96, 96), mode="bilinear", align_corners=False)[0] / 255
    tensor = prepare(image, image_size=96, keep_aspect=False, stride=32, shortest_edge=640)
    torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=0)


def test_labels_are_those_of_resized_scores() -> None:
    logits = 6 * torch.randn(9, 12, 16, generator=torch.Generator().manual_seed(0))
    scores = F.interpolate(logits.sigmoid()[None], size=(100, 130), mode="bilinear", align_corners=False)[0]
    labels = label_map(logits, (100, 130), resize_scores=True)
    assert np.array_equal(labels, scores.argmax(dim=0).numpy())
    assert not np.array_equal(labels, label_map(logits, (100, 130)))
    background = label_map(logits, (100, 130), background=0.9, resize_scores=True)
    assert np.array_equal(background == -1, (scores.amax(dim=0) < 0.9).numpy())
    assert (label_map(logits, (100, 130), background=1.0, resize_scores=True) == -1).all()
