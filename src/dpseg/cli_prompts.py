"""The commands that make prompts, pictures of classes, and that show what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dpseg.commands import options

prompts_app = typer.Typer(help="Visual prompts: pictures of classes; painted, collected, looked at.")

_PAINTER, _FAILED = "How they are painted", "What becomes of pictures that fail"


@prompts_app.callback()
def _prompts() -> None:
    """Visual prompts: pictures of classes; painted, collected, looked at."""


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


_Json = Annotated[bool, typer.Option("--json", help="For programs.", rich_help_panel=options.RESULTS)]


@prompts_app.command("show")
def prompts_show(
    place: Annotated[
        Path | None, typer.Argument(metavar="[SET]", help="File of a prompt set, or file or folder of a bank.")
    ] = None,
    text: options.Text = None,
    ref: options.References = None,
    refs: options.Refs = None,
    refs_per_class: options.RefsPerClass = 5,
    split: options.RefsSplit = "all",
    ref_context: options.RefContext = "keep",
    vocabulary: options.Vocabularies = None,
    bank: options.BankPlace = None,
    no_bank: options.NoBank = False,
    feature_prompts: options.FeaturePrompts = "blend",
    limit: Annotated[int, typer.Option(help="Of a bank: the first so many names.")] = 100,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE.html|FILE.png", help="Page or picture.", rich_help_panel=options.RESULTS
        ),
    ] = None,
    as_json: _Json = False,
    model: options.Model = "dpseg-lite",
    device: options.Device = None,
) -> None:
    """Show how words, pictures and classes lie to each other, and warn of what looks wrong."""
    from dpseg.commands.prompts_input import feature_kind
    from dpseg.commands.prompts_show import ShowOptions
    from dpseg.commands.prompts_show import show as run_show
    from dpseg.commands.reference_sets import RefsOptions, context_of

    asked = ShowOptions(
        place=place,
        text=tuple(text or ()),
        references=tuple(ref or ()),
        refs=RefsOptions(tuple(refs or ()), refs_per_class, None if split == "all" else split, context_of(ref_context)),
        vocabularies=tuple(vocabulary or ()),
        bank=not no_bank,
        store=bank,
        feature_prompts=feature_kind(feature_prompts),
        limit=limit,
        out=out,
        as_json=as_json,
        model=model,
        device=device,
    )
    raise typer.Exit(run_show(asked, Console(highlight=False), Console(stderr=True, highlight=False)))


@prompts_app.command("explain")
def prompts_explain(
    photo: Annotated[Path, typer.Argument(help="A file.")],
    at: Annotated[list[str], typer.Option(metavar="X,Y", help="A pixel, from the top left corner; several times.")],
    text: options.Text = None,
    ref: options.References = None,
    refs: options.Refs = None,
    refs_per_class: options.RefsPerClass = 5,
    split: options.RefsSplit = "all",
    ref_context: options.RefContext = "keep",
    vocabulary: options.Vocabularies = None,
    prompts: options.Prompts = None,
    bank: options.BankPlace = None,
    no_bank: options.NoBank = False,
    feature_prompts: options.FeaturePrompts = "blend",
    classes: Annotated[int, typer.Option(help="So many a pixel, the best.")] = 3,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE.png", help="Figure.", rich_help_panel=options.RESULTS),
    ] = None,
    as_json: _Json = False,
    model: options.Model = "dpseg-lite",
    refine: options.Refine = None,
    device: options.Device = None,
    size: options.Size = None,
) -> None:
    """Say which class won at a pixel of a photo, by how much, and why."""
    from dpseg.commands.prompts_explain import PixelOptions, parse_point
    from dpseg.commands.prompts_explain import explain as run_explain
    from dpseg.commands.prompts_input import feature_kind
    from dpseg.commands.reference_sets import RefsOptions, context_of

    asked = PixelOptions(
        photo=photo,
        points=tuple(parse_point(one) for one in at),
        text=tuple(text or ()),
        references=tuple(ref or ()),
        refs=RefsOptions(tuple(refs or ()), refs_per_class, None if split == "all" else split, context_of(ref_context)),
        vocabularies=tuple(vocabulary or ()),
        prompts=prompts,
        bank=not no_bank,
        store=bank,
        feature_prompts=feature_kind(feature_prompts),
        classes=classes,
        refine=refine,
        size=size,
        out=out,
        as_json=as_json,
        model=model,
        device=device,
    )
    raise typer.Exit(run_explain(asked, Console(highlight=False), Console(stderr=True, highlight=False)))
