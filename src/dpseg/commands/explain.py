"""`dpseg explain`: the paper's figures, of any model: the gap between prompts and images, and cost volumes."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dpseg import __version__
from dpseg.commands.places import check_writable
from dpseg.commands.progress import progress
from dpseg.commands.prompts_input import AskedClasses, check_classes, load_classes
from dpseg.files import write_atomically

if TYPE_CHECKING:
    from dpseg.explain.gap import Gap, GapConfig


@dataclass(frozen=True)
class GapOptions:
    """The options of `dpseg explain gap`.

    Attributes:
        data: a data set: folder, COCO file or benchmark.
        config: what is compared.
        out: folder of the results.
        split: which photos; None: all.
        root: folder in which a benchmark's download was unpacked; None: this one.
        model: name, folder or hub id.
        device: None: CUDA where there is a GPU.
    """

    data: str
    config: GapConfig
    out: Path
    split: str | None = "val"
    root: Path | None = None
    model: str = "dpseg-lite"
    device: str | None = None


@dataclass(frozen=True, kw_only=True)
class CostOptions(AskedClasses):
    """The options of `dpseg explain cost`.

    Attributes:
        photo: a file.
        out: folder of the results.
        classes: so many rows at most.
        size: encoder's input size in pixels; None: the model's own.
    """

    photo: Path
    out: Path
    classes: int = 6
    size: int | None = None


def gap(options: GapOptions, console: Console, errors: Console) -> int:
    """Measures how near prompts lie to images, prints the table and writes the figures.

    Args:
        options: what the user asked for.
        console: where the table is printed.
        errors: where progress is shown.

    Returns:
        The exit status, 0.

    Raises:
        DPSegError: the user's mistake.
    """
    from dpseg.data.benchmarks import open_dataset
    from dpseg.data.folder import FolderDataset
    from dpseg.explain.figures import check_drawing, gap_figure, png_of
    from dpseg.explain.gap import measure_gap, plan_gap, plane_points
    from dpseg.segmenter import Segmenter

    check_drawing()
    dataset = open_dataset(options.data, options.root, options.split)
    pool = open_dataset(options.data, options.root, None if isinstance(dataset, FolderDataset) else "train")
    check_writable(options.out)
    with _loading(options.model, errors):
        segmenter = Segmenter.from_pretrained(options.model, options.device)
    plan = plan_gap(segmenter, dataset, pool, options.config)
    with progress(errors, len(plan.shown), "photos", lines=True) as step:
        found = measure_gap(segmenter, plan, step)
    title = _gap_title(options, found)
    setting = _gap_setting(options, segmenter.model.config)
    content = json.dumps({**setting, **found.to_json()}, ensure_ascii=False, indent=1) + "\n"
    write_atomically(options.out / "gap.json", content.encode())
    figure = gap_figure(found, plane_points(found, options.config.seed), title)
    write_atomically(options.out / "gap.png", png_of(figure))
    _say(console, f"{title}\n\n{found.to_markdown()}")
    if found.left_out:
        _say(console, f"\nleft out, no photo outside the split shows them: {', '.join(found.left_out)}")
    _say(console, f"\n{options.out}: gap.json, gap.png")
    return 0


def cost(options: CostOptions, console: Console, errors: Console) -> int:
    """Draws the cost volumes of one photo, and Inference I beside Inference II.

    Args:
        options: what the user asked for.
        console: where the files are named.
        errors: where it is shown that the model is loaded, and what of the references cannot be read.

    Returns:
        The exit status, 0.

    Raises:
        DPSegError: the user's mistake.
    """
    from dpseg.explain.cost import explain_photo
    from dpseg.explain.figures import check_drawing, cost_figure, inference_figure, png_of
    from dpseg.images import load_image

    check_drawing()
    check_classes(options)
    load_image(options.photo)
    check_writable(options.out)
    loaded = load_classes(options, errors, options.store, options.feature_prompts)
    found = explain_photo(loaded.segmenter, options.photo, loaded.prompts, options.classes, options.size)
    write_atomically(options.out / "cost.npz", found.to_npz())
    write_atomically(options.out / "cost.png", png_of(cost_figure(found)))
    write_atomically(options.out / "cost_inference.png", png_of(inference_figure(found.first, found.second)))
    _say(console, f"{options.photo}: {', '.join(found.names)}")
    _say(console, f"{options.out}: cost.png, cost_inference.png, cost.npz")
    return 0


def _loading(model: str, errors: Console) -> Any:
    return errors.status(f"Loading {model}") if errors.is_terminal else nullcontext()


def _gap_title(options: GapOptions, found: Gap) -> str:
    what = f"{_data_name(options.data)} {options.split or ''}".strip()
    return f"{what}: {len(found.names)} classes, {len(found.regions)} regions of {found.photos} photos, {options.model}"


def _gap_setting(options: GapOptions, model: Any) -> dict[str, Any]:
    """Returns what is needed to repeat the comparison, as JSON values."""
    import torch

    return {
        "data": _data_name(options.data),
        "split": options.split,
        "model_name": options.model,
        "model": asdict(model),
        "gap": asdict(options.config),
        "versions": {"dpseg": __version__, "torch": str(torch.__version__)},
    }


def _data_name(data: str) -> str:
    """Returns the last part of a data set's name or place."""
    return Path(data.strip()).expanduser().name.removesuffix(".json") or "data"


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)
