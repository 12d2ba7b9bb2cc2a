"""The figures of `speed.py` as Markdown and as a plot."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from speed_parts import PART_ORDER


@dataclass(frozen=True)
class Bound:
    """What a figure must be.

    Attributes:
        what: it says, for the table.
        limit: the largest allowed value, or the smallest.
        least: it is the smallest.
    """

    what: str
    limit: float
    least: bool = False

    def kept(self, value: float) -> bool:
        """Whether a figure is within the bound."""
        return value >= self.limit if self.least else value <= self.limit


BOUNDS = {
    "decoder_speedup_k150": Bound("base, 150 classes: decoder against the plain path, times as fast", 4.0, True),
    "seconds_k150": Bound("base, 150 classes, exact: photo to labels, s", 5.0),
    "seconds_k847": Bound("base, 847 classes, exact: photo to labels, s", 16.0),
    "peak_gb_k847": Bound("base, 847 classes, exact: peak memory, GB", 3.0),
    "seconds_k847_reject": Bound("base, 847 classes, early rejection: photo to labels, s", 4.0),
    "peak_gb_k847_reject": Bound("base, 847 classes, early rejection: peak memory, GB", 2.5),
    "memory_ratio_k10000": Bound("memory of 10,000 classes against 150, less the prompts", 1.3),
    "sgemm_share_k150": Bound("base, 150 classes: share of the matrix speed, encoder and decoder", 0.6, True),
    "lite_seconds_20": Bound("lite, 20 names, Inference I and II with a crop, s", 0.35),
    "lite_seconds_150": Bound("lite, 150 names, Inference I and II with a crop, s", 0.8),
    "refine_ratio_k150": Bound("base, 150 classes, early rejection: I and II with a crop against I alone", 1.35),
}
"""Key of the figure -> what the project promises for two idle cores."""


def markdown(results: Mapping[str, Any]) -> str:
    """Returns the tables."""
    machine, compared = results["machine"], results["against_plain"]
    lines = ["# Speed and memory", ""]
    if results["quick"]:
        lines += ["Tiny models: these figures only show that the benchmark works.", ""]
    lines += [
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, torch {machine['torch']}."
        f" Square matrices are multiplied with {compared['sgemm_gflop_per_second']:.0f} GFLOP/s.",
        "",
        "| | measured | bound | |",
        "|---|---|---|---|",
    ]
    for key, bound in BOUNDS.items():
        sign, verdict = ("≥" if bound.least else "≤"), "" if bound.kept(results[key]) else "broken"
        lines.append(f"| {bound.what} | {results[key]:.2f} | {sign} {bound.limit} | {verdict} |")
    lines += ["", *_speed_table(compared), "", *_parts_table(results["parts"]), "", *_memory_table(results), ""]
    lines += _refinement_table(results["refinement"])
    return "\n".join(lines)


def _speed_table(compared: Mapping[str, Any]) -> list[str]:
    lines = ["| base, exact | s | GFLOP | GFLOP/s | share of the matrix speed |", "|---|---|---|---|---|"]
    seconds = {"encoder": compared["encoder_seconds"], "decoder": compared["blocks_seconds"]}
    seconds["both"] = sum(seconds.values())
    for part, taken in seconds.items():
        reached, share = compared["gflop_per_second"][part], compared["share_of_sgemm"][part]
        lines.append(f"| {part} | {taken:.2f} | {compared['gflop'][part]:.1f} | {reached:.0f} | {100 * share:.0f} % |")
    lines.append(f"| decoder, plain path | {compared['plain_seconds']:.2f} | | | |")
    return lines


def _parts_table(parts: Mapping[str, Mapping[str, float]]) -> list[str]:
    names = sorted({name for row in parts.values() for name in row}, key=PART_ORDER.index)
    lines = [f"| seconds | {' | '.join(parts)} |", "|---" * (len(parts) + 1) + "|"]
    for name in names:
        lines.append(f"| {name} | {' | '.join(f'{row.get(name, 0.0):.3f}' for row in parts.values())} |")
    lines.append(f"| together | {' | '.join(f'{sum(row.values()):.3f}' for row in parts.values())} |")
    return lines


def _refinement_table(refinement: Mapping[str, Mapping[str, float]]) -> list[str]:
    ratios = [name for name in refinement["exact"] if name != "seconds"]
    lines = [f"| with Inference II | Inference I, s | {' | '.join(ratios)} |", "|---" * (len(ratios) + 2) + "|"]
    for mode, title in (("exact", "exact"), ("reject", "early rejection")):
        row = refinement[mode]
        lines.append(f"| {title} | {row['seconds']:.2f} | {' | '.join(f'x {row[name]:.2f}' for name in ratios)} |")
    return [*lines, ""]


def _memory_table(results: Mapping[str, Any]) -> list[str]:
    lines = ["| model | classes | given up early | s | peak, GB | of that prompts, GB |", "|---|---|---|---|---|---|"]
    for row in results["memory"]:
        figures = f"{row['seconds']:.2f} | {row['peak_gb']:.2f} | {row['prompts_gb']:.2f}"
        lines.append(f"| {row['model']} | {row['classes']} | {_mode(row)} | {figures} |")
    for title, ratios in (
        ("less the prompts", results["memory_ratios"]),
        ("with the prompts", results["memory_ratios_with_prompts"]),
    ):
        figures = ", ".join(f"{name}: x {value:.2f}" for name, value in ratios.items())
        lines += ["", f"From 150 to 10,000 classes memory grows, {title}: {figures}."]
    return lines


def _mode(row: Mapping[str, Any]) -> str:
    """Returns what of the classes a row gives up."""
    bound = row["rejection"]
    if bound is None:
        return "as it ships"
    if bound["max_classes"] is None:
        return "none"
    return f"all but {bound['max_classes']}" + ("" if bound["keep_top"] is None else f", top {bound['keep_top']}")


def draw(results: Mapping[str, Any]) -> bytes:
    """Draws time and memory against the number of classes, and returns a PNG file's content."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), dpi=110, layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    colours = {"base": "#3b6fb5", "lite": "#d97a2b"}
    curves: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in results["memory"]:
        curves.setdefault((row["model"], _mode(row)), []).append(row)
    for (model, mode), rows in curves.items():
        counts = [row["classes"] for row in rows]
        style = {"color": colours[model], "linestyle": "-" if mode == "none" else "--", "marker": "o", "markersize": 4}
        label = f"{model}, " + {"none": "exact", "as it ships": "as it ships"}.get(mode, "early rejection")
        left.plot(counts, [row["seconds"] for row in rows], label=label, **style)
        right.plot(counts, [row["peak_gb"] - row["prompts_gb"] for row in rows], label=label, **style)
    for axes, title in ((left, "seconds a photo"), (right, "peak memory less the prompts, GB")):
        axes.set_xscale("log")
        marks = sorted({row["classes"] for row in results["memory"]})
        axes.set_xticks(marks, [f"{mark:,}" for mark in marks])
        axes.minorticks_off()
        axes.set_xlabel("classes", fontsize=9)
        axes.set_title(title, fontsize=10)
        axes.grid(color="#e2e2de", linewidth=0.7)
        axes.tick_params(labelsize=8)
    left.set_yscale("log")
    right.set_ylim(0, 1.15 * max(row["peak_gb"] - row["prompts_gb"] for row in results["memory"]))
    left.legend(fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
