"""The commands of a bank of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dpseg.commands import options

bank_app = typer.Typer(help="A bank of pictures by name: what words without pictures are given.")

_PICTURES, _LABELLED = "Pictures", "Objects of labelled photos"

_Bank = Annotated[Path, typer.Argument(metavar="BANK", help="Folder of the bank.")]


@bank_app.command()
def add(
    bank: _Bank,
    folder: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="Pictures, as NAME/PICTURE.jpg.")] = None,
    ref: Annotated[
        list[str] | None,
        typer.Option(
            "--ref",
            "-r",
            metavar="NAME=PICTURE",
            help="With a mask, NAME=PICTURE:MASK, or a box, NAME=PICTURE:x0,y0,x1,y1.",
            rich_help_panel=_PICTURES,
        ),
    ] = None,
    license_: Annotated[
        str, typer.Option("--license", metavar="TEXT", help="Kept with each picture.", rich_help_panel=_PICTURES)
    ] = "",
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|FILE|NAME",
            help="Folder with images/, masks/ and classes.txt, COCO file, or name of a benchmark.",
            rich_help_panel=_LABELLED,
        ),
    ] = None,
    per_class: Annotated[
        int, typer.Option(help="Of each class so many, large ones that differ.", rich_help_panel=_LABELLED)
    ] = 10,
    split: Annotated[
        str, typer.Option(help="Photos named in SPLIT.txt, or a benchmark's split.", rich_help_panel=_LABELLED)
    ] = "all",
    root: options.Root = None,
    ref_context: Annotated[str, typer.Option(metavar=options.CONTEXTS, help=options.CONTEXT_HELP)] = "keep",
    model: options.Model = "dpseg-lite",
    device: options.Device = None,
) -> None:
    """Add pictures; what is in the bank already is not encoded again."""
    from dpseg.commands.bank_add import AddOptions
    from dpseg.commands.bank_add import add as run_add
    from dpseg.commands.reference_sets import context_of

    asked = AddOptions(
        bank=bank,
        folder=folder,
        references=tuple(ref or ()),
        data=data,
        per_class=per_class,
        split=None if split == "all" else split,
        root=root,
        context=context_of(ref_context),
        license=license_,
        model=model,
        device=device,
    )
    raise typer.Exit(run_add(asked, _console(), _errors()))


@bank_app.command("list")
def list_(
    bank: _Bank,
    name: Annotated[str | None, typer.Option(help="All pictures of this name.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """List names, how many pictures they have, and where these come from."""
    from dpseg.commands.bank import list_bank

    raise typer.Exit(list_bank(bank, name, as_json, _console()))


@bank_app.command()
def remove(
    bank: _Bank,
    name: Annotated[str | None, typer.Option(help="All pictures of this name.")] = None,
    key: Annotated[str | None, typer.Option(help="One picture: its key, as list --name shows it.")] = None,
) -> None:
    """Remove pictures; their features stay on the disk until compact."""
    from dpseg.commands.bank import remove as run_remove

    raise typer.Exit(run_remove(bank, name, key, _console()))


@bank_app.command()
def merge(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the bank that takes them.")],
    banks: Annotated[list[Path], typer.Argument(metavar="BANK...", help="Folders, or files of banks.")],
) -> None:
    """Write what several banks of one encoder hold into one, without what is damaged."""
    from dpseg.commands.bank import merge as run_merge

    raise typer.Exit(run_merge(out, banks, _console(), _errors()))


@bank_app.command()
def compact(bank: _Bank) -> None:
    """Write a bank anew, without what was removed."""
    from dpseg.commands.bank import compact as run_compact

    raise typer.Exit(run_compact(bank, _console()))


@bank_app.command()
def verify(bank: _Bank) -> None:
    """Check that all of a bank is as it was written."""
    from dpseg.commands.bank import verify as run_verify

    raise typer.Exit(run_verify(bank, _console(), _errors()))


@bank_app.command()
def search(
    bank: _Bank,
    word: Annotated[str, typer.Argument(metavar="WORD", help='cat, or with synonyms "couch, sofa".')],
    top: Annotated[int, typer.Option(help="So many names.")] = 5,
    model: options.Model = "dpseg-lite",
    device: options.Device = None,
) -> None:
    """Show which names of a bank a word gets, and with which weights."""
    from dpseg.commands.bank import search as run_search

    raise typer.Exit(run_search(bank, word, top, model, device, _console(), _errors()))


@bank_app.command()
def export(
    bank: _Bank,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="bank.safetensors beside a model.")],
) -> None:
    """Write a bank into the one file that ships with a model."""
    from dpseg.commands.bank import export as run_export

    raise typer.Exit(run_export(bank, file, _console()))


def _console() -> Console:
    return Console(highlight=False)


def _errors() -> Console:
    return Console(stderr=True, highlight=False)
