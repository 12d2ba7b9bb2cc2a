"""What a run leaves to look at: metrics.csv, curves.png, TensorBoard's events, and run.json with how it was made."""

from __future__ import annotations

import csv
import io
import json
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpseg import __version__
from dpseg.errors import MissingExtraError
from dpseg.files import write_atomically
from dpseg.training.loop import Progress

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

PACKAGES = ("torch", "torchvision", "lightning-fabric", "open_clip_torch", "timm", "numpy", "safetensors")


class Record:
    """Writes what it is told of a run's steps, averaged between lines; a resumed run goes on with the same files."""

    def __init__(self, folder: Path, every: int) -> None:
        """Opens the files.

        Args:
            folder: of the run; it exists.
            every: steps between two lines.

        Raises:
            MissingExtraError: matplotlib or tensorboard is not installed.
        """
        self.folder = folder
        self.every = every
        self.rows: list[dict[str, str]] = []
        self.recent: list[Progress] = []
        self.writer = _summary_writer()
        self.events: SummaryWriter | None = None
        self.since = 0.0

    def start(self, step: int) -> None:
        """Reads what a stopped run left, but for what it wrote after its last checkpoint, at `step`."""
        self.rows = [row for row in _read(self.folder / "metrics.csv") if float(row["step"]) <= step]
        self.events = self.writer(str(self.folder / "tensorboard"), purge_step=step + 1)
        self.since = time.monotonic()

    def close(self) -> None:
        """Draws the curves and closes the files."""
        if self.events is not None:
            self.events.close()
        if self.rows:
            self.draw()

    def add(self, progress: Progress) -> dict[str, float] | None:
        """Takes a step; after every so many of them, returns the row that was written."""
        self.recent.append(progress)
        if progress.step % self.every:
            return None
        seconds = (time.monotonic() - self.since) / len(self.recent)
        row = {"step": float(progress.step), "loss": _mean([one.loss for one in self.recent])}
        row |= {name: _mean([one.parts[name] for one in self.recent]) for name in progress.parts}
        row |= {"lr": progress.lr, "seconds_a_step": seconds, "skipped": float(progress.skipped)}
        for name, value in row.items():
            if name != "step" and self.events is not None:
                self.events.add_scalar(name, value, progress.step)
        self.rows.append({name: f"{value:.6g}" for name, value in row.items()})
        self._write()
        self.recent, self.since = [], time.monotonic()
        return row

    def draw(self) -> None:
        """Draws the curves of the losses and of the learning rate."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 5), layout="constrained")
        axes, rates = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
        steps = [int(row["step"]) for row in self.rows]
        for name in self.rows[0]:
            if name not in ("step", "lr", "seconds_a_step", "skipped"):
                values = [float(row[name]) for row in self.rows]
                axes.plot(steps, values, label=name, linewidth=2.0 if name == "loss" else 1.0)
        axes.set_ylabel("loss")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
        rates.plot(steps, [float(row["lr"]) for row in self.rows], color="black")
        rates.set_ylabel("learning rate")
        rates.set_xlabel("step")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=100)
        write_atomically(self.folder / "curves.png", buffer.getvalue())

    def _write(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(self.rows[0]))
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.folder / "metrics.csv", text.getvalue().encode())


def describe_run(devices: int, accelerator: str) -> dict[str, Any]:
    """Returns how a run was made: versions, git revision, machine, time, as JSON values.

    Args:
        devices: so many processes.
        accelerator: on what.
    """
    return {
        "dpseg": __version__,
        "revision": _revision(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "processes": devices,
        "accelerator": accelerator,
        "machine": f"{platform.system()} {platform.machine()}",
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def write_run(folder: Path, about: dict[str, Any]) -> None:
    """Appends a start to the run's list of starts, run.json."""
    path = folder / "run.json"
    starts = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    write_atomically(path, json.dumps([*starts, about], indent=2).encode())


def _summary_writer() -> type[SummaryWriter]:
    try:
        import matplotlib.figure  # noqa: F401
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("training needs matplotlib and tensorboard: pip install 'dpseg[train]'") from error
    return SummaryWriter


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _revision() -> str | None:
    """Returns the git revision of the checkout that this code stands in, "-dirty" where files differ from it."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
