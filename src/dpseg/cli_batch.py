"""The options of batch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dpseg.commands import options
from dpseg.commands.refinement import FlagWithValue, read_refinement

app = typer.Typer()

_ENGINE = "Engine"


@app.command(cls=FlagWithValue)
def batch(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC",
            help="Folders, globs, lists (.txt, one a line), tar shards; on a disk or at addresses such as s3://.",
        ),
    ],
    prompts: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Classes that dpseg predict --save-prompts kept.",
            show_default=False,
            rich_help_panel=options.CLASSES,
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            metavar="DST",
            help="Folder or address; the same command goes on where it was stopped.",
            show_default=False,
            rich_help_panel=options.RESULTS,
        ),
    ],
    formats: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            help="parquet (masks in the tables), png (label maps), with commas.",
            rich_help_panel=options.RESULTS,
        ),
    ] = "parquet",
    block: Annotated[
        int,
        typer.Option(help="Pictures a table, and what a kill costs a worker at most.", rich_help_panel=options.RESULTS),
    ] = 64,
    retry_broken: Annotated[
        bool,
        typer.Option(
            "--retry-broken",
            help="Segment blocks again that have pictures which could not be read.",
            rich_help_panel=options.RESULTS,
        ),
    ] = False,
    background: options.Background = None,
    match: options.Match = None,
    max_classes: options.MaxClasses = None,
    keep_top: options.KeepTop = None,
    precision: options.Precision = "32",
    model: options.Model = "dpseg-lite",
    refine: options.RefineHow = None,
    device: options.Device = None,
    batch_size: options.BatchSize = None,
    size: options.Size = None,
    engine: Annotated[
        str, typer.Option(metavar="local|ray", help="One process, or workers of Ray Data.", rich_help_panel=_ENGINE)
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option(
            help="Of Ray, each with a model. Default: one a GPU, or one for every two cores.", rich_help_panel=_ENGINE
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Cores of each worker. Default: shared out.", rich_help_panel=_ENGINE)
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT|auto",
            help="A Ray that runs already. Default: RAY_ADDRESS, or a new one on this machine.",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
) -> None:
    """Segment any number of pictures: tables of masks or label maps, exactly resumable."""
    from dpseg.commands.batch import BatchOptions
    from dpseg.commands.batch import batch as run_batch
    from dpseg.matching import matching_of
    from dpseg.precision import precision_of
    from dpseg.rejection import rejection_of

    asked = BatchOptions(
        sources=tuple(sources),
        prompts=prompts,
        out=out,
        formats=tuple(dict.fromkeys(part.strip() for part in formats.split(",") if part.strip())),
        block=block,
        retry_broken=retry_broken,
        background=options.read_background(background),
        matching=None if match is None else matching_of(match),
        rejection=rejection_of(max_classes, keep_top),
        precision=precision_of(precision),
        model=model,
        refine=read_refinement(refine),
        device=device,
        batch_size=batch_size,
        size=size,
        engine=engine,
        workers=workers,
        threads=threads,
        cluster=cluster,
    )
    raise typer.Exit(run_batch(asked, Console(highlight=False), Console(stderr=True, highlight=False)))
