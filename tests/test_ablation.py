"""The parts of an ablation: variants of a recipe, tables and verdicts of given figures, noise, what runs share."""

from __future__ import annotations

import json
import math
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dpseg.ablation.noise import Noise, NoisySource, add_noise
from dpseg.ablation.run import group, share_regions, training_seconds
from dpseg.ablation.tables import Figures, Results, judge, judge_claims, spread, to_json, to_markdown
from dpseg.ablation.variants import (
    FULL,
    TABLES,
    Measurement,
    Table,
    make_tables,
    read_strengths,
    read_tables,
    trainings,
)
from dpseg.config import ModelConfig
from dpseg.errors import ConfigError
from dpseg.evaluation.workers import ModelSource
from dpseg.prompts.prompt_set import PromptEmbeddings, PromptSet
from dpseg.recipe import DataSource, TrainConfig
from support.pictures import RED, plain

TINY = TrainConfig(ModelConfig(encoder="tiny", templates=1), (DataSource("shapes"),), prompt_mix=(0.3, 0.2, 0.5))
LITE = replace(TINY, model=replace(TINY.model, encoder="lite"))
KINDS: tuple[Any, ...] = ("text", "pictures", "both")


def tables_of(config: TrainConfig | None, names: str = "all") -> list[Table]:
    return make_tables(read_tables(names, config), config, (0.5, 1.0))


def changes(tables: list[Table]) -> dict[str, dict[str, object]]:
    return {training.name: dict(training.changes) for training in trainings(tables)}


def test_each_variant_differs_in_what_its_table_is_about() -> None:
    one_change = {
        "fusion": ("cost_concat", "cost_average"),
        "guidance": ("none", "visual2", "upsampled"),
        "templates": (10, 20, 40, 80),
    }
    wanted = {f"{field}={value}": {f"model.{field}": value} for field in one_change for value in one_change[field]}
    assert changes(tables_of(TINY)) == wanted | {
        "full": {},
        "fusion=text": {"model.fusion": "text", "prompt_mix": (0.3, 0.0, 0.7)},
        "fusion=visual": {"model.fusion": "visual", "prompt_mix": (0.0, 0.2, 0.8)},
    }
    assert [table.name for table in tables_of(TINY)] == list(TABLES)
    for table in tables_of(TINY):
        full = [variant for variant in table.variants if variant.name == table.reference]
        assert [variant.training for variant in full] == [FULL]
        assert len({variant.name for variant in table.variants}) == len(table.variants)


def test_the_full_method_is_tested_in_all_ways_and_the_others_in_one() -> None:
    wanted = trainings(tables_of(TINY))
    assert next(iter(wanted)) == FULL
    noisy = {Measurement("both", noise=strength) for strength in (0.5, 1.0)}
    assert set(wanted[FULL]) == {Measurement(kind, refine) for kind in KINDS for refine in (False, True)} | noisy
    assert all(ways == (Measurement("both"),) for training, ways in wanted.items() if training != FULL)
    names = [one.name for one in wanted[FULL]]
    assert len(set(names)) == len(names)
    assert {"both-I", "both-II", "both-I-noise0.5"} <= set(names)


def test_the_full_method_is_the_recipe_whatever_it_says() -> None:
    model = replace(TINY.model, fusion="cost_concat", guidance="cost_chain", templates=5)
    tables = {table.name: table for table in tables_of(replace(TINY, model=model))}
    assert tables["fusion"].reference == "cost_concat"
    assert "fusion=average" in changes(list(tables.values()))
    assert "fusion=cost_concat" not in changes(list(tables.values()))
    assert [variant.name for variant in tables["templates"].variants] == ["1", "5", "10", "20", "40", "80"]
    assert tables["guidance"].variants[-1].name == tables["guidance"].reference == "cost_chain"


def test_lite_has_no_templates_and_trained_models_no_trainings() -> None:
    assert read_tables("all", LITE) == ("prompts", "fusion", "guidance", "noise", "refinement")
    assert read_tables("all", None) == ("prompts", "noise", "refinement")
    assert read_tables("noise, Fusion", LITE) == ("fusion", "noise")


@pytest.mark.parametrize(
    ("names", "config", "message"),
    [
        ("templates", LITE, "'templates' is not for the encoder lite"),
        ("prompts,fusion", None, "table 'fusion' needs trainings of its own; give --config"),
        ("prompts,guidance", None, "table 'guidance' needs trainings of its own; give --config"),
        ("prompts,templates", None, "table 'templates' needs trainings of its own; give --config"),
        ("fussion", LITE, "'fussion' is unknown; did you mean 'fusion'"),
        (" , ", LITE, "no tables given"),
    ],
)
def test_tables_that_a_recipe_cannot_have_are_refused(names: str, config: TrainConfig | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_tables(names, config)


def test_strengths_are_read_strictly() -> None:
    assert read_strengths("1.0, 0.5,1") == (0.5, 1.0)
    for text in ("0", "-1", "much", "nan", "inf", ""):
        with pytest.raises(ConfigError, match="give numbers above 0"):
            read_strengths(text)


def results_of(tables: list[Table], miou: dict[str, list[float]]) -> Results:
    """Figures by TRAINING/MEASUREMENT; what is not named has those of the full method."""
    figures, seconds = {}, {}
    for training, ways in trainings(tables).items():
        seconds[training] = [100.0 + number for number in range(3)]
        for way in ways:
            values = miou.get(f"{training.name}/{way.name}", miou["full/both-I"])
            figures[training, way] = [Figures(value, value + 0.3) for value in values]
    return Results(figures, seconds)


def cells(markdown: str, label: str) -> list[str]:
    (line,) = [line for line in markdown.splitlines() if line.startswith(("| " + label, "| **" + label))]
    return [cell.strip() for cell in line.strip("| ").split("|")]


def test_means_spreads_and_paired_differences_are_those_of_numpy() -> None:
    full, text = np.array([0.30, 0.34, 0.29]), np.array([0.28, 0.31, 0.28])
    tables = tables_of(LITE, "prompts,fusion")
    results = results_of(tables, {"full/both-I": full.tolist(), "full/text-I": text.tolist()})
    markdown = to_markdown(tables[:1], results)
    gap = 100 * (text - full)
    assert cells(markdown, "words alone") == [
        "words alone",
        f"{100 * text.mean():.2f} ± {100 * text.std(ddof=1):.2f}",
        f"{100 * (text + 0.3).mean():.2f} ± {100 * text.std(ddof=1):.2f}",
        f"{gap.mean():+.2f} ± {gap.std(ddof=1):.2f}",
        "101",
    ]
    own = cells(markdown, "words and pictures")
    assert (own[0], own[3]) == ("**words and pictures** (full method)", "")
    written = json.loads(json.dumps(to_json(tables, results), allow_nan=False))
    row = written["tables"][0]["rows"][0]
    assert row["difference"]["mean"] == pytest.approx((text - full).mean())
    assert row["difference"]["error"] == pytest.approx((text - full).std(ddof=1) / math.sqrt(3))
    assert row["miou"]["seeds"] == text.tolist()
    fusion = written["tables"][1]["rows"]
    assert [one["training"] for one in fusion][:2] == ["fusion=text", "fusion=visual"]
    assert fusion[0]["changes"]["model.fusion"] == "text"


def test_every_table_has_its_section_in_order() -> None:
    tables = tables_of(TINY)
    markdown = to_markdown(tables, results_of(tables, {"full/both-I": [0.3, 0.4, 0.5]}))
    headings = re.findall(r"^## (.*)$", markdown, flags=re.MULTILINE)
    assert headings == [*(name.capitalize() for name in TABLES), "The paper's claims"]
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(lines) == sum(2 + len(table.variants) for table in tables)
    assert len({line.count("|") for line in lines}) == 1


ERROR = 1 / math.sqrt(3)
"""The standard error of three values whose distances are 1."""


@pytest.mark.parametrize(
    ("gains", "answer"),
    [
        ([0.01, 0.02, 0.03], "holds"),
        ([-0.01, -0.02, -0.03], "does not hold"),
        ([0.03, -0.03, 0.01], "cannot be told"),
        ([0.1], "cannot be told"),
        ([0.0, 0.0], "does not hold"),
        ([1.01 * ERROR + one for one in (-1, 0, 1)], "holds"),
        ([0.99 * ERROR + one for one in (-1, 0, 1)], "cannot be told"),
    ],
)
def test_a_gain_counts_from_its_standard_error_on(gains: list[float], answer: str) -> None:
    assert judge(spread(gains)) == answer


def test_claims_are_answered_one_by_one() -> None:
    tables = tables_of(LITE)
    miou = {
        "full/both-I": [0.30, 0.31, 0.32],
        "full/text-I": [0.28, 0.30, 0.30],
        "full/pictures-I": [0.20, 0.20, 0.20],
        "fusion=cost_concat/both-I": [0.29, 0.30, 0.30],
        "fusion=cost_average/both-I": [0.31, 0.33, 0.33],
        "guidance=upsampled/both-I": [0.31, 0.30, 0.32],
        "full/both-II": [0.305, 0.312, 0.33],
    }
    results = results_of(tables, miou)
    answers = [verdict.answer for verdict in judge_claims(tables, results)]
    assert answers == ["holds", "does not hold", "cannot be told", "holds"]
    lines = to_markdown(tables, results).split("## The paper's claims\n\n")[1].splitlines()
    assert len(lines) == 4
    gap = np.array([0.02, 0.01, 0.02])
    assert lines[0].startswith("- both prompts beat either alone: **holds** (words and pictures over words alone: ")
    assert f"{100 * gap.mean():+.2f} mIoU, standard error {100 * gap.std(ddof=1) / math.sqrt(3):.2f}" in lines[0]
    assert "cost volumes of T and of V, averaged: -1.33 mIoU" in lines[1]


def test_what_was_not_measured_is_not_answered() -> None:
    tables = tables_of(LITE, "refinement")
    results = results_of(tables, {"full/both-I": [0.3, 0.4, 0.5]})
    answers = [verdict.answer for verdict in judge_claims(tables, results)]
    assert answers == ["not measured", "not measured", "not measured", "does not hold"]
    assert "- both prompts beat either alone: **not measured** (table prompts)" in to_markdown(tables, results)


def test_one_seed_has_no_spread() -> None:
    figures = {(FULL, Measurement(kind)): [Figures(0.25, 0.5)] for kind in KINDS}
    markdown = to_markdown(tables_of(None, "prompts"), Results(figures, {FULL: [None]}))
    assert "±" not in markdown
    assert cells(markdown, "words alone") == ["words alone", "25.00", "50.00", "+0.00", "-"]
    assert "**cannot be told** (words and pictures over words alone: +0.00 mIoU, one seed" in markdown


@pytest.fixture(scope="module")
def prompts() -> PromptSet:
    """Twenty classes, all with words, the first one without pictures."""
    random = torch.Generator().manual_seed(5)
    sizes = (2000, 1000, 1500, 3000)  # of V and GAP(V_j)
    rows = [F.normalize(torch.randn(20, 1, size, generator=random), dim=-1) for size in sizes]
    for row in rows:
        row[0] = 0
    has_text, has_visual = torch.ones(2, 20, dtype=torch.bool)
    has_visual[0] = False
    text = F.normalize(torch.randn(20, 3, sizes[0], generator=random), dim=-1)
    embeddings = PromptEmbeddings(text, rows[0], (rows[1], rows[2], rows[3]), has_text, has_visual)
    return PromptSet(tuple(f"class {number}" for number in range(20)), embeddings, "an encoder")


Rows = np.ndarray[tuple[int, int], np.dtype[np.float64]]


def visual(prompts: PromptSet) -> list[Rows]:
    """V and GAP(V_j) of the classes with pictures, each (19, D)."""
    e = prompts.embeddings
    return [rows[1:, 0].double().numpy() for rows in (e.visual, *e.stages)]


def across(rows: Rows, before: Rows) -> Rows:
    """The part of rows that is at right angles to what they were."""
    return rows - before * (rows * before).sum(axis=1, keepdims=True)


@pytest.mark.parametrize("strength", [0.3, 1.0, 2.5])
def test_the_angle_is_that_of_noise_of_so_much_length(prompts: PromptSet, strength: float) -> None:
    noisy = add_noise(prompts, Noise(strength, seed=1))
    for before, after in zip(visual(prompts), visual(noisy), strict=True):
        cosines = (before * after).sum(axis=1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
        assert cosines == pytest.approx(np.full(19, math.cos(math.atan(strength))), abs=0.1)
        assert cosines.mean() == pytest.approx(math.cos(math.atan(strength)), abs=0.02)
        assert np.linalg.norm(after, axis=1) == pytest.approx(np.ones(19), abs=1e-5)
        moved = after / cosines[:, None] - before  # what was added, as far as it is across: independent of each other
        moved /= np.linalg.norm(moved, axis=1, keepdims=True)
        assert np.abs(moved @ moved.T - np.eye(19)).max() < 0.15


def test_noise_leaves_words_lengths_and_classes_without_pictures(prompts: PromptSet) -> None:
    noisy = add_noise(prompts, Noise(1.0, seed=1))
    before, after = prompts.embeddings, noisy.embeddings
    assert torch.equal(after.text, before.text)
    assert torch.equal(after.has_visual, before.has_visual)
    for rows in (after.visual, *after.stages):
        assert not rows[0].any()
        assert torch.isfinite(rows).all()
    assert (noisy.names, noisy.encoder) == (prompts.names, prompts.encoder)
    longer = prompts.with_embeddings(before.map(lambda tensor: tensor * 3 if tensor.is_floating_point() else tensor))
    for one, three in zip(visual(add_noise(prompts, Noise(0.7))), visual(add_noise(longer, Noise(0.7))), strict=True):
        np.testing.assert_allclose(three, 3 * one, rtol=0, atol=1e-5)


def test_the_seed_decides_and_all_strengths_share_its_noise(prompts: PromptSet) -> None:
    assert add_noise(prompts, Noise(0.0, seed=1)) is prompts
    weak, same, strong, other = (
        visual(add_noise(prompts, Noise(strength, seed))) for strength, seed in ((0.5, 1), (0.5, 1), (1.0, 1), (0.5, 2))
    )
    for before, a, b, c, d in zip(visual(prompts), weak, same, strong, other, strict=True):
        assert np.array_equal(a, b)
        parts = [across(rows, before) for rows in (a, c, d)]
        lengths = [np.linalg.norm(part, axis=1, keepdims=True) for part in parts]
        assert (lengths[0] < lengths[1]).all()
        first, stronger, others = (part / length for part, length in zip(parts, lengths, strict=True))
        assert (first * stronger).sum(axis=1) == pytest.approx(np.ones(19), abs=1e-4)
        assert np.abs((first * others).sum(axis=1)).max() < 0.2


def test_a_process_that_loads_the_model_has_the_noise(model: str) -> None:
    pictures = {"red": plain(RED, 40)}
    quiet = ModelSource(model).load().prompts(["red", "blue"], pictures)
    source = pickle.loads(pickle.dumps(NoisySource(model, noise=Noise(1.0, 3))))
    noisy = source.load().prompts(["red", "blue"], pictures)
    expected = add_noise(quiet, Noise(1.0, 3))
    assert torch.equal(noisy.embeddings.visual, expected.embeddings.visual)
    assert all(torch.equal(a, b) for a, b in zip(noisy.embeddings.stages, expected.embeddings.stages, strict=True))
    assert not torch.equal(noisy.embeddings.visual, quiet.embeddings.visual)
    assert torch.equal(noisy.embeddings.text, quiet.embeddings.text)


def test_measurements_are_gathered_without_a_repetition() -> None:
    noisy = [Measurement("both", noise=0.5), Measurement("text", noise=0.5)]
    wanted = [*(Measurement(kind) for kind in KINDS), Measurement("both", refine=True), *noisy]
    gathered = group(wanted)
    names = [
        Measurement(kind, refine, noise).name for noise, kinds, both in gathered for kind in kinds for refine in both
    ]
    assert sorted(names) == sorted(one.name for one in wanted)
    assert len(gathered) == 3


def test_seconds_are_of_all_steps(tmp_path: Path) -> None:
    assert training_seconds(tmp_path, 10) is None
    (tmp_path / "metrics.csv").write_text("step,loss,seconds_a_step\n4,1.0,0.5\n8,0.9,1.5\n")
    assert training_seconds(tmp_path, 8) == pytest.approx(4 * 0.5 + 4 * 1.5)
    assert training_seconds(tmp_path, 10) == pytest.approx(10.0)


def test_regions_are_shared_but_never_replaced(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "regions.safetensors").write_text(name)
    share_regions(tmp_path / "new", [tmp_path / "none", tmp_path / "two", tmp_path / "one"])
    assert (tmp_path / "new" / "regions.safetensors").read_text() == "two"
    share_regions(tmp_path / "one", [tmp_path / "two"])
    assert (tmp_path / "one" / "regions.safetensors").read_text() == "one"
    share_regions(tmp_path / "first", [tmp_path / "none"])
    assert not (tmp_path / "first" / "regions.safetensors").exists()
