"""Recipes in and out."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from dpseg.commands.train import with_overrides
from dpseg.config import ModelConfig
from dpseg.errors import ConfigError
from dpseg.plain_values import read_yaml
from dpseg.recipe import DataSource, TrainConfig
from support.commands import ROOT


def test_every_recipe_in_the_repo_loads() -> None:
    recipes = sorted((ROOT / "configs").glob("*.yaml"))
    assert recipes
    for recipe in recipes:
        config = TrainConfig.from_dict(read_yaml(recipe))
        assert config.data
        assert all(isinstance(entry, DataSource) for entry in config.data)
        assert isinstance(config.model.widths, tuple)


def test_a_dataclass_survives_plain_values() -> None:
    config = ModelConfig(encoder="tiny", widths=(8, 4), image_widths=(2,), decode_classes=3)
    assert ModelConfig.from_dict(dataclasses.asdict(config)) == config


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"fusoin": "text"}, "unknown key 'fusoin' in ModelConfig; did you mean 'fusion'"),
        ({"fusion": "sum"}, "give one of 'average'"),
        ({"templates": "many"}, "give a value of type int"),
        ({"templates": True}, "give a value of type int"),
        ({"widths": [1.5]}, "give a value of type int"),
    ],
)
def test_what_does_not_fit_is_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        ModelConfig.from_dict(values)
    with pytest.raises(ConfigError, match=re.escape("TrainConfig.scale needs 2 values, not 1")):
        TrainConfig.from_dict({"scale": [1.0]})


def test_recipes_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "bad.yaml"
    with pytest.raises(ConfigError, match="cannot read the recipe"):
        read_yaml(recipe)
    for content, message in (("a: [1, 2", "is not YAML"), ("- 1", "no mapping")):
        recipe.write_text(content)
        with pytest.raises(ConfigError, match=message):
            read_yaml(recipe)


def test_options_change_fields_of_the_recipe() -> None:
    values = {"model": {"encoder": "tiny"}, "lr": 1.0}
    changed = with_overrides(values, ["--lr", "0.5", "--model.image_size", "64", "--hold-out", "[cat, dog]"])
    assert changed == {"model": {"encoder": "tiny", "image_size": 64}, "lr": 0.5, "hold_out": ["cat", "dog"]}
    assert values == {"model": {"encoder": "tiny"}, "lr": 1.0}
    for words, message in (
        (["--lr"], "has no value"),
        (["lr", "1"], "is no option"),
        (["--lr.more", "1"], "holds no further fields"),
    ):
        with pytest.raises(ConfigError, match=message):
            with_overrides(values, words)
