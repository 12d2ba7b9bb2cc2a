"""`dpseg train`: a recipe -> a model folder."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from dpseg.config import TrainConfig, read_yaml
from dpseg.errors import ConfigError


def with_overrides(values: dict[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """Returns a recipe with fields replaced from the command line.

    Args:
        values: the recipe.
        words: pairs "--field value"; dots lead into nested fields ("--model.image_size 320"), values are YAML.

    Raises:
        ConfigError: A word is no option, or an option has no value.
    """
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    if len(words) % 2:
        raise ConfigError(f"option {words[-1]!r} has no value; write it as --field value")
    for option, text in zip(words[::2], words[1::2], strict=True):
        if not option.startswith("--"):
            raise ConfigError(f"{option!r} is no option; write changes to the recipe as --field value")
        *path, field = option[2:].replace("-", "_").split(".")
        place = result
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{option} leads into {part!r}, which holds no further fields")
        place[field] = yaml.safe_load(text)
    return result


def train(recipe: Path, overrides: Sequence[str], resume: bool, console: Console) -> int:
    """Trains, and writes the model and its bank to the folder `final` of the run.

    Args:
        recipe: YAML file.
        overrides: as `with_overrides`.
        resume: go on from the run's last checkpoint.
        console: told a line at a time.
    """
    config = TrainConfig.from_dict(with_overrides(read_yaml(recipe), overrides))
    from dpseg.training.export import export
    from dpseg.training.loop import prepare
    from dpseg.training.loop import train as run

    start = time.monotonic()

    def log(line: str) -> None:
        console.print(f"{time.strftime('%H:%M:%S')} {line}", markup=False)

    setup = prepare(config, log)
    (Path(config.out) / "recipe.yaml").write_text(yaml.safe_dump(_plain(setup.config)), encoding="utf-8")
    model = run(setup, resume, log)
    folder = export(model, setup, Path(config.out) / "final")
    log(f"{folder}: trained in {time.monotonic() - start:.0f} s")
    return 0


def _plain(config: TrainConfig) -> Any:
    """Returns the recipe as YAML values: lists for tuples."""
    import json

    return json.loads(json.dumps(dataclasses.asdict(config)))
