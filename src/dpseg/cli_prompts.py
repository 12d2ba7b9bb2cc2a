"""The commands that make prompts: pictures of classes, painted."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from dpseg.commands import options

prompts_app = typer.Typer(help="Visual prompts: pictures of classes, painted by a text-to-image model.")

_PAINTER, _FAILED = "How they are painted", "What becomes of pictures that fail"


@prompts_app.callback()
def _prompts() -> None:
    """Visual prompts: pictures of classes, painted by a text-to-image model."""


@prompts_app.command("generate")
def prompts_generate(
    out: options.Out,
    text: options.Text = None,
    vocabulary: options.Vocabularies = None,
    per_class: Annotated[int, typer.Option(help="Pictures a class.", rich_help_panel=options.CLASSES)] = 10,
    templates: Annotated[
        int, typer.Option(metavar="1..80", help="Sentences that take turns.", rich_help_panel=options.CLASSES)
    ] = 10,
    generator: Annotated[
        str,
        typer.Option(
            "--generator",
            "-g",
            metavar="MODEL|FOLDER",
            help="A pipeline of diffusers: user/model on the Hugging Face hub, or its folder.",
            rich_help_panel=_PAINTER,
        ),
    ] = "stabilityai/stable-diffusion-2-1",
    negative: Annotated[
        str, typer.Option(metavar="TEXT", help="What is not to be seen.", rich_help_panel=_PAINTER)
    ] = "",
    steps: Annotated[
        int | None, typer.Option(help="Of denoising. Default: the pipeline's own.", rich_help_panel=_PAINTER)
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(help="How closely words are followed. Default: the pipeline's own.", rich_help_panel=_PAINTER),
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Side in pixels. Default: the pipeline's own.", rich_help_panel=_PAINTER)
    ] = None,
    seed: Annotated[int, typer.Option(help="Another gives other pictures.", rich_help_panel=_PAINTER)] = 0,
    batch_size: Annotated[
        int | None, typer.Option(help="Pictures at a time. Default: as suits the device.", rich_help_panel=_PAINTER)
    ] = None,
    device: options.Device = None,
    dtype: Annotated[
        str,
        typer.Option(metavar="auto|32|16|bf16", help="Numbers of the pipeline.", rich_help_panel=_PAINTER),
    ] = "auto",
    license_: Annotated[
        str | None,
        typer.Option(
            "--license", metavar="TEXT", help="The pipeline's, if its card does not say.", rich_help_panel=_PAINTER
        ),
    ] = None,
    model: options.Model = "dpseg-lite",
    min_agreement: Annotated[
        float | None,
        typer.Option(
            help="Reject pictures whose cosine with their class is below it, -1 to 1.", rich_help_panel=_FAILED
        ),
    ] = None,
    retries: Annotated[int, typer.Option(help="Tries more for a rejected picture.", rich_help_panel=_FAILED)] = 2,
    keep_all: Annotated[
        bool,
        typer.Option(
            "--keep-all",
            help="Keep what still fails after the last try, but for what the safety checker flags.",
            rich_help_panel=_FAILED,
        ),
    ] = False,
    save_prompts: options.SavePrompts = None,
) -> None:
    """Paint pictures of classes by a text-to-image model, as the paper does; paint only what is missing."""
    from dpseg.commands.generate import GenerateOptions
    from dpseg.commands.generate import generate as run_generate

    asked = GenerateOptions(
        out=out,
        text=tuple(text or ()),
        vocabularies=tuple(vocabulary or ()),
        generator=generator,
        per_class=per_class,
        templates=templates,
        negative=negative,
        steps=steps,
        guidance=guidance,
        size=size,
        seed=seed,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        model=model,
        min_agreement=min_agreement,
        retries=retries,
        keep_all=keep_all,
        license=license_,
        save_prompts=save_prompts,
    )
    raise typer.Exit(run_generate(asked, Console(highlight=False), Console(stderr=True, highlight=False)))
