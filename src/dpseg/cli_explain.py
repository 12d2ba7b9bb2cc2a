"""The commands that show why a model decides as it does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dpseg.commands import options

explain_app = typer.Typer(help="The paper's figures, of any model: embeddings and cost volumes.")

_Folder = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the figures.")]


@explain_app.command()
def gap(
    data: Annotated[
        str, typer.Argument(help="Folder with images/, masks/ and classes.txt, COCO file, or name of a benchmark.")
    ],
    out: _Folder,
    model: options.Model = "dpseg-lite",
    split: Annotated[str, typer.Option(help="Photos named in SPLIT.txt, or a benchmark's split.")] = "val",
    root: options.Root = None,
    references: Annotated[int, typer.Option(help="Reference pictures a class, from photos outside the split.")] = 3,
    seed: Annotated[int, typer.Option(help="Which reference pictures and photos.")] = 0,
    classes: Annotated[int | None, typer.Option(help="Only so many, those that the most photos show.")] = None,
    per_class: Annotated[int, typer.Option(help="So many photos of a class at most.")] = 20,
    device: options.Device = None,
) -> None:
    """Measure how near text, visual and dual prompts lie to images of their classes; draw all by t-SNE."""
    from dpseg.commands.explain import GapOptions
    from dpseg.commands.explain import gap as run_gap
    from dpseg.explain.gap import GapConfig

    config = GapConfig(references, seed, classes, per_class)
    asked = GapOptions(data, config, out, None if split == "all" else split, root, model, device)
    raise typer.Exit(run_gap(asked, Console(highlight=False), Console(stderr=True, highlight=False)))


@explain_app.command()
def cost(
    photo: Annotated[Path, typer.Argument(help="A file.")],
    out: _Folder,
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
    classes: Annotated[int, typer.Option(help="So many rows at most, those with the largest area.")] = 6,
    model: options.Model = "dpseg-lite",
    device: options.Device = None,
    size: options.Size = None,
) -> None:
    """Draw the cost volumes of a photo, class by class, and Inference I beside Inference II."""
    from dpseg.commands.explain import CostOptions
    from dpseg.commands.explain import cost as run_cost
    from dpseg.commands.prompts_input import feature_kind
    from dpseg.commands.reference_sets import RefsOptions, context_of

    asked = CostOptions(
        photo=photo,
        out=out,
        text=tuple(text or ()),
        references=tuple(ref or ()),
        refs=RefsOptions(tuple(refs or ()), refs_per_class, None if split == "all" else split, context_of(ref_context)),
        vocabularies=tuple(vocabulary or ()),
        prompts=prompts,
        bank=not no_bank,
        store=bank,
        feature_prompts=feature_kind(feature_prompts),
        classes=classes,
        model=model,
        device=device,
        size=size,
    )
    raise typer.Exit(run_cost(asked, Console(highlight=False), Console(stderr=True, highlight=False)))
