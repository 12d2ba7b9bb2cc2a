"""What an ablation found: Markdown and JSON with spreads over the seeds, and the paper's claims, answered by them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Literal

from dpseg.ablation.variants import Measurement, Table, TableName, Training, Variant
from dpseg.evaluation.table import markdown_line

Answer = Literal["holds", "does not hold", "cannot be told", "not measured"]


@dataclass(frozen=True)
class Figures:
    """What one measurement of one model found.

    Attributes:
        miou: in [0, 1].
        pixel_accuracy: in [0, 1].
    """

    miou: float
    pixel_accuracy: float


@dataclass(frozen=True)
class Results:
    """What an ablation found.

    Attributes:
        figures: training and measurement -> figures, one a seed, always in the same order.
        seconds: training -> seconds of its steps, one a seed; None: nobody knows.
    """

    figures: Mapping[tuple[Training, Measurement], Sequence[Figures]]
    seconds: Mapping[Training, Sequence[float | None]]

    def of(self, variant: Variant) -> Sequence[Figures]:
        """Returns the figures of a row, one a seed."""
        return self.figures[variant.training, variant.measured]


@dataclass(frozen=True)
class Spread:
    """Values of several seeds, summed up.

    Attributes:
        mean: of them.
        deviation: their sample standard deviation; None: there is only one.
        count: how many, 1 or more.
    """

    mean: float
    deviation: float | None
    count: int

    @property
    def error(self) -> float | None:
        """The standard error of the mean; None: there is only one value."""
        return None if self.deviation is None else self.deviation / math.sqrt(self.count)

    def percent(self, sign: bool = False) -> str:
        """Returns mean ± deviation of fractions in %, with two decimals.

        Args:
            sign: write a plus too.
        """
        mean = f"{100 * self.mean:+.2f}" if sign else f"{100 * self.mean:.2f}"
        return mean if self.deviation is None else f"{mean} ± {100 * self.deviation:.2f}"

    def to_json(self) -> dict[str, Any]:
        """Returns the values as JSON values."""
        return {"mean": self.mean, "deviation": self.deviation, "error": self.error}


def spread(values: Sequence[float]) -> Spread:
    """Sums up one value a seed."""
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def difference(ours: Sequence[Figures], others: Sequence[Figures]) -> Spread:
    """Returns by how much the mIoU of one variant is above another's, seed by seed."""
    return spread([a.miou - b.miou for a, b in zip(ours, others, strict=True)])


@dataclass(frozen=True)
class Claim:
    """Something that the paper says.

    Attributes:
        text: in words.
        table: that shows it.
        winner: name of the variant that is said to be better ...
        losers: ... than each of these.
    """

    text: str
    table: TableName
    winner: str
    losers: tuple[str, ...]


CLAIMS = (
    Claim("both prompts beat either alone", "prompts", "both", ("text", "pictures")),
    Claim("averaging embeddings beats fusing cost volumes", "fusion", "average", ("cost_concat", "cost_average")),
    Claim("visual cost volumes at each scale beat an upsampled one", "guidance", "visual234", ("upsampled",)),
    Claim("Inference II beats I", "refinement", "both II", ("both I",)),
)


def judge(gain: Spread) -> Answer:
    """Returns whether a mean difference is a gain; smaller than its standard error, or of one seed, it tells nothing.

    Args:
        gain: of the one that is said to be better, in mIoU, seed by seed.
    """
    if gain.error is None or abs(gain.mean) < gain.error:
        return "cannot be told"
    return "holds" if gain.mean > 0 else "does not hold"


@dataclass(frozen=True)
class Verdict:
    """What the figures say of a claim.

    Attributes:
        claim: of the paper.
        gains: label of each loser -> by how much the winner's mIoU is above.
        winner: its label.
    """

    claim: Claim
    gains: Mapping[str, Spread]
    winner: str = ""

    @property
    def answer(self) -> Answer:
        """The weakest of the answers of all comparisons."""
        weakest: tuple[Answer, ...] = ("does not hold", "cannot be told", "holds")
        answers = {judge(gain) for gain in self.gains.values()}
        return next((answer for answer in weakest if answer in answers), "not measured")


def judge_claims(tables: Sequence[Table], results: Results) -> list[Verdict]:
    """Answers the paper's claims, those without figures too."""
    verdicts = []
    for claim in CLAIMS:
        variants = {one.name: one for table in tables if table.name == claim.table for one in table.variants}
        if not variants:
            verdicts.append(Verdict(claim, {}))
            continue
        winner = variants[claim.winner]
        losers = [variants[name] for name in claim.losers]
        gains = {loser.label: difference(results.of(winner), results.of(loser)) for loser in losers}
        verdicts.append(Verdict(claim, gains, winner.label))
    return verdicts


def to_markdown(tables: Sequence[Table], results: Results) -> str:
    """Returns a section for each table, and one for the claims."""
    sections = [
        part for table in tables for part in (f"## {table.name.capitalize()}", table.about, _grid(table, results))
    ]
    claims = "\n".join(_claim_line(verdict) for verdict in judge_claims(tables, results))
    return "\n\n".join([*sections, "## The paper's claims", claims])


def to_json(tables: Sequence[Table], results: Results) -> dict[str, Any]:
    """Returns all figures, their spreads, and the answers, as JSON values; fractions in [0, 1]."""
    return {
        "tables": [
            {
                "name": table.name,
                "about": table.about,
                "full_method": table.reference,
                "rows": [_row_json(table, variant, results) for variant in table.variants],
            }
            for table in tables
        ],
        "claims": [
            {
                "claim": verdict.claim.text,
                "answer": verdict.answer,
                "gains": {label: gain.to_json() for label, gain in verdict.gains.items()},
            }
            for verdict in judge_claims(tables, results)
        ],
    }


def _grid(table: Table, results: Results) -> str:
    columns = ["variant", "mIoU", "pixels right", "mIoU less the full method's", "training, s"]
    lines = [markdown_line(columns), "|---|" + "---|" * (len(columns) - 1)]
    for variant in table.variants:
        own = results.of(variant)
        full = variant.name == table.reference
        cells = [
            f"**{variant.label}** (full method)" if full else variant.label,
            spread([one.miou for one in own]).percent(),
            spread([one.pixel_accuracy for one in own]).percent(),
            "" if full else difference(own, results.of(_full(table))).percent(sign=True),
            _seconds(results.seconds[variant.training]),
        ]
        lines.append(markdown_line(cells))
    return "\n".join(lines)


def _full(table: Table) -> Variant:
    return next(variant for variant in table.variants if variant.name == table.reference)


def _seconds(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{fmean(known):.0f}" if known else "-"


def _claim_line(verdict: Verdict) -> str:
    if not verdict.gains:
        return f"- {verdict.claim.text}: **not measured** (table {verdict.claim.table})"
    gains = "; ".join(f"over {label}: {_gain(gain)}" for label, gain in verdict.gains.items())
    return f"- {verdict.claim.text}: **{verdict.answer}** ({verdict.winner} {gains})"


def _gain(gain: Spread) -> str:
    error = "one seed" if gain.error is None else f"standard error {100 * gain.error:.2f}"
    return f"{100 * gain.mean:+.2f} mIoU, {error}"


def _row_json(table: Table, variant: Variant, results: Results) -> dict[str, Any]:
    own = results.of(variant)
    return {
        "variant": variant.name,
        "label": variant.label,
        "training": variant.training.name,
        "changes": dict(variant.training.changes),
        "prompts": variant.measured.kind,
        "refine": variant.measured.refine,
        "noise": variant.measured.noise,
        "miou": {"seeds": [one.miou for one in own], **spread([one.miou for one in own]).to_json()},
        "pixel_accuracy": {
            "seeds": [one.pixel_accuracy for one in own],
            **spread([one.pixel_accuracy for one in own]).to_json(),
        },
        "difference": difference(own, results.of(_full(table))).to_json(),
        "seconds": list(results.seconds[variant.training]),
    }
