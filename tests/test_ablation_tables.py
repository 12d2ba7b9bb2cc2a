"""Which variants an ablation has on which recipe, and what tables and verdicts are made of given figures."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

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
from dpseg.recipe import DataSource, TrainConfig

TINY = TrainConfig(ModelConfig(encoder="tiny", templates=1), (DataSource("shapes"),), prompt_mix=(0.3, 0.2, 0.5))
LITE = replace(TINY, model=replace(TINY.model, encoder="lite"))


def tables_of(config: TrainConfig | None, names: str = "all") -> list[Table]:
    return make_tables(read_tables(names, config), config, (0.5, 1.0))


def changes(tables: list[Table]) -> dict[str, dict[str, object]]:
    return {training.name: dict(training.changes) for training in trainings(tables)}


def test_each_variant_differs_in_what_its_table_is_about() -> None:
    assert changes(tables_of(TINY)) == {
        "full": {},
        "fusion=text": {"model.fusion": "text", "prompt_mix": (0.3, 0.0, 0.7)},
        "fusion=visual": {"model.fusion": "visual", "prompt_mix": (0.0, 0.2, 0.8)},
        "fusion=cost_concat": {"model.fusion": "cost_concat"},
        "fusion=cost_average": {"model.fusion": "cost_average"},
        "guidance=none": {"model.guidance": "none"},
        "guidance=visual2": {"model.guidance": "visual2"},
        "guidance=upsampled": {"model.guidance": "upsampled"},
        "templates=10": {"model.templates": 10},
        "templates=20": {"model.templates": 20},
        "templates=40": {"model.templates": 40},
        "templates=80": {"model.templates": 80},
    }
    assert [table.name for table in tables_of(TINY)] == list(TABLES)
    for table in tables_of(TINY):
        full = [variant for variant in table.variants if variant.name == table.reference]
        assert [variant.training for variant in full] == [FULL]
        assert len({variant.name for variant in table.variants}) == len(table.variants)


def test_the_full_method_is_tested_in_all_ways_and_the_others_in_one() -> None:
    wanted = trainings(tables_of(TINY))
    assert next(iter(wanted)) == FULL
    assert set(wanted[FULL]) == {
        *(Measurement(kind, refine) for kind in ("text", "pictures", "both") for refine in (False, True)),  # type: ignore[arg-type]
        Measurement("both", noise=0.5),
        Measurement("both", noise=1.0),
    }
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
    with pytest.raises(ConfigError, match="'templates' is not for the encoder lite"):
        read_tables("templates", LITE)
    for name in ("fusion", "guidance", "templates"):
        with pytest.raises(ConfigError, match=f"table '{name}' needs trainings of its own; give --config"):
            read_tables(f"prompts,{name}", None)
    with pytest.raises(ConfigError, match="'fussion' is unknown; did you mean 'fusion'"):
        read_tables("fussion", LITE)
    with pytest.raises(ConfigError, match="no tables given"):
        read_tables(" , ", LITE)


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
    assert own[0] == "**words and pictures** (full method)"
    assert own[3] == ""
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


@pytest.mark.parametrize(
    ("gains", "answer"),
    [
        ([0.01, 0.02, 0.03], "holds"),
        ([-0.01, -0.02, -0.03], "does not hold"),
        ([0.03, -0.03, 0.01], "cannot be told"),
        ([0.1], "cannot be told"),
        ([0.0, 0.0], "does not hold"),
    ],
)
def test_a_gain_counts_from_its_standard_error_on(gains: list[float], answer: str) -> None:
    assert judge(spread(gains)) == answer


def test_the_border_is_the_standard_error() -> None:
    error = np.std([-1.0, 0.0, 1.0], ddof=1) / math.sqrt(3)
    assert judge(spread([mean * 1.01 * error + one for mean, one in ((1, -1), (1, 0), (1, 1))])) == "holds"
    assert judge(spread([mean * 0.99 * error + one for mean, one in ((1, -1), (1, 0), (1, 1))])) == "cannot be told"


def test_claims_are_answered_one_by_one() -> None:
    tables = tables_of(LITE)
    results = results_of(
        tables,
        {
            "full/both-I": [0.30, 0.31, 0.32],
            "full/text-I": [0.28, 0.30, 0.30],
            "full/pictures-I": [0.20, 0.20, 0.20],
            "fusion=cost_concat/both-I": [0.29, 0.30, 0.30],
            "fusion=cost_average/both-I": [0.31, 0.33, 0.33],
            "guidance=upsampled/both-I": [0.31, 0.30, 0.32],
            "full/both-II": [0.305, 0.312, 0.33],
        },
    )
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
    tables = tables_of(None, "prompts")
    results = Results(
        {(FULL, Measurement(kind)): [Figures(0.25, 0.5)] for kind in ("text", "pictures", "both")},  # type: ignore[arg-type]
        {FULL: [None]},
    )
    markdown = to_markdown(tables, results)
    assert "±" not in markdown
    assert cells(markdown, "words alone") == ["words alone", "25.00", "50.00", "+0.00", "-"]
    assert "**cannot be told** (words and pictures over words alone: +0.00 mIoU, one seed" in markdown
