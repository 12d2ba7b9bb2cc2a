"""Recipes in and out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dpseg.commands.train import with_overrides
from dpseg.config import ModelConfig
from dpseg.errors import ConfigError
from dpseg.plain_values import read_yaml
from dpseg.recipe import DataSource, TrainConfig


def test_every_recipe_in_the_repo_loads() -> None:
    recipes = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
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
def test_what_does_not_fit_is_named(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        ModelConfig.from_dict(values)


def test_recipes_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the recipe"):
        read_yaml(tmp_path / "none.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [1, 2")
    with pytest.raises(ConfigError, match="is not YAML"):
        read_yaml(bad)
    bad.write_text("- 1")
    with pytest.raises(ConfigError, match="no mapping"):
        read_yaml(bad)


def test_options_change_fields_of_the_recipe() -> None:
    values = {"model": {"encoder": "tiny"}, "lr": 1.0}
    changed = with_overrides(values, ["--lr", "0.5", "--model.image_size", "64", "--hold-out", "[cat, dog]"])
    assert changed == {"model": {"encoder": "tiny", "image_size": 64}, "lr": 0.5, "hold_out": ["cat", "dog"]}
    assert values == {"model": {"encoder": "tiny"}, "lr": 1.0}
    with pytest.raises(ConfigError, match="has no value"):
        with_overrides(values, ["--lr"])
    with pytest.raises(ConfigError, match="is no option"):
        with_overrides(values, ["lr", "1"])
    with pytest.raises(ConfigError, match="holds no further fields"):
        with_overrides(values, ["--lr.more", "1"])
