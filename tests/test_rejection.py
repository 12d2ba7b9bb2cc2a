"""Early rejection: who survives, by a plain reference; what is given up; and what stays exact."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dpseg.config import ModelConfig, RefineConfig
from dpseg.model.block_decoder import BlockDecoder
from dpseg.model.class_logits import UNDECODED
from dpseg.model.cost_volume import dual_cost_volume, visual_cost_volumes
from dpseg.model.dpseg import DPSeg
from dpseg.model.encoders import Pyramid
from dpseg.model.rejection import Survivors
from dpseg.prompts.prompt_set import PromptEmbeddings
from dpseg.rejection import Rejection
from dpseg.segmenter import Segmenter

TINY = ModelConfig(encoder="tiny", image_size=64, templates=2, widths=(16, 12, 8, 8), image_widths=(4, 4, 4), heads=2)
HEADS = replace(TINY, auxiliary_heads=True)
COUNT = 30


def build(config: ModelConfig = HEADS) -> DPSeg:
    """Random weights; the later heads look at means of 3 x 3 positions, so that fewer classes lead somewhere."""
    torch.manual_seed(2)
    model = DPSeg(config).eval()
    with torch.no_grad():
        for weight in model.decoder.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
        for head in [*model.decoder.auxiliary][1:]:
            assert isinstance(head, torch.nn.Conv2d)
            head.weight.copy_(head.weight.mean(dim=(2, 3), keepdim=True).expand_as(head.weight))
    return model


def with_rejection(model: DPSeg, *values: int | None) -> DPSeg:
    model.config = replace(model.config, rejection=Rejection(*values))
    return model


def some_prompts(model: DPSeg, count: int = COUNT) -> PromptEmbeddings:
    """Every third class has text only, every third pictures only."""
    random = torch.Generator().manual_seed(count)
    index = torch.arange(count)
    has_text, has_visual = index % 3 != 1, index % 3 != 2

    def rows(size: int, keep: Tensor, rows: int) -> Tensor:
        values = torch.randn(count, rows, size, generator=random)
        return torch.nn.functional.normalize(values, dim=-1) * keep[:, None, None]

    s2, s3, s4 = (rows(size, has_visual, 1) for size in model.encoder.stage_dims)
    size = model.encoder.embed_dim
    return PromptEmbeddings(
        rows(size, has_text, model.config.templates), rows(size, has_visual, 1), (s2, s3, s4), has_text, has_visual
    )


def photo(model: DPSeg, seed: int = 1) -> Pyramid:
    return model.encode(torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(seed)))


def chosen_plainly(guesses: Tensor, rejection: Rejection) -> list[int]:
    """Who survives, of guesses (k, h, w), by loops."""
    values, limit, top = guesses.flatten(1).numpy(), rejection.max_classes, rejection.keep_top
    assert limit is not None
    classes = range(len(values))
    if top is None:
        return sorted(sorted(classes, key=lambda k: -values[k].max())[:limit])
    places = [[0] * top for _ in classes]  # of a class: at how many positions it is first, second, ...
    for column in values.T:
        for place, k in enumerate(sorted(classes, key=lambda k: -column[k])[:top]):
            places[k][place] += 1
    likely = [k for k in classes if any(places[k])]
    return sorted(sorted(likely, key=lambda k: places[k], reverse=True)[:limit])


def decoded_plainly(model: DPSeg, pyramid: Pyramid, prompts: PromptEmbeddings) -> tuple[list[int], Tensor]:
    """Decodes with whole tensors and gives up classes before each stage: those left, and their logits."""
    decoder, rejection = model.decoder, model.config.rejection
    cost = dual_cost_volume(pyramid.dense, prompts, model.config.fusion)
    visual = visual_cost_volumes(pyramid.stages, prompts, decoder.guided)
    x, left = decoder._embeddings(cost), torch.arange(cost.shape[1])
    guidance = decoder._guidance(cost, pyramid.stages, visual)
    for j, stage, head, guide in zip(decoder.order, decoder.stages, decoder.auxiliary, guidance, strict=True):
        rows = chosen_plainly(head(x[0])[:, 0], rejection)
        x, left = x[:, rows], left[rows]
        x = stage(x, pyramid.stages[j - 2], None if guide is None else guide[:, left])
    return left.tolist(), decoder.head(x[0])[:, 0]


def test_survivors_of_a_small_example() -> None:
    #                              positions: 0  1  2  3
    guesses = torch.tensor([[9, 9, 1, 1], [8, 1, 9, 2], [1, 8, 8, 8], [7, 7, 7, 9], [0, 0, 0, 0], [6, 6, 6, 7.5]])
    guesses = guesses.view(6, 2, 2)

    def survivors(limit: int, top: int | None, block: int = 6) -> list[int]:
        kept = Survivors(Rejection(limit, top))
        for classes in torch.arange(6).split(block):
            kept.add(classes, guesses[classes])
        return kept.result().tolist()

    for block in (1, 4, 6):
        assert survivors(6, 1, block) == [0, 1, 3]  # who leads somewhere
        assert survivors(6, 2, block) == [0, 1, 2, 3]
        assert survivors(6, 3, block) == [0, 1, 2, 3, 5]
        assert survivors(6, 6, block) == [0, 1, 2, 3, 4, 5]
        assert survivors(1, 3, block) == [0]  # it leads twice
        assert survivors(2, 3, block) == [0, 1]  # of 1 and 3, which lead once, 1 is second once more
        assert survivors(3, 3, block) == [0, 1, 3]
        assert survivors(5, None, block) == [0, 1, 2, 3, 5]  # by the best maximum: 9, 9, 8, 9, 0, 7.5
        assert survivors(4, None, block) == [0, 1, 2, 3]


@pytest.mark.parametrize("top", [None, 1, 2, 5])
@pytest.mark.parametrize("limit", [1, 7])
@pytest.mark.parametrize("seed", range(3))
def test_survivors_are_those_of_loops(limit: int, top: int | None, seed: int) -> None:
    guesses = torch.randn(40, 3, 5, generator=torch.Generator().manual_seed(seed))
    survivors = Survivors(Rejection(limit, top))
    for classes in torch.arange(40).split(6):
        survivors.add(classes, guesses[classes])
    assert survivors.result().tolist() == chosen_plainly(guesses, Rejection(limit, top))


@pytest.mark.parametrize("kept_bytes", [0, 30_000, None])
@pytest.mark.parametrize("block", [1, 4, 64])
@pytest.mark.parametrize("rejection", [(12, None), (12, 2), (20, 3), (1, 1), (29, 2)])
@torch.no_grad()
def test_stages_reject_as_with_whole_tensors(
    rejection: tuple[int, int | None], block: int, kept_bytes: int | None
) -> None:
    model = with_rejection(build(), *rejection)
    pyramid, prompts = photo(model), some_prompts(model)
    left, logits = decoded_plainly(model, pyramid, prompts)
    decoder = BlockDecoder(
        model.decoder, "average", pyramid, prompts, block, kept_bytes, rejection=model.config.rejection
    )
    found = dict[int, Tensor]()
    for classes, some in decoder:
        found.update(zip(torch.arange(COUNT)[classes].tolist(), some, strict=True))
    assert sorted(found) == left == decoder.prepare().tolist()
    assert 1 <= len(left) <= rejection[0]
    for k, expected in zip(left, logits, strict=True):
        torch.testing.assert_close(found[k], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_later_stages_give_up_more() -> None:
    model = with_rejection(build(), 20, 2)
    pyramid, prompts = photo(model), some_prompts(model)
    guesses = model.decode_with_auxiliary(pyramid, prompts)[1][0][0]
    first = chosen_plainly(guesses, model.config.rejection)
    left = BlockDecoder(model.decoder, "average", pyramid, prompts, rejection=model.config.rejection).prepare().tolist()
    assert set(left) < set(first)


@pytest.mark.parametrize("config", [HEADS, replace(TINY, logit_scale=9.0), replace(HEADS, mirrored_scales=(0.5,))])
@torch.no_grad()
def test_a_short_list_is_decoded_whole_to_the_bit(config: ModelConfig) -> None:
    model = build(config)
    pyramid, prompts = photo(model), some_prompts(model)
    expected = model.decode(pyramid, prompts)
    for rejection in ((COUNT, 1), (COUNT + 5, None)):
        assert torch.equal(with_rejection(model, *rejection).decode(pyramid, prompts), expected)
    assert not torch.equal(with_rejection(model, COUNT - 1, 1).decode(pyramid, prompts), expected)


@pytest.mark.parametrize("scales", [(), (0.5,)])
@torch.no_grad()
def test_given_up_classes_are_undecoded_and_views_agree_on_them(scales: tuple[float, ...]) -> None:
    model = with_rejection(build(replace(HEADS, mirrored_scales=scales)), 10, 2)
    pyramid, prompts = photo(model), some_prompts(model)
    logits = model.decode(pyramid, prompts)[0]
    decoded = (logits != UNDECODED).all(dim=(1, 2))
    assert 1 <= decoded.sum() <= 10
    assert (logits[~decoded] == UNDECODED).all()
    assert (logits[~decoded].sigmoid() == 0).all()
    assert decoded.nonzero()[:, 0].tolist() == decoded_plainly(model, pyramid, prompts)[0]
    found = model.decode_photo(pyramid, prompts, (64, 96))
    assert set(np.unique(found.labels())) <= set(decoded.nonzero()[:, 0].tolist())


@pytest.mark.parametrize("winner", [0, 17, COUNT - 1])
@pytest.mark.parametrize("rejection", [(1, 1), (3, 2), (2, None)])
@torch.no_grad()
def test_a_class_that_leads_everywhere_is_never_given_up(winner: int, rejection: tuple[int, int | None]) -> None:
    model = with_rejection(build(TINY), *rejection)
    model.baseline = None
    pyramid, prompts = photo(model), some_prompts(model)
    mean = torch.nn.functional.normalize(pyramid.dense, dim=1).mean(dim=(0, 2, 3))
    prompts.text[winner] = prompts.visual[winner] = torch.nn.functional.normalize(mean, dim=0)
    prompts.has_text[winner] = prompts.has_visual[winner] = True
    cosines = dual_cost_volume(pyramid.dense, prompts, "average").mean(dim=2)[0]
    assert (cosines.argmax(dim=0) == winner).all()
    assert model.decode(pyramid, prompts)[0, winner].min() > UNDECODED


@torch.no_grad()
def test_without_heads_the_cosines_decide_before_the_decoder() -> None:
    config = replace(TINY, logit_scale=9.0)
    model, plain = build(replace(config, decode_classes=9)), build(config)
    pyramid, prompts = photo(model), some_prompts(model)
    assert torch.equal(with_rejection(plain, 9).decode(pyramid, prompts), model.decode(pyramid, prompts))
    logits = with_rejection(plain, 9, 2).decode(pyramid, prompts)[0]
    assert plain.baseline is not None
    cost = dual_cost_volume(pyramid.dense, prompts, "average")
    left = chosen_plainly(plain.baseline(cost, prompts, cost.shape[-2:])[0], Rejection(9, 2))
    assert (logits != UNDECODED).all(dim=(1, 2)).nonzero()[:, 0].tolist() == left
    alone = with_rejection(plain).decode(pyramid, prompts.map(lambda t: t[left]))[0]
    assert torch.equal(logits[left], alone)


@pytest.mark.parametrize("config", [HEADS, replace(TINY, logit_scale=9.0)])
@torch.no_grad()
def test_inference_2_decodes_what_inference_1_did_not_give_up(config: ModelConfig) -> None:
    model = build(config)
    pyramid, prompts = photo(model), some_prompts(model)
    changed = prompts.map(lambda t: t.flip(0))
    first = with_rejection(model, 8, 3).decode_photo(pyramid, prompts, (64, 96))
    left = first.kept
    assert left is not None
    assert 1 <= len(left) <= 8
    second = model.decode_photo(pyramid, changed, (64, 96), None, first)
    assert second.kept is not None
    assert second.kept.tolist() == left.tolist()
    alone = with_rejection(model).decode(pyramid, changed.map(lambda t: t[left]))[0]
    assert torch.equal(second.logits, alone)
    spread, kept = second.spread(len(prompts.text))
    assert kept is None
    assert torch.equal(spread[left], alone)
    assert (spread == UNDECODED).all(dim=(1, 2)).sum() == len(prompts.text) - len(left)
    exact = model.decode_photo(pyramid, changed, (64, 96), None, model.decode_photo(pyramid, prompts, (64, 96)))
    assert torch.equal(exact.logits, model.decode(pyramid, changed)[0])  # without rejection, a whole second decoding


@torch.no_grad()
def test_of_very_many_classes_inference_2_decodes_those_that_were_kept() -> None:
    model = with_rejection(build(replace(TINY, logit_scale=9.0)), 1500)
    prompts, pyramid = some_prompts(model, 1600), photo(model)
    first = model.decode_photo(pyramid, prompts, (32, 32))
    assert first.kept is not None
    second = model.decode_photo(pyramid, prompts, (32, 32), None, first)
    assert second.kept is not None
    assert set(second.leaders.unique().tolist()) <= set(first.kept.tolist())


def test_the_segmenter_hands_inference_1_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_rejection(build(replace(TINY, templates=1, logit_scale=9.0, keep_aspect=True)), 3)
    segmenter = Segmenter(model, refinement=RefineConfig(min_area=0.0, min_confidence=0.0))
    given: list[Any] = []
    original = DPSeg.decode_blocks

    def noted(self: DPSeg, pyramid: Pyramid, prompts: PromptEmbeddings, among: Tensor | None = None) -> Any:
        given.append(among)
        return original(self, pyramid, prompts, among)

    monkeypatch.setattr(DPSeg, "decode_blocks", noted)
    random = np.random.default_rng(0)
    names = [f"thing {number}" for number in range(12)]
    segmenter(Image.fromarray(random.integers(0, 255, (64, 64, 3), np.uint8)), names, refine=True)
    assert given[0] is None
    assert len(given) == 2
    assert len(given[1]) == 3
