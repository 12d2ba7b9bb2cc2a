"""The options of serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dpseg.commands import options

app = typer.Typer()

_ADDRESS, _LIMITS, _KEPT = "Address", "Limits", "Prompts that are kept"


@app.command()
def serve(
    api: Annotated[
        bool, typer.Option("--api", help="The HTTP API alone, without the page.", rich_help_panel=_ADDRESS)
    ] = False,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0: all of the machine's.", rich_help_panel=_ADDRESS)
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free.", rich_help_panel=_ADDRESS)] = 7860,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="DPSEG_TOKEN",
            show_default=False,
            help="Callers have to send it. The variable is better: other users of the machine can see options.",
            rich_help_panel=_ADDRESS,
        ),
    ] = None,
    max_body: Annotated[float, typer.Option(metavar="MB", help="Of a request.", rich_help_panel=_LIMITS)] = 32,
    max_pixels: Annotated[
        float, typer.Option(metavar="MEGAPIXELS", help="Of the photo.", rich_help_panel=_LIMITS)
    ] = 24,
    max_reference_pixels: Annotated[
        float,
        typer.Option(metavar="MEGAPIXELS", help="Of all reference pictures of a request.", rich_help_panel=_LIMITS),
    ] = 100,
    max_names: Annotated[int, typer.Option(help="Classes of a request.", rich_help_panel=_LIMITS)] = 200,
    max_references: Annotated[int, typer.Option(help="Pictures of a request.", rich_help_panel=_LIMITS)] = 50,
    queue: Annotated[int, typer.Option(help="Requests in work; more get 503.", rich_help_panel=_LIMITS)] = 32,
    per_client: Annotated[int, typer.Option(help="Of one address; more get 429.", rich_help_panel=_LIMITS)] = 16,
    body_seconds: Annotated[
        float, typer.Option(metavar="SECONDS", help="In which a request has to arrive.", rich_help_panel=_LIMITS)
    ] = 30,
    grace: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="At the stop, for requests in work. Default: as long as they need.",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    prompts_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where POST /v1/prompts keeps them; else in memory.", rich_help_panel=_KEPT),
    ] = None,
    max_saved: Annotated[int, typer.Option(help="So many in DIR; the oldest make room.", rich_help_panel=_KEPT)] = 1000,
    prompts_memory: Annotated[
        float, typer.Option(metavar="MB", help="For saved ones, and as much for others.", rich_help_panel=_KEPT)
    ] = 256,
    bank: options.BankPlace = None,
    no_bank: options.NoBank = False,
    model: options.Model = "dpseg-lite",
    device: options.Device = None,
    batch_size: options.BatchSize = None,
    precision: options.Precision = "32",
    workers: Annotated[
        int | None,
        typer.Option(help="Batches in work at a time. Default: 1 on a GPU, one a core on a CPU, 4 at most."),
    ] = None,
) -> None:
    """Open a page for photos, names and reference pictures; other programs use the same address over HTTP."""
    from dpseg.commands.serve import ServeOptions
    from dpseg.commands.serve import serve as run_serve
    from dpseg.precision import precision_of
    from dpseg.serving.settings import ServeSettings

    settings = ServeSettings(
        token=token,
        prompts_dir=prompts_dir,
        max_body_mb=max_body,
        max_megapixels=max_pixels,
        max_reference_megapixels=max_reference_pixels,
        max_names=max_names,
        max_references=max_references,
        max_saved=max_saved,
        prompts_memory_mb=prompts_memory,
        queue=queue,
        per_client=per_client,
        batch_size=batch_size,
        workers=workers,
        body_seconds=body_seconds,
    )
    asked = ServeOptions(settings, api, host, port, grace, model, device, bank, not no_bank, precision_of(precision))
    raise typer.Exit(run_serve(asked, Console(highlight=False), Console(stderr=True, highlight=False)))
