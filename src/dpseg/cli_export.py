"""The options of export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dpseg.commands import options

app = typer.Typer()


@app.command()
def export(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The file.", show_default=False)],
    form: Annotated[
        str,
        typer.Option("--format", "-f", metavar="onnx|torch-export", help="For onnxruntime, or for torch.export.load."),
    ] = "onnx",
    int8: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PHOTOS",
            help="Encode images in 8-bit integers, whose ranges are measured on these photos (files, folders, globs; a"
            " dozen or more like those to come): a third of the size, and some labels change.",
        ),
    ] = None,
    model: options.Model = "dpseg-lite",
    text: options.Text = None,
    ref: options.References = None,
    vocabulary: options.Vocabularies = None,
    prompts: options.Prompts = None,
    no_bank: options.NoBank = False,
) -> None:
    """Write a model as one file for other runtimes; classes that are given are frozen in, else prompts are inputs."""
    from dpseg.commands.export import ExportOptions
    from dpseg.commands.export import export as run_export

    asked = ExportOptions(
        text=tuple(text or ()),
        references=tuple(ref or ()),
        vocabularies=tuple(vocabulary or ()),
        prompts=prompts,
        bank=not no_bank,
        model=model,
        device="cpu",
        out=out,
        form=form,
        int8=tuple(int8 or ()),
    )
    raise typer.Exit(run_export(asked, Console(highlight=False), Console(stderr=True, highlight=False)))
