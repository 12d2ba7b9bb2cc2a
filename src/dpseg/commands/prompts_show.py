"""`dpseg prompts show`: what prompts say about their classes, and what looks wrong; as a table, a page or a picture."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dpseg.commands.places import check_writable
from dpseg.commands.prompts_input import AskedClasses, check_classes, load_classes
from dpseg.errors import ConfigError, PromptError
from dpseg.files import write_atomically

if TYPE_CHECKING:
    from dpseg.explain.origins import Origins
    from dpseg.explain.prompt_report import ClassReport, PromptReport
    from dpseg.prompts.prompt_set import PromptSet
    from dpseg.segmenter import Segmenter

FORMATS = (".html", ".png")
"""Endings of what --out writes."""

LISTED = 20
"""So many warnings are printed; a page has all."""

_PIPE = 10_000  # columns where no terminal says how many there are, so that nothing is cut


@dataclass(frozen=True, kw_only=True)
class ShowOptions(AskedClasses):
    """The options of `dpseg prompts show`.

    Attributes:
        place: file of a prompt set, or file or folder of a bank, in place of classes; None: there are classes.
        limit: so many names of a bank at most, the first.
        out: page or picture, by its ending; None: neither.
        as_json: print JSON.
    """

    place: Path | None = None
    limit: int = 100
    out: Path | None = None
    as_json: bool = False


def show(options: ShowOptions, console: Console, errors: Console) -> int:
    """Compares prompts with each other, prints what was found, and writes the page or picture.

    Args:
        options: what the user asked for.
        console: where what was found is printed.
        errors: where progress is shown, and what of the references cannot be read.

    Returns:
        The exit status, 0.

    Raises:
        DPSegError: the user's mistake.
    """
    if options.out is not None and options.out.suffix.lower() not in FORMATS:
        raise ConfigError(f"--out {options.out}: what it shall be is unknown; name a file that ends in .html or .png")
    if options.out is not None:
        check_writable(options.out.parent)
    segmenter, prompts, origins = _load(options, errors)
    from dpseg.explain.prompts import inspect_prompts

    report = inspect_prompts(segmenter.model.encoder, prompts, origins)
    if options.out is not None:
        write_atomically(options.out, _drawn(report, options))
    if options.as_json:
        content = {"model": options.model, **report.to_json()}
        console.print(json.dumps(content, ensure_ascii=False, indent=1), markup=False, soft_wrap=True)
        return 0
    print_table(console, _table(report))
    for warning in report.warnings[:LISTED]:
        console.print(f"warning: {warning.text}", markup=False, soft_wrap=True)
    if len(report.warnings) > LISTED:
        console.print(f"and {len(report.warnings) - LISTED} more warnings; see them all with --out FILE.html or --json")
    for note in report.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    if options.out is not None:
        console.print(f"{options.out}: {len(report.classes)} classes", markup=False, soft_wrap=True)
    return 0


def print_table(console: Console, table: Table) -> None:
    """Prints a table, cut to the terminal's width; as wide as it is where there is no terminal."""
    target = console if console.is_terminal else Console(file=console.file, width=_PIPE, highlight=False)
    target.print(table)


def column_table(*headings: str) -> Table:
    """Returns an empty table without lines; on a narrow terminal, no column gets narrower than its heading."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, no_wrap=True, overflow="ellipsis", min_width=len(heading))
    return table


def _load(options: ShowOptions, errors: Console) -> tuple[Segmenter, PromptSet, Origins]:
    """Loads the model, and classes, a prompt set or a bank."""
    classes = bool(options.text or options.references or options.refs.places or options.vocabularies)
    if options.place is not None and classes:
        raise PromptError(
            f"{options.place} already holds classes; leave it out, or --text, --ref, --refs, --vocabulary"
        )
    if options.place is None and not classes:
        raise PromptError("nothing to show; name a prompt set, a bank, or classes: --text cat, --vocabulary coco")
    from dpseg.explain.origins import bank_prompts_of, find_origins
    from dpseg.prompts.banks import open_bank
    from dpseg.prompts.prompt_set import PromptSet
    from dpseg.segmenter import Segmenter
    from dpseg.tensor_files import kind_of

    if options.place is None:
        check_classes(options)
        loaded = load_classes(options, errors, options.store, options.feature_prompts)
        origins = find_origins(loaded.segmenter, loaded.prompts, loaded.text, loaded.references)
        return loaded.segmenter, loaded.prompts, origins
    if not options.place.exists():
        raise PromptError(f"{options.place}: no such file or folder; give a prompt set or a bank")
    if options.place.is_dir() or kind_of(options.place) == "bank":
        bank = open_bank(options.place)
        segmenter = Segmenter.from_pretrained(options.model, options.device)
        return segmenter, *bank_prompts_of(segmenter, bank, options.limit)
    prompts = PromptSet.load(options.place)
    segmenter = Segmenter.from_pretrained(options.model, options.device, options.store, options.feature_prompts)
    if not options.bank:
        segmenter.bank = None
    prompts = segmenter.usable(prompts)
    return segmenter, prompts, find_origins(segmenter, prompts)


def _drawn(report: PromptReport, options: ShowOptions) -> bytes:
    from dpseg.explain.page import html_page
    from dpseg.explain.sheet import png_sheet

    assert options.out is not None
    what = options.place.name if options.place is not None else "prompts"
    title = f"{what}, {options.model}"
    return (html_page if options.out.suffix.lower() == ".html" else png_sheet)(report, title)


def _table(report: PromptReport) -> Table:
    table = column_table("class", "prompts", "pictures", "agreement", "nearest", "cosine", "in the bank")
    marked = {name for warning in report.warnings for name in warning.classes}
    for one in report.classes:
        near = one.nearest.get("dual")
        table.add_row(
            Text(one.name, style="bold yellow" if one.name in marked else ""),
            Text(", ".join(one.sources)),
            str(len(one.pictures) or ""),
            "" if one.agreement is None else f"{one.agreement:.2f}",
            Text("" if near is None else near.name),
            "" if near is None else f"{near.cosine:.2f}",
            Text(_shares(one)),
        )
    return table


def _shares(report: ClassReport) -> str:
    return ", ".join(f"{share.name} {share.share:.0%}" for share in report.bank)
