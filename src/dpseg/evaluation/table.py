"""What an evaluation measured on one data set: rows of figures, as JSON and as a Markdown table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpseg.config import PromptKind
from dpseg.evaluation.metrics import ConfusionMatrix
from dpseg.evaluation.seen import by_seen
from dpseg.evaluation.sizes import SIZES
from dpseg.evaluation.tally import Tally

_COLUMNS = (
    "prompts",
    "inference",
    "mIoU",
    "pixels right",
    "mean accuracy",
    "frequency-weighted IoU",
    "boundary F",
    "small found",
)


@dataclass(frozen=True, eq=False)
class Row:
    """One row of the table.

    Attributes:
        prompts: what the classes were told by.
        refine: Inference II, or Inference I.
        tally: all photos together.
    """

    prompts: PromptKind
    refine: bool
    tally: Tally

    @property
    def inference(self) -> str:
        """I or II."""
        return "II" if self.refine else "I"

    @property
    def matrix(self) -> ConfusionMatrix:
        """The confusion matrix of the tally."""
        return self.tally.matrix


@dataclass(frozen=True, eq=False)
class Report:
    """What was measured on one data set.

    Attributes:
        name: of the data set.
        rows: the table.
        photos: so many were evaluated.
        seconds: of the whole evaluation, reading included, added up over its processes.
        setting: what else is needed to repeat it, JSON values.
        seen: for each class whether training had it; None: nobody knows.
    """

    name: str
    rows: tuple[Row, ...]
    photos: int
    seconds: float
    setting: dict[str, Any]
    seen: tuple[bool, ...] | None = None

    @property
    def best(self) -> Row:
        """The row of the highest mIoU."""
        return max(self.rows, key=lambda row: row.matrix.mean_iou)

    def seen_figures(self, row: Row) -> dict[str, dict[str, Any]] | None:
        """Returns mIoU over seen and over unseen classes; None where nobody knows which are."""
        return None if self.seen is None else by_seen(row.matrix, np.array(self.seen))

    def to_json(self) -> dict[str, Any]:
        """Returns everything as JSON values."""
        return {
            **self.setting,
            "photos": self.photos,
            "seconds": round(self.seconds, 2),
            "rows": [self._row_json(row) for row in self.rows],
        }

    def to_markdown(self) -> str:
        """Returns the table, in %."""
        columns = [*_COLUMNS, *(["seen mIoU", "unseen mIoU"] if self.seen is not None else [])]
        lines = [markdown_line(columns), markdown_line(["---"] * len(columns)).replace(" ", "")]
        for row in self.rows:
            m, seen = row.matrix, self.seen_figures(row)
            values: list[float | None] = [m.mean_iou, m.pixel_accuracy, m.mean_accuracy, m.frequency_weighted_iou]
            values += [row.tally.boundary.mean_f_score, float(row.tally.sizes.found[SIZES.index("small")])]
            values += [] if seen is None else [seen["seen"]["miou"], seen["unseen"]["miou"]]
            lines.append(markdown_line([row.prompts, row.inference, *map(percent, values)]))
        return "\n".join(lines)

    def _row_json(self, row: Row) -> dict[str, Any]:
        seen = self.seen_figures(row)
        return {
            "prompts": row.prompts,
            "refine": row.refine,
            **row.matrix.to_json(),
            "boundary": row.tally.boundary.to_json(),
            "sizes": row.tally.sizes.to_json(),
            **({} if seen is None else {"training_names": seen}),
        }


def markdown_line(cells: Sequence[str]) -> str:
    """Returns one line of a Markdown table; bars in a cell are escaped."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def percent(value: float | None) -> str:
    """Returns a fraction in % with one decimal, and a dash where there is none."""
    return "-" if value is None or np.isnan(value) else f"{100 * value:.1f}"
