"""`dpseg export`: a model as one file for other runtimes, compared with the model before it is written."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from dpseg.commands.places import check_writable
from dpseg.commands.prompts_input import AskedClasses, check_classes, load_classes
from dpseg.errors import ConfigError, MissingExtraError, did_you_mean
from dpseg.images import find_images

if TYPE_CHECKING:
    from dpseg.exporting.about import About
    from dpseg.prompts.prompt_set import PromptSet
    from dpseg.segmenter import Segmenter

FORMATS = ("onnx", "torch-export")


@dataclass(frozen=True, kw_only=True)
class ExportOptions(AskedClasses):
    """The options of `dpseg export`; with classes, these are frozen in.

    Attributes:
        out: the file.
        form: of `FORMATS`.
        int8: photos, folders and globs on which ranges are measured, for an encoder in 8-bit integers; none: it stays
            in single precision.
    """

    out: Path
    form: str = "onnx"
    int8: tuple[str, ...] = ()


def export(options: ExportOptions, console: Console, errors: Console) -> int:
    """Exports a model, compares the file with it, and writes the file where both agree.

    Args:
        options: what the user asked for.
        console: told what was compared and written.
        errors: where progress is shown, and where it is said that they do not agree.

    Returns:
        The exit status: 0, or 1 where they do not agree.

    Raises:
        DPSegError: the user's mistake.
    """
    if options.form not in FORMATS:
        raise ConfigError(f"format {options.form!r} is unknown; {did_you_mean(options.form, FORMATS)}")
    if options.out.is_dir():
        raise ConfigError(f"--out {options.out} is a folder; name a file in it, such as {options.out / 'model.onnx'}")
    if options.int8 and options.form != "onnx":
        raise ConfigError(f"--int8 does not go with --format {options.form}; leave one of them out")
    photos = find_images(options.int8) if options.int8 else []
    check_writable(options.out.parent)
    if options.form == "onnx":
        _need("onnx", "onnxscript", "onnxruntime")
    segmenter, prompts = _load(options, errors)
    from dpseg.exporting import graph, parity
    from dpseg.files import write_atomically

    model, frozen = segmenter.model, None if prompts is None else prompts.embeddings
    with errors.status("Exporting") if errors.is_terminal else nullcontext():
        facts = graph.about(model, options.model, prompts)
        program = graph.trace(model, frozen)
        content = graph.to_onnx(program, facts) if options.form == "onnx" else graph.to_torch(program, facts)
    with errors.status("Comparing") if errors.is_terminal else nullcontext():
        run = parity.onnx_runner(content) if options.form == "onnx" else parity.torch_runner(content)
        found = parity.compare(model, frozen, run)
    for one in found:
        what = f"{one.classes} classes at {one.width} x {one.height}"
        console.print(f"{what}: differs by {one.difference:.1e} of the largest logit", markup=False, soft_wrap=True)
    worst = max(one.difference for one in found)
    if worst > parity.TOLERANCE:
        limit = f"the export differs from the model by {worst:.1e}, and at most {parity.TOLERANCE:g} is let pass"
        errors.print(f"dpseg: {limit}; nothing is written", markup=False, soft_wrap=True)
        return 1
    if photos:
        with errors.status("Measuring ranges") if errors.is_terminal else nullcontext():
            content, report = _quantised(content, photos, facts, segmenter, prompts)
        console.print(report, markup=False, soft_wrap=True)
    write_atomically(options.out, content)
    classes = "any classes" if prompts is None else f"{len(prompts)} classes"
    line = f"{options.out}: {options.model} for {classes}, {len(content) / 1e6:.1f} MB"
    console.print(line if photos else f"{line}; largest difference {worst:.1e}", markup=False, soft_wrap=True)
    return 0


def _quantised(
    content: bytes, photos: Sequence[Path], facts: About, segmenter: Segmenter, frozen: PromptSet | None
) -> tuple[bytes, str]:
    """Returns the file with an encoder in 8-bit integers, and a line that says what that changes."""
    from dpseg.data.vocabularies import load_vocabulary
    from dpseg.exporting.about import PROMPT_INPUTS
    from dpseg.exporting.graph import prompt_tensors
    from dpseg.exporting.quantize import agreement, calibration_inputs, quantize

    arrays, what = {}, "the classes"
    if frozen is None:
        tensors = prompt_tensors(segmenter.prompts(load_vocabulary("coco"), bank=False).embeddings)
        arrays, what = {n: t.cpu().numpy() for n, t in zip(PROMPT_INPUTS, tensors, strict=True)}, "COCO's 133 names"
    inputs = calibration_inputs(photos, facts, arrays)
    small = quantize(content, inputs)
    changed = 1 - agreement(content, small, inputs)
    places = f"{changed:.1%} of the positions of {len(inputs)} photo{'s' * (len(inputs) != 1)}"
    return small, f"8-bit integers: {places} get another of {what} than in single precision"


def _need(*packages: str) -> None:
    for package in packages:
        try:
            import_module(package)
        except ImportError as error:
            raise MissingExtraError(
                f"exporting to ONNX needs the package {error.name or package}; pip install 'dpseg[export]'"
            ) from error


def _load(options: ExportOptions, errors: Console) -> tuple[Segmenter, PromptSet | None]:
    """Returns the model on the CPU, and the prompts that are frozen in."""
    if options.text or options.references or options.refs.places or options.vocabularies or options.prompts:
        check_classes(options)
        loaded = load_classes(options, errors)
        return loaded.segmenter, loaded.segmenter.usable(loaded.prompts)
    from dpseg.segmenter import Segmenter

    with errors.status(f"Loading {options.model}") if errors.is_terminal else nullcontext():
        return Segmenter.from_pretrained(options.model, "cpu"), None
