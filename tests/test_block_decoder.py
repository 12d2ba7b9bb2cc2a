"""The decoder by blocks of classes against the definition, `Decoder.forward`: the same logits for any config and K."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dpseg.config import ModelConfig
from dpseg.model.block_decoder import BlockDecoder
from dpseg.model.cost_volume import best_classes, dual_cost_volume, visual_cost_volumes
from dpseg.model.decoder import Decoder, EncoderShape
from dpseg.model.encoders import Pyramid
from support.random_prompts import random_prompts
from support.tiny import decoder_config, tiny_model

pytestmark = pytest.mark.numeric

FUSIONS = ("average", "text", "visual", "cost_average", "cost_concat")
GUIDANCES = ("visual234", "visual2", "none", "upsampled", "cost_chain")
TINY = decoder_config()
DIMS = (8, 12, 16, 24)
LITE: dict[str, Any] = {
    "config": ModelConfig(encoder="lite", templates=1, widths=(32, 24, 16), image_widths=(8, 8), heads=4),
    "dims": (24, 40, 112, 64),
    "strides": (4, 8, 16, 16),
}
BASE: dict[str, Any] = {"config": ModelConfig(encoder="base"), "dims": (128, 256, 512, 640)}


class Case:
    """A decoder with random weights, a random image and random prompts: some without text, some without pictures."""

    def __init__(
        self,
        config: ModelConfig = TINY,
        count: int = 7,
        pictures: int = 1,
        dims: Sequence[int] = DIMS,
        strides: tuple[int, int, int, int] = (4, 8, 16, 32),
        size: tuple[int, int] = (64, 96),
        seed: int = 0,
    ) -> None:
        torch.manual_seed(seed)
        self.config, self.count = config, count
        self.decoder = Decoder(config, EncoderShape((dims[0], dims[1], dims[2]), strides)).eval()
        with torch.no_grad():
            for weight in self.decoder.parameters():
                weight.add_(0.05 * torch.randn_like(weight))
        maps = [torch.randn(1, d, size[0] // s, size[1] // s) for d, s in zip(dims, strides, strict=True)]
        self.pyramid = Pyramid((maps[0], maps[1], maps[2]), maps[3])
        self.prompts = random_prompts(count, dims, config.templates, pictures)

    def show_classes(self) -> None:
        """Makes the image one of the classes, side by side, so that each leads somewhere by far."""

        def shown(features: Tensor, prompts: Tensor) -> Tensor:
            width = features.shape[-1]
            columns = prompts.mean(dim=1)[torch.arange(width) * self.count // width].T
            return columns[None, :, None] + 0.3 * F.normalize(features, dim=1)

        s2, s3, s4 = map(shown, self.pyramid.stages, self.prompts.stages)
        self.pyramid = Pyramid((s2, s3, s4), shown(self.pyramid.dense, self.prompts.text + self.prompts.visual))

    @torch.no_grad()
    def plain(self) -> Tensor:
        cost = dual_cost_volume(self.pyramid.dense, self.prompts, self.config.fusion)
        visual = visual_cost_volumes(self.pyramid.stages, self.prompts, self.decoder.guided)
        logits: Tensor = self.decoder(cost, self.pyramid.stages, visual)[0]
        return logits

    @torch.no_grad()
    def blocks(self, block: int | None = None, kept_bytes: int | None = None) -> Tensor:
        parts = list(BlockDecoder(self.decoder, self.config.fusion, self.pyramid, self.prompts, block, kept_bytes))
        assert [n for classes, _ in parts for n in range(classes.start, classes.stop)] == list(range(self.count))
        return torch.cat([logits for _, logits in parts])

    def check(self, block: int | None = None, kept_bytes: int | None = None) -> None:
        expected, found = self.plain(), self.blocks(block, kept_bytes)
        finest = self.pyramid.stages[3 - len(self.decoder.stages)]
        assert found.shape == expected.shape == (self.count, *finest.shape[-2:])
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
        assert expected.std() > 1e-3


@pytest.mark.parametrize("spatial", ["hybrid_dilated", "depthwise9"])
@pytest.mark.parametrize(("fusion", "guidance"), list(itertools.product(FUSIONS, GUIDANCES)))
def test_equals_the_definition_for_every_ablation_and_sed(fusion: Any, guidance: Any, spatial: Any) -> None:
    case = Case(replace(TINY, fusion=fusion, guidance=guidance, spatial=spatial))
    case.check(block=3)
    if fusion == "average":  # of maps too that are no multiples of each other
        s2, s3, s4 = (stage[..., :-1] for stage in case.pyramid.stages)
        case.pyramid = replace(case.pyramid, stages=(s2, s3, s4))
        case.check(block=4)


@pytest.mark.parametrize(
    ("case", "block"),
    [
        *(
            ({"count": count, "size": (32, 64)}, block)
            for count, block in ((1, 16), (2, 1), (16, 16), (17, 16), (33, 5), (300, 7), (300, 301), (847, None))
        ),
        *(
            ({"config": replace(TINY, templates=templates), "size": size}, None)
            for templates in (2, 16, 20)
            for size in ((32, 32), (96, 160), (160, 64))
        ),
        *(({"config": replace(TINY, templates=20), "pictures": 20, "dims": d}, 4) for d in (DIMS, (8, 8, 64, 24))),
        ({**LITE, "count": 20}, None),
        ({**BASE, "count": 5, "size": (64, 64)}, 2),
    ],
)
def test_equals_the_definition_for_any_classes_templates_pictures_and_sizes(case: Any, block: int | None) -> None:
    Case(**case).check(block)


def test_equals_the_definition_where_no_class_or_no_class_of_a_block_has_pictures() -> None:
    case = Case(count=8)
    for without in (4, 8):
        for tensor in (case.prompts.has_visual, case.prompts.visual, *case.prompts.stages):
            tensor[:without] = 0
        case.check(block=4)
        case.check(block=3)


@pytest.mark.parametrize("classes", [0, 1, 3, 6, 10, 11])
@pytest.mark.parametrize("stage", range(3))
def test_what_is_not_kept_is_computed_again(stage: int, classes: int) -> None:
    bytes_a_class = (2 * 3 * 16 * 4, 4 * 6 * 12 * 4, 8 * 12 * 8 * 4)[stage]  # of its input
    Case(count=11).check(block=3, kept_bytes=classes * bytes_a_class)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_best_classes_are_those_of_the_whole_cost_volume(fusion: Any) -> None:
    case = Case(count=600, size=(32, 64))
    cost = dual_cost_volume(case.pyramid.dense, case.prompts, fusion)
    expected = cost.mean(dim=2).amax(dim=(2, 3))[0].topk(20).indices
    assert best_classes(case.pyramid.dense, case.prompts, fusion, 20).tolist() == expected.tolist()


@pytest.mark.parametrize("limit", [None, 5])
@pytest.mark.parametrize("scales", [(), (0.5,)])
def test_the_model_decodes_by_blocks_without_gradients(limit: int | None, scales: tuple[float, ...]) -> None:
    config = decoder_config(image_size=64, logit_scale=9.0, decode_classes=limit, mirrored_scales=scales)
    model = tiny_model(config, trained=True)
    both = random_prompts(40, DIMS, config.templates)
    one, one_each = both.map(lambda t: t[:20]), both.map(lambda t: t.unflatten(0, (2, 20)))
    with torch.no_grad():
        pyramid = model.encode(torch.rand(2, 3, 64, 96))
        for prompts in (one, one_each):
            expected = model.decode_plainly(pyramid, prompts)
            torch.testing.assert_close(model.decode(pyramid, prompts), expected, atol=1e-4, rtol=1e-4)
    with torch.enable_grad():
        assert model.decode(pyramid, one).requires_grad


@pytest.mark.parametrize("shape", [{"config": replace(TINY, templates=20)}, LITE, BASE], ids=["tiny", "lite", "base"])
def test_bfloat16_weights_round_and_do_no_more(shape: Any) -> None:
    unit = 2**-8  # the relative error of a bfloat16
    shifts, shares = [], []
    for seed in range(6):
        case = Case(**shape, count=5, seed=seed)
        case.show_classes()
        exact = case.blocks()
        case.decoder.bfloat16()
        rounded = case.blocks(block=5)
        assert rounded.dtype == torch.float32
        difference = (rounded - exact) / exact.std()
        assert 0 < difference.square().mean().sqrt() < 8 * unit
        shifts.append(difference.mean())
        margin = exact.topk(2, dim=0).values.diff(dim=0)[0].abs() / exact.std()
        clear = margin > 32 * unit
        shares.append(clear.float().mean())
        assert torch.equal(rounded.argmax(dim=0)[clear], exact.argmax(dim=0)[clear])
    assert abs(sum(shifts) / len(shifts)) < unit, "no bias"
    assert min(shares) > 0.25, "so many positions are clear"
    assert sum(shares) / len(shares) > 0.5
