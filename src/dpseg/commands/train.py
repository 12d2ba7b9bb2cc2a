"""`dpseg train`: a recipe -> a model folder."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console

from dpseg.commands.progress import progress
from dpseg.errors import ConfigError
from dpseg.files import write_atomically
from dpseg.plain_values import read_yaml
from dpseg.recipe import TrainConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from dpseg.model.dpseg import DPSeg
    from dpseg.training.loop import Log, Progress, Setup
    from dpseg.training.record import Record


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


@dataclass(frozen=True)
class TrainOptions:
    """The options of `dpseg train`.

    Attributes:
        recipe: YAML file.
        overrides: as `with_overrides`.
        resume: go on from the run's last checkpoint, where there is one.
        devices: so many processes on this machine, one a device.
        accelerator: "auto", "cpu", "cuda", ...
        nodes: so many machines.
    """

    recipe: Path
    overrides: Sequence[str] = ()
    resume: bool = True
    devices: int = 1
    accelerator: str = "auto"
    nodes: int = 1


def train(options: TrainOptions, console: Console) -> int:
    """Trains, and writes the model and its bank to the folder `final` of the run.

    Args:
        options: what the user asked for.
        console: told a line at a time; on a terminal it has a bar besides.

    Returns:
        The exit status, 0.

    Raises:
        DPSegError: the user's mistake.
    """
    config = TrainConfig.from_dict(with_overrides(read_yaml(options.recipe), options.overrides))
    from dpseg.training.loop import launch, prepare

    start = time.monotonic()
    fabric = launch(config, options.accelerator, options.devices, options.nodes)

    def log(line: str) -> None:
        if fabric.is_global_zero:
            console.print(f"{time.strftime('%H:%M:%S')} {line}", markup=False, soft_wrap=True)

    setup = prepare(config, log, fabric)
    model = _run(setup, fabric, options.resume, log, console)
    if fabric.is_global_zero:
        from dpseg.training.export import export

        folder = export(model, setup, Path(config.out) / "final")
        log(f"{folder}: trained in {time.monotonic() - start:.0f} s")
    return 0


def _run(setup: Setup, fabric: Fabric, resume: bool, log: Log, console: Console) -> DPSeg:
    """Trains; the first process keeps a record."""
    from dpseg.training.loop import train as run
    from dpseg.training.record import Record, describe_run, write_run

    if not fabric.is_global_zero:
        return run(setup, fabric, resume, log)
    config, folder = setup.config, Path(setup.config.out)
    write_atomically(folder / "recipe.yaml", yaml.safe_dump(_plain(config)).encode())
    write_run(folder, describe_run(fabric.world_size, fabric.device.type))
    watch = _Watch(Record(folder, config.log_steps), config.iterations, log, console)
    try:
        return run(setup, fabric, resume, log, watch)
    finally:
        watch.close()


class _Watch:
    """Shows a bar on a terminal and lines elsewhere, and keeps a record."""

    def __init__(self, record: Record, iterations: int, log: Log, console: Console) -> None:
        self.record = record
        self.iterations = iterations
        self.log = log
        self.console = console
        self.bar = ExitStack()
        self.advance: Callable[[], None] = lambda: None

    def start(self, step: int) -> None:
        """Begins at `step`."""
        self.record.start(step)
        self.advance = self.bar.enter_context(progress(self.console, self.iterations - step, "steps"))

    def add(self, now: Progress) -> None:
        """Takes a step."""
        self.advance()
        row = self.record.add(now)
        if row is not None:
            parts = " ".join(f"{name} {row[name]:.3f}" for name in now.parts)
            left = (self.iterations - now.step) * row["seconds_a_step"] / 60
            skipped = f", {now.skipped} photos skipped" if now.skipped else ""
            pace = f"{row['seconds_a_step']:.2f} s/step, {left:.0f} min left{skipped}"
            self.log(f"step {now.step}/{self.iterations} loss {row['loss']:.3f} ({parts}) {pace}")

    def close(self) -> None:
        """Ends the bar and the record."""
        self.bar.close()
        self.record.close()


def _plain(config: TrainConfig) -> Any:
    """Returns the recipe as YAML values: lists for tuples."""
    import json

    return json.loads(json.dumps(dataclasses.asdict(config)))
