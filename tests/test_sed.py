"""SED: its decoder against one pass of its own, its names and protocol; its checkpoints, and how DPSeg starts there."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from dpseg.cache import EmbeddingCache
from dpseg.commands.convert import convert_sed
from dpseg.config import ModelConfig
from dpseg.errors import WeightsError
from dpseg.model.cost_volume import cosine_volume
from dpseg.model.decoder import Decoder, EncoderShape
from dpseg.model.dpseg import DPSeg
from dpseg.model.sed import DECODER_PREFIX, SED_BASE, SED_MODELS, load_sed, reorder_templates, sed_name
from dpseg.model.warm_start import warm_start
from dpseg.prompts.text import TEMPLATES, parse_class, templates
from dpseg.segmenter import Segmenter
from support.commands import ROOT
from support.small_clip import STAGE_DIMS as SMALL_DIMS
from support.small_clip import Code, needs_clip, small_clip, small_encoder
from support.small_sed import CLIP, DECODER, checkpoint, decoder_shapes

GOLDEN = ROOT.parent / "shared" / "parity" / "sed_decoder_b.safetensors"
STAGE_DIMS = {"sed-base": (128, 256, 512), "sed-large": (192, 384, 768)}
HEAD, STEM, TEXT = f"{DECODER}head.weight", f"{CLIP}visual.trunk.stem.0.weight", f"{CLIP}text_projection"

needs_golden = pytest.mark.skipif(
    not GOLDEN.is_file(), reason="the data of SED's own pass, ../shared/parity, is not here"
)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(GOLDEN)


@pytest.mark.numeric
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
    order = [TEMPLATES.index(template) for template in templates(80)]  # of each of our templates, in SED's list
    cost = cosine_volume(golden["in.image_embedding"], golden["in.text_embeddings"][:, :, order])  # F_c
    stages = golden["in.res2"], golden["in.res3"], golden["in.res4"]
    logits, auxiliary = decoder.with_auxiliary(cost, stages, {})
    torch.testing.assert_close(logits, golden["out.logits"], atol=1e-4, rtol=0)
    for ours, stride in zip(auxiliary, (32, 16, 8), strict=True):
        torch.testing.assert_close(ours, golden[f"out.aux_s{stride}"], atol=1e-4, rtol=0)
    assert torch.equal(decoder(cost, stages, {}), logits)
    unpooled = decoder.eval()(cost, stages, {})
    assert (unpooled - golden["out.logits"]).abs().max() > 1e-3


@pytest.mark.numeric
@needs_golden
def test_the_decoder_that_ours_is_timed_against_is_seds_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import sed_decoder

    assert sed_decoder.parity(GOLDEN) < 1e-4


@needs_golden
def test_the_tests_write_the_names_that_sed_has(golden: dict[str, Tensor]) -> None:
    theirs = {name: tuple(tensor.shape) for name, tensor in golden.items() if name.startswith("weights.")}
    shapes = decoder_shapes(STAGE_DIMS["sed-base"])
    assert {f"weights.{name}": shape for name, shape in shapes.items()} == theirs


@needs_clip
@pytest.mark.parametrize("name", ["sed-base", "sed-large"])
def test_every_tensor_of_the_full_models_has_a_place(name: str) -> None:
    import open_clip

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


@needs_clip
def test_colours_are_normalised_as_sed_does() -> None:
    from dpseg.model.clip_weights import CLIP_SOURCES, colour_statistics

    for source in CLIP_SOURCES.values():
        mean, std = (255 * np.array(values) for values in colour_statistics(source))
        assert mean == pytest.approx([122.7709, 116.7460, 104.0937], abs=1e-3)
        assert std == pytest.approx([68.5005, 66.6322, 70.3232], abs=1e-3)


@pytest.mark.parametrize("vocabulary", ["ade150", "pc59", "voc20", "cocostuff171"])
def test_names_of_the_benchmarks_are_split_as_sed_does(vocabulary: str) -> None:
    names = ROOT / "src" / "dpseg" / "data" / "names" / f"{vocabulary}.txt"
    for line in names.read_text(encoding="utf-8").splitlines():
        assert parse_class(line).synonyms == tuple(line.split(", "))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[None]:
    with small_clip(tmp_path):
        yield


@pytest.fixture
def clip(small: None) -> dict[str, Tensor]:
    state: dict[str, Tensor] = small_encoder().clip.state_dict()
    return state


@pytest.fixture
def path(tmp_path: Path, clip: dict[str, Tensor]) -> Path:
    """A checkpoint of SED on the small CLIP."""
    torch.save(checkpoint(clip, SMALL_DIMS), tmp_path / "model_final.pth")
    return tmp_path / "model_final.pth"


@pytest.fixture
def converted(path: Path, tmp_path: Path) -> Path:
    """The folder that it is converted to."""
    printed = io.StringIO()
    assert convert_sed(path, tmp_path / "sed", Console(file=printed)) == 0
    assert "SED base" in printed.getvalue()
    return tmp_path / "sed"


@needs_clip
def test_a_converted_checkpoint_segments_a_picture(converted: Path, clip: dict[str, Tensor], tmp_path: Path) -> None:
    assert sorted(file.name for file in converted.iterdir()) == ["config.json", "model.safetensors"]
    segmenter = Segmenter.from_pretrained(converted, device="cpu")
    assert segmenter.model.config == SED_BASE
    state = segmenter.model.state_dict()
    assert all(torch.equal(state[f"encoder.clip.{name}"], tensor) for name, tensor in clip.items())
    segmenter.cache = EmbeddingCache(tmp_path / "cache")
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))
    result = segmenter(photo, ["person, child", "sky", "cat"], size=128)
    assert result.labels.shape == (60, 90)
    assert result.logits.shape == (3, 32, 32)
    assert np.isfinite(result.logits).all()
    assert result.logits.std() > 0
    assert not segmenter.model.reads_pictures, "pictures change nothing in a model of words"
    assert all(DPSeg(ModelConfig(encoder="tiny", fusion=f)).reads_pictures for f in ("average", "text", "visual"))


@needs_clip
def test_numpys_arrays_are_read_and_no_code_is_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load_sed(path).state_dict()
    whole = torch.load(path, weights_only=True)
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in whole["model"].items()}
    torch.save({"model": arrays, "best": np.float64(0.3), "seen": np.int64(5)}, path)
    state = load_sed(path).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())

    monkeypatch.chdir(tmp_path)
    for value in (Code(), np.array([Code()], dtype=object)):
        torch.save({"model": whole["model"], "hooks": value}, path)
        with pytest.raises(WeightsError, match="cannot be read"):
            load_sed(path)
        assert not Path("ran").exists()


@needs_clip
def test_a_tensor_that_does_not_fit_is_named(path: Path) -> None:
    whole = torch.load(path, weights_only=True)
    good, one = whole["model"], torch.zeros(1)
    only_clip = {name: tensor for name, tensor in good.items() if name.startswith(CLIP)}
    for model, message in (
        *(
            ({other: tensor for other, tensor in good.items() if other != name}, f"lacks {name};")
            for name in (HEAD, f"{DECODER}head1.bias", TEXT, STEM)
        ),
        ({**good, f"{DECODER}extra.weight": one}, f"has an unknown {DECODER}extra.weight;"),
        ({**good, "sem_seg_head.more": one, "backbone": one}, "has an unknown sem_seg_head.more and 1 more like it"),
        ({**good, HEAD: torch.zeros(1, 16, 1, 1)}, f"has {HEAD} of shape (1, 16, 1, 1) in place of (1, 16, 3, 3);"),
        (
            {**good, TEXT: torch.zeros(16, 512)},
            "(16, 512), which is neither SED's base (24 columns) nor its large (768)",
        ),
        (only_clip, "holds no tensor below"),
        ({**good, HEAD: [1.0]}, f"{HEAD} is no tensor but list"),
    ):
        torch.save({**whole, "model": model}, path)
        with pytest.raises(WeightsError) as raised:
            load_sed(path)
        assert message in str(raised.value)
        assert str(path) in str(raised.value)
        assert "\n" not in str(raised.value)


@needs_clip
def test_a_file_that_is_no_checkpoint_is_named(path: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"missing\.pth: no such file"):
        load_sed(tmp_path / "missing.pth")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="damaged"):
        load_sed(path)
    for value in ([1, 2], {"state_dict": {}}):
        torch.save(value, path)
        with pytest.raises(WeightsError, match=r'holds no "model"'):
            load_sed(path)


@needs_clip
def test_dpseg_starts_from_sed(path: Path, converted: Path) -> None:
    sed = load_sed(path).state_dict()
    model = DPSeg(ModelConfig(encoder="base", weights="random"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start = warm_start(model, converted)
    after = model.state_dict()
    assert set(start.taken) | set(start.kept) == set(after)
    assert all(torch.equal(after[name], sed[name]) for name in start.taken)
    assert all(torch.equal(after[name], before[name]) for name in start.kept)
    assert {name for name in after if name.startswith("encoder.clip.")} <= set(start.taken)
    ours = [f"decoder.stages.{stage}.{part}." for stage in range(3) for part in ("spatial", "cost")]
    assert all(name.startswith(("encoder.visual_trunk.", *ours)) == (name in start.kept) for name in after)
    theirs = ("decoder.cost_chain.", "decoder.auxiliary.", *(f"decoder.stages.{stage}.spatial." for stage in range(3)))
    assert {name for name in sed if name.startswith(theirs)} == set(start.unused)
    model.eval()


@needs_clip
def test_a_start_that_cannot_be(converted: Path, tmp_path: Path) -> None:
    fewer = DPSeg(replace(SED_BASE, weights="random", templates=10))
    assert warm_start(fewer, converted).kept == ("decoder.cost_chain.0.0.weight", "decoder.embed.weight")
    with pytest.raises(WeightsError, match=r"holds no model\.safetensors"):
        warm_start(fewer, tmp_path)
    tiny = DPSeg(ModelConfig(encoder="tiny", templates=1, widths=(8, 4), image_widths=(3,), heads=1))
    with pytest.raises(WeightsError, match="is of another encoder than 'tiny'"):
        warm_start(tiny, converted)
    (converted / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(WeightsError, match="cannot be read"):
        warm_start(tiny, converted)
