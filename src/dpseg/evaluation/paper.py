"""The paper's figures, to stand beside ours: mIoU in % on its benchmarks, by the names that `dpseg evaluate` uses.

From DPSeg (CVPR 2025), its main table and its ablation of prompts and visual cost volumes. The benchmark pas20b is in
neither.
"""

from __future__ import annotations

from collections.abc import Sequence

from dpseg.evaluation.table import Report, markdown_line, percent

BENCHMARKS = {
    "a847": "A-847",
    "pc459": "PC-459",
    "a150": "A-150",
    "pc59": "PC-59",
    "pas20": "PAS-20",
    "pas20b": "PAS-20b",
}
"""Name -> how the paper calls it, in the paper's order."""

_ORDER = ("a847", "pc459", "a150", "pc59", "pas20")
_ROWS: tuple[tuple[str, tuple[float | None, ...]], ...] = (
    ("SED, ConvNeXt-B", (11.4, 18.6, 31.6, 57.3, 94.4)),
    ("DPSeg, ConvNeXt-B, Inference I", (12.0, 19.5, 32.9, 58.1, 96.0)),
    ("DPSeg, ConvNeXt-B, Inference II", (12.5, 20.1, 33.3, 58.4, 96.9)),
    ("SED, ConvNeXt-L", (13.9, 22.6, 35.2, 60.6, 96.1)),
    ("DPSeg, ConvNeXt-L, Inference I", (14.9, 23.5, 36.4, 62.0, None)),
    ("DPSeg, ConvNeXt-L, Inference II", (15.7, 24.1, 37.1, 62.3, 98.5)),
    ("ablation: text prompts only, ConvNeXt-B, Inference I", (10.4, 17.4, 30.6, 56.2, 93.4)),
    ("ablation: visual prompts only, ConvNeXt-B, Inference I", (11.1, 18.0, 31.2, 56.9, 94.5)),
    ("ablation: F_c alone in the decoder, ConvNeXt-B, Inference I", (10.6, None, 31.6, None, None)),
    ("ablation: F_c and F_v^2, ConvNeXt-B, Inference I", (11.4, None, 32.1, None, None)),
)

PAPER: tuple[tuple[str, dict[str, float]], ...] = tuple(
    (model, {name: value for name, value in zip(_ORDER, values, strict=True) if value is not None})
    for model, values in _ROWS
)
"""Model -> mIoU in % by benchmark, as far as the paper gives it."""


def common_table(reports: Sequence[Report], model: str) -> str:
    """Returns a Markdown table of mIoU in %: the paper's models and ours as rows, data sets as columns.

    Args:
        reports: one a data set, all with the same rows.
        model: how ours is called.
    """
    names = [report.name for report in reports]
    lines = [
        markdown_line(["model", *(BENCHMARKS.get(name, name) for name in names)]),
        "|---|" + "---|" * len(names),
    ]
    for paper, values in PAPER:
        if any(name in values for name in names):
            figures = [f"{values[name]:.1f}" if name in values else "-" for name in names]
            lines.append(markdown_line([f"{paper} (paper)", *figures]))
    for index, row in enumerate(reports[0].rows):
        figures = [f"**{percent(report.rows[index].matrix.mean_iou)}**" for report in reports]
        lines.append(markdown_line([f"{model}, {row.prompts}, Inference {row.inference}", *figures]))
    return "\n".join(lines)
