"""Early rejection: its options; who survives, by a plain reference; what is given up; and what stays exact."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dpseg.cli import run
from dpseg.config import ModelConfig, RefineConfig
from dpseg.errors import ConfigError
from dpseg.model.block_decoder import BlockDecoder
from dpseg.model.class_logits import UNDECODED
from dpseg.model.cost_volume import dual_cost_volume, visual_cost_volumes
from dpseg.model.dpseg import DPSeg
from dpseg.model.encoders import Pyramid
from dpseg.model.rejection import Survivors
from dpseg.pretrained import load_pretrained
from dpseg.prompts.prompt_set import PromptEmbeddings
from dpseg.rejection import Rejection, rejection_of
from dpseg.segmenter import Segmenter
from support.labelled_set import write_set
from support.random_prompts import prompts_for
from support.tiny import decoder_config

TINY = decoder_config(image_size=64)
HEADS = replace(TINY, auxiliary_heads=True)
COSINES = replace(TINY, logit_scale=9.0)
COUNT = 30


def build(config: ModelConfig = HEADS, *rejection: int | None) -> DPSeg:
    """Random weights; the later heads look at means of 3 x 3 positions, so that fewer classes lead somewhere."""
    torch.manual_seed(2)
    model = DPSeg(replace(config, rejection=Rejection(*rejection))).eval()
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


def inputs(model: DPSeg, count: int = COUNT) -> tuple[Pyramid, PromptEmbeddings]:
    """A photo, encoded, and prompts: every third class has text only, every third pictures only."""
    images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.encode(images), prompts_for(model, count)


def decoded_classes(logits: Tensor) -> list[int]:
    """The classes of (K, h, w) that were not given up; the others are so everywhere, with the score 0."""
    decoded = (logits != UNDECODED).all(dim=(1, 2))
    assert (logits[~decoded] == UNDECODED).all()
    assert not logits[~decoded].sigmoid().any()
    return decoded.nonzero()[:, 0].tolist()


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


@pytest.mark.parametrize("top", [None, 1, 2, 5])
@pytest.mark.parametrize("limit", [1, 7])
@pytest.mark.parametrize("seed", range(3))
def test_survivors_are_those_of_loops(limit: int, top: int | None, seed: int) -> None:
    guesses = torch.randn(40, 3, 5, generator=torch.Generator().manual_seed(seed))
    for block in (1, 6, 40):
        survivors = Survivors(Rejection(limit, top))
        for classes in torch.arange(40).split(block):
            survivors.add(classes, guesses[classes])
        assert survivors.result().tolist() == chosen_plainly(guesses, Rejection(limit, top))


@pytest.mark.numeric
@pytest.mark.parametrize("rejection", [(12, None), (12, 2), (20, 3), (1, 1), (29, 2)])
@torch.no_grad()
def test_stages_reject_as_with_whole_tensors(rejection: tuple[int, int | None]) -> None:
    model = build(HEADS, *rejection)
    pyramid, prompts = inputs(model)
    left, logits = decoded_plainly(model, pyramid, prompts)
    assert 1 <= len(left) <= rejection[0]
    for block, kept_bytes in itertools.product((1, 4, 64), (0, 30_000, None)):
        decoder = BlockDecoder(
            model.decoder, "average", pyramid, prompts, block, kept_bytes, rejection=model.config.rejection
        )
        found = dict[int, Tensor]()
        for classes, some in decoder:
            found.update(zip(torch.arange(COUNT)[classes].tolist(), some, strict=True))
        assert sorted(found) == left == decoder.prepare().tolist()
        torch.testing.assert_close(torch.stack([found[k] for k in left]), logits, atol=1e-4, rtol=1e-4)
    if rejection == (20, 3):  # later stages give up more
        guesses = model.decode_with_auxiliary(pyramid, prompts)[1][0][0]
        assert set(left) < set(chosen_plainly(guesses, model.config.rejection))


@pytest.mark.parametrize("config", [HEADS, COSINES, replace(HEADS, mirrored_scales=(0.5,))])
@torch.no_grad()
def test_a_short_list_is_decoded_whole_to_the_bit(config: ModelConfig) -> None:
    model = build(config)
    pyramid, prompts = inputs(model)
    expected = model.decode(pyramid, prompts)
    for rejection in ((COUNT, 1), (COUNT + 5, None)):
        assert torch.equal(with_rejection(model, *rejection).decode(pyramid, prompts), expected)
    assert not torch.equal(with_rejection(model, COUNT - 1, 1).decode(pyramid, prompts), expected)


@pytest.mark.parametrize("scales", [(), (0.5,)])
@torch.no_grad()
def test_given_up_classes_are_undecoded_and_views_agree_on_them(scales: tuple[float, ...]) -> None:
    model = build(replace(HEADS, mirrored_scales=scales), 10, 2)
    pyramid, prompts = inputs(model)
    decoded = decoded_classes(model.decode(pyramid, prompts)[0])
    assert 1 <= len(decoded) <= 10
    assert decoded == decoded_plainly(model, pyramid, prompts)[0]
    assert set(np.unique(model.decode_photo(pyramid, prompts, (64, 96)).labels())) <= set(decoded)


@pytest.mark.parametrize("winner", [0, 17, COUNT - 1])
@pytest.mark.parametrize("rejection", [(1, 1), (3, 2), (2, None)])
@torch.no_grad()
def test_a_class_that_leads_everywhere_is_never_given_up(winner: int, rejection: tuple[int, int | None]) -> None:
    model = build(TINY, *rejection)
    pyramid, prompts = inputs(model)
    mean = torch.nn.functional.normalize(pyramid.dense, dim=1).mean(dim=(0, 2, 3))
    prompts.text[winner] = prompts.visual[winner] = torch.nn.functional.normalize(mean, dim=0)
    prompts.has_text[winner] = prompts.has_visual[winner] = True
    cosines = dual_cost_volume(pyramid.dense, prompts, "average").mean(dim=2)[0]
    assert (cosines.argmax(dim=0) == winner).all()
    assert model.decode(pyramid, prompts)[0, winner].min() > UNDECODED


@torch.no_grad()
def test_without_heads_the_cosines_decide_before_the_decoder() -> None:
    model, plain = build(replace(COSINES, decode_classes=9)), build(COSINES)
    pyramid, prompts = inputs(model)
    assert torch.equal(with_rejection(plain, 9).decode(pyramid, prompts), model.decode(pyramid, prompts))
    logits = with_rejection(plain, 9, 2).decode(pyramid, prompts)[0]
    assert plain.baseline is not None
    cost = dual_cost_volume(pyramid.dense, prompts, "average")
    left = chosen_plainly(plain.baseline(cost, prompts, cost.shape[-2:])[0], Rejection(9, 2))
    assert decoded_classes(logits) == left
    alone = with_rejection(plain).decode(pyramid, prompts.map(lambda t: t[left]))[0]
    assert torch.equal(logits[left], alone)


@pytest.mark.parametrize("config", [HEADS, COSINES])
@torch.no_grad()
def test_inference_2_decodes_what_inference_1_did_not_give_up(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, size = build(config, 8, 3), (64, 96)
    pyramid, prompts = inputs(model)
    changed = prompts.map(lambda t: t.flip(0))
    first = model.decode_photo(pyramid, prompts, size)
    left = first.kept
    assert left is not None
    assert 1 <= len(left) <= 8
    second = model.decode_photo(pyramid, changed, size, None, first)
    assert second.kept is not None
    assert second.kept.tolist() == left.tolist()
    spread, kept = second.spread(COUNT)
    assert kept is None
    assert decoded_classes(spread) == left.tolist()
    with_rejection(model)
    alone = model.decode(pyramid, changed.map(lambda t: t[left]))[0]
    assert torch.equal(second.logits, alone)
    assert torch.equal(spread[left], alone)
    exact = model.decode_photo(pyramid, changed, size, None, model.decode_photo(pyramid, prompts, size))
    assert torch.equal(exact.logits, model.decode(pyramid, changed)[0])  # without rejection, a whole second decoding

    monkeypatch.setattr("dpseg.model.class_logits.ALL_CLASSES", 20)  # of very many, those that were kept
    with_rejection(model, 25)
    first = model.decode_photo(pyramid, prompts, size)
    assert first.kept is not None
    second = model.decode_photo(pyramid, prompts, size, None, first)
    assert second.kept is not None
    assert set(second.leaders.unique().tolist()) <= set(first.kept.tolist())


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor | None, int]]:
    """Collects of each decoding among which classes it was, and how many it decoded."""
    noted = []
    original: Callable[..., Any] = DPSeg.decode_blocks

    def decode(self: DPSeg, pyramid: Pyramid, prompts: PromptEmbeddings, among: Tensor | None = None) -> Any:
        blocks = list(original(self, pyramid, prompts, among))
        noted.append((among, sum(len(block.classes) for block in blocks)))
        return iter(blocks)

    monkeypatch.setattr(DPSeg, "decode_blocks", decode)
    return noted


def test_the_segmenter_hands_inference_1_on(decodings: list[tuple[Tensor | None, int]]) -> None:
    model = build(replace(COSINES, templates=1, keep_aspect=True), 3)
    segmenter = Segmenter(model, refinement=RefineConfig(min_area=0.0, min_confidence=0.0))
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    segmenter(Image.fromarray(pixels), [f"thing {number}" for number in range(12)], refine=True)
    (first, _), (second, _) = decodings
    assert first is None
    assert second is not None
    assert len(second) == 3


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((None, None), None),
        (("all", None), Rejection()),
        ((" ALL ", None), Rejection()),
        (("64", None), Rejection(64)),
        (("64", 8), Rejection(64, 8)),
        (("some", None), "is no number of classes"),
        (("-3", None), "is no number of classes"),
        (("0", None), "max-classes 0 is out of range; give 1 or more"),
        (("9", 0), "keep-top 0 is out of range; give 1 or more"),
        ((None, 4), "give max-classes too"),
        (("all", 4), "give max-classes too"),
    ],
)
def test_options_are_read_or_refused(words: tuple[Any, Any], expected: Rejection | str | None) -> None:
    if isinstance(expected, str):
        with pytest.raises(ConfigError, match=expected):
            rejection_of(*words)
    else:
        assert rejection_of(*words) == expected


def test_few_names_are_never_rejected() -> None:
    assert not Rejection().applies(10**6)
    assert [Rejection(64).applies(count) for count in (1, 64, 65)] == [False, False, True]


def test_what_is_asked_for_replaces_what_the_config_says(tmp_path: Path) -> None:
    build(replace(TINY, decode_classes=5)).save_pretrained(tmp_path)
    assert load_pretrained(tmp_path)[0].config.decode_classes == 5
    for asked in (Rejection(), Rejection(7, 2)):
        config = load_pretrained(tmp_path, rejection=asked)[0].config
        assert (config.rejection, config.decode_classes) == (asked, None)
    build(HEADS, 6, 2).save_pretrained(tmp_path / "kept")
    assert load_pretrained(tmp_path / "kept")[0].config.rejection == Rejection(6, 2)


@pytest.mark.usefixtures("workplace")
def test_predict_takes_the_options(decodings: list[tuple[Tensor | None, int]], refused: Callable[..., str]) -> None:
    build(replace(COSINES, templates=1, decode_classes=4)).save_pretrained("model")
    words = [word for number in range(9) for word in ("--text", f"thing {number}")]
    common = ["predict", "red.png", *words, "-m", "model", "--no-refine", "-f", "json", "-o"]
    for number, options in enumerate(([], ["--max-classes", "all"], ["--max-classes=6"], ["--max-classes", "9"])):
        assert run([*common, str(number), *options]) == 0
    assert [count for _, count in decodings] == [4, 9, 6, 9]
    assert run([*common, "top", "--max-classes", "6", "--keep-top", "1"]) == 0
    assert 1 <= decodings[-1][1] < 6
    assert "give max-classes too" in refused(*common, "none", "--keep-top", "1")


@pytest.mark.usefixtures("workplace")
def test_evaluate_takes_the_options(decodings: list[tuple[Tensor | None, int]]) -> None:
    build(replace(COSINES, templates=1)).save_pretrained("model")
    data = write_set(Path("data"), photos=2)
    command = ["evaluate", str(data), "--prompts", "text", "--refine", "off", "-m", "model"]
    assert run([*command, "--max-classes", "2", "--out", "figures.json"]) == 0
    assert [count for _, count in decodings] == [2, 2]  # of the three that are not background
    assert json.loads(Path("figures.json").read_text())
