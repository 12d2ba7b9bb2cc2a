"""The decoder by blocks of classes against the definition, `Decoder.forward`: the same logits for any config and K."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dpseg.config import ModelConfig
from dpseg.model.block_decoder import BlockDecoder
from dpseg.model.cost_volume import best_classes, dual_cost_volume, visual_cost_volumes
from dpseg.model.decoder import Decoder, EncoderShape
from dpseg.model.dpseg import DPSeg
from dpseg.model.encoders import Pyramid
from dpseg.prompts.prompt_set import PromptEmbeddings

FUSIONS = ("average", "text", "visual", "cost_average", "cost_concat")
GUIDANCES = ("visual234", "visual2", "none", "upsampled", "cost_chain")
TINY = ModelConfig(encoder="tiny", templates=2, widths=(16, 12, 8, 8), image_widths=(4, 4, 4), heads=2)
LITE = ModelConfig(encoder="lite", templates=1, widths=(32, 24, 16), image_widths=(8, 8), heads=4)
BASE = ModelConfig(encoder="base")
DIMS, STRIDES = (8, 12, 16, 24), (4, 8, 16, 32)


class Case:
    """A decoder with random weights, a random image and random prompts: some without text, some without pictures."""

    def __init__(
        self,
        config: ModelConfig = TINY,
        count: int = 7,
        prompts: int = 1,
        dims: Sequence[int] = DIMS,
        strides: tuple[int, int, int, int] = STRIDES,
        size: tuple[int, int] = (64, 96),
    ) -> None:
        torch.manual_seed(count)
        self.config = config
        self.decoder = Decoder(config, EncoderShape((dims[0], dims[1], dims[2]), strides)).eval()
        with torch.no_grad():
            for weight in self.decoder.parameters():
                weight.add_(0.05 * torch.randn_like(weight))
        maps = [torch.randn(1, d, size[0] // s, size[1] // s) for d, s in zip(dims, strides, strict=True)]
        self.pyramid = Pyramid((maps[0], maps[1], maps[2]), maps[3])
        index = torch.arange(count)
        self.has_text, self.has_visual = index % 3 != 1, index % 3 != 2

        def rows(d: int, m: int, there: Tensor) -> Tensor:
            return F.normalize(torch.randn(count, m, d), dim=-1) * there[:, None, None]

        stages = tuple(rows(d, prompts, self.has_visual) for d in dims[:3])
        text, visual = rows(dims[3], config.templates, self.has_text), rows(dims[3], prompts, self.has_visual)
        self.prompts = PromptEmbeddings(text, visual, stages, self.has_text, self.has_visual)  # type: ignore[arg-type]

    @torch.no_grad()
    def plain(self) -> Tensor:
        cost = dual_cost_volume(self.pyramid.dense, self.prompts, self.config.fusion)
        visual = visual_cost_volumes(self.pyramid.stages, self.prompts, self.decoder.guided)
        logits: Tensor = self.decoder(cost, self.pyramid.stages, visual)[0]
        return logits

    @torch.no_grad()
    def blocks(self, block: int | None = None, kept_bytes: int | None = None) -> Tensor:
        parts = list(BlockDecoder(self.decoder, self.config.fusion, self.pyramid, self.prompts, block, kept_bytes))
        assert [n for classes, _ in parts for n in range(classes.start, classes.stop)] == list(
            range(len(self.has_text))
        )
        return torch.cat([logits for _, logits in parts])

    def check(self, block: int | None = None, kept_bytes: int | None = None) -> None:
        expected, found = self.plain(), self.blocks(block, kept_bytes)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
        assert expected.std() > 1e-3


@pytest.mark.parametrize("spatial", ["hybrid_dilated", "depthwise9"])
@pytest.mark.parametrize(("fusion", "guidance"), list(itertools.product(FUSIONS, GUIDANCES)))
def test_equals_the_definition_for_every_ablation_and_sed(fusion: str, guidance: str, spatial: str) -> None:
    config = replace(TINY, fusion=fusion, guidance=guidance, spatial=spatial)  # type: ignore[arg-type]
    Case(config).check(block=3)


@pytest.mark.parametrize(("count", "block"), [(1, 16), (2, 1), (16, 16), (17, 16), (33, 5), (300, 7), (300, 301)])
def test_equals_the_definition_for_any_number_of_classes_and_block(count: int, block: int) -> None:
    Case(count=count, size=(32, 64)).check(block)


@pytest.mark.parametrize("templates", [2, 16, 20])
@pytest.mark.parametrize("size", [(32, 32), (96, 160), (160, 64)])
def test_equals_the_definition_for_few_and_many_templates(templates: int, size: tuple[int, int]) -> None:
    Case(replace(TINY, templates=templates), size=size).check()


@pytest.mark.parametrize("dims", [DIMS, (8, 8, 64, 24)])
def test_equals_the_definition_with_a_picture_a_template(dims: tuple[int, ...]) -> None:
    Case(replace(TINY, templates=20), prompts=20, dims=dims).check(block=4)


def test_equals_the_definition_for_the_shapes_of_lite_and_base() -> None:
    Case(LITE, count=20, dims=(24, 40, 112, 64), strides=(4, 8, 16, 16), size=(64, 96)).check()
    Case(BASE, count=5, dims=(128, 256, 512, 640), size=(64, 64)).check(block=2)


def test_equals_the_definition_where_no_class_or_no_class_of_a_block_has_pictures() -> None:
    case = Case(count=8)
    case.has_visual[:4] = False
    case.prompts.stages[0][:4], case.prompts.stages[1][:4], case.prompts.stages[2][:4] = 0, 0, 0
    case.prompts.visual[:4] = 0
    case.check(block=4)
    case.check(block=3)
    case.has_visual[:] = False
    for tensor in (case.prompts.visual, *case.prompts.stages):
        tensor.zero_()
    case.check(block=3)


def test_equals_the_definition_on_maps_that_are_no_multiples_of_each_other() -> None:
    for guidance in GUIDANCES:
        case = Case(replace(TINY, guidance=guidance))  # type: ignore[arg-type]
        stages = tuple(stage[..., :-1] for stage in case.pyramid.stages)
        case.pyramid = replace(case.pyramid, stages=stages)  # type: ignore[arg-type]
        case.check(block=4)


@pytest.mark.parametrize("classes", [0, 1, 3, 6, 10, 11])
@pytest.mark.parametrize("stage", range(3))
def test_what_is_not_kept_is_computed_again(stage: int, classes: int) -> None:
    bytes_a_class = (2 * 3 * 16 * 4, 4 * 6 * 12 * 4, 8 * 12 * 8 * 4)[stage]  # of its input
    Case(count=11).check(block=3, kept_bytes=classes * bytes_a_class)


def test_the_best_classes_are_those_of_the_whole_cost_volume() -> None:
    case = Case(count=600, size=(32, 64))
    for fusion in FUSIONS:
        cost = dual_cost_volume(case.pyramid.dense, case.prompts, fusion)  # type: ignore[arg-type]
        expected = cost.mean(dim=2).amax(dim=(2, 3))[0].topk(20).indices
        assert best_classes(case.pyramid.dense, case.prompts, fusion, 20).tolist() == expected.tolist()  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [None, 5])
@pytest.mark.parametrize("scales", [(), (0.5,)])
def test_the_model_decodes_by_blocks_without_gradients(limit: int | None, scales: tuple[float, ...]) -> None:
    config = replace(TINY, image_size=64, logit_scale=9.0, decode_classes=limit, mirrored_scales=scales)
    torch.manual_seed(0)
    model = DPSeg(config).eval()
    torch.nn.init.normal_(model.decoder.head.weight)
    sets = [Case(config, count=20).prompts, Case(config, count=20).prompts.map(lambda t: t.flip(0))]
    batched = PromptEmbeddings(
        text=torch.stack([one.text for one in sets]),
        visual=torch.stack([one.visual for one in sets]),
        stages=tuple(torch.stack([one.stages[j] for one in sets]) for j in range(3)),  # type: ignore[arg-type]
        has_text=torch.stack([one.has_text for one in sets]),
        has_visual=torch.stack([one.has_visual for one in sets]),
    )
    with torch.no_grad():
        pyramid = model.encode(torch.rand(2, 3, 64, 96))
        for prompts in (sets[0], batched):
            expected = model.decode_plainly(pyramid, prompts)
            torch.testing.assert_close(model.decode(pyramid, prompts), expected, atol=1e-4, rtol=1e-4)
    with torch.enable_grad():
        assert model.decode(pyramid, sets[0]).requires_grad


def test_bfloat16_weights_label_nearly_every_position_alike() -> None:
    case = Case(replace(TINY, templates=20), count=12)
    labels = case.blocks().argmax(dim=0)
    margin = case.blocks().topk(2, dim=0).values.diff(dim=0)[0].abs()
    case.decoder.bfloat16()
    logits = case.blocks(block=5)
    assert logits.dtype == torch.float32
    clear = margin > margin.mean() / 4
    assert clear.float().mean() > 0.5
    assert (logits.argmax(dim=0) == labels)[clear].float().mean() > 0.999
