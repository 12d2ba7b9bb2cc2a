"""The commands of a researcher: evaluate, train, ablate, look after data sets, convert weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dpseg.commands import options
from dpseg.errors import ConfigError

app = typer.Typer()
data_app = typer.Typer(help="Labelled data sets: make them ready, look for what is broken.")
app.add_typer(data_app, name="data")
convert_app = typer.Typer(help="Turn other systems' weights into model folders.")
app.add_typer(convert_app, name="convert")


@app.command()
def evaluate(
    data: Annotated[
        str | None,
        typer.Argument(help="Folder with images/, masks/ and classes.txt, COCO file, or name of a benchmark."),
    ] = None,
    sets: options.DataSets = None,
    root: options.Root = None,
    split: Annotated[str, typer.Option(help="Photos named in SPLIT.txt; all: every photo.")] = "val",
    prompts: Annotated[
        str, typer.Option(help="text, bank (text and a bank), pictures, both, with commas; or all.")
    ] = "both",
    bank: options.BankPlace = None,
    refine: Annotated[str, typer.Option(metavar="off|on|both", help="Inference I, II, or a row for each.")] = "both",
    names: Annotated[
        str | None,
        typer.Option(
            "--names", "--vocabulary", metavar="NAME|FILE", help="Other words, a line for each line of classes.txt."
        ),
    ] = None,
    ignore_background: Annotated[
        bool,
        typer.Option(
            "--ignore-background/--count-background", help="Where line 0 is background: leave its pixels out, or not."
        ),
    ] = True,
    background: Annotated[
        float, typer.Option(help="With --count-background: pixels that score below it are background.")
    ] = options.DEFAULT_BACKGROUND,
    references: Annotated[int, typer.Option(help="Reference pictures a class, from photos outside the split.")] = 3,
    seed: Annotated[int, typer.Option(help="Which reference pictures.")] = 0,
    ref_context: Annotated[str, typer.Option(metavar=options.CONTEXTS, help=options.CONTEXT_HELP)] = "keep",
    limit: Annotated[int | None, typer.Option(help="So many photos only, spread over the split.")] = None,
    seen: options.Seen = None,
    out: options.Report = None,
    processes: options.Processes = 1,
    threads: options.Threads = None,
    shard: options.Shard = None,
    block: options.Block = 16,
    model: options.Model = "dpseg-lite",
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Measure what the model was before training, the plain cosine.")
    ] = False,
    device: options.Device = None,
    size: options.Size = None,
    match: options.Match = None,
    max_classes: options.MaxClasses = None,
    keep_top: options.KeepTop = None,
    precision: options.Precision = "32",
) -> None:
    """Measure a model on labelled photos: print Markdown tables, write a report."""
    from dpseg.commands.evaluate import EvaluateOptions, prompt_kinds, refine_rows, shard_of
    from dpseg.commands.evaluate import evaluate as run_evaluate
    from dpseg.commands.reference_sets import context_of
    from dpseg.config import EvalConfig
    from dpseg.matching import matching_of
    from dpseg.precision import precision_of
    from dpseg.rejection import rejection_of

    config = EvalConfig(
        prompts=prompt_kinds(prompts),
        refine=refine_rows(refine),
        references=references,
        seed=seed,
        ref_context=context_of(ref_context),
        ignore_background=ignore_background,
        background=background,
        size=size,
        limit=limit,
        block=block,
    )
    asked = EvaluateOptions(
        data=data,
        config=config,
        split=None if split == "all" else split,
        names=names,
        model=model,
        untrained=untrained,
        matching=None if match is None else matching_of(match),
        rejection=rejection_of(max_classes, keep_top),
        precision=precision_of(precision),
        device=device,
        out=out,
        sets=tuple(word.strip() for word in (sets or "").split(",") if word.strip()),
        root=root,
        processes=processes,
        threads=threads,
        shard=None if shard is None else shard_of(shard),
        seen=seen,
        store=bank,
    )
    raise typer.Exit(run_evaluate(asked, Console(highlight=False), Console(stderr=True, highlight=False)))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    config: Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="Recipe, such as configs/lite.yaml.")],
    devices: Annotated[int, typer.Option(min=1, help="Processes on this machine, one a device.")] = 1,
    accelerator: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    nodes: Annotated[int, typer.Option(min=1, help="Machines; start them with torchrun.")] = 1,
    resume: Annotated[
        str, typer.Option(metavar="auto|no", help="Go on from the run's last checkpoint, where there is one; or not.")
    ] = "auto",
) -> None:
    """Train a model; any field of the recipe can be changed with --field value."""
    from dpseg.commands.train import TrainOptions
    from dpseg.commands.train import train as run_train

    if resume not in ("auto", "no"):
        raise ConfigError(f"resume {resume!r} is neither auto nor no")
    asked = TrainOptions(config, context.args, resume == "auto", devices, accelerator, nodes)
    raise typer.Exit(run_train(asked, Console(highlight=False)))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def ablate(
    context: typer.Context,
    data: Annotated[
        str, typer.Option("--data", metavar="NAME|PLACE", help="What is measured: folder, COCO file or benchmark.")
    ],
    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="Recipe, such as configs/lite-small.yaml.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="A trained model in place of a recipe, once for each seed."),
    ] = None,
    data_root: Annotated[
        Path | None,
        typer.Option("--data-root", "--data_root", metavar="DIR", help="Where data sets are. Default: the recipe's."),
    ] = None,
    split: Annotated[str, typer.Option(help="Photos named in SPLIT.txt, or a benchmark's split.")] = "val",
    tables: Annotated[
        str, typer.Option(help="prompts, fusion, guidance, templates, noise, refinement, with commas; or all.")
    ] = "all",
    seeds: Annotated[int | None, typer.Option(help="Trainings of each variant. Default: 3.")] = None,
    limit: Annotated[int | None, typer.Option(help="So many photos only, spread over the split.")] = None,
    references: Annotated[int, typer.Option(help="Reference pictures a class, from photos outside the split.")] = 3,
    noise: Annotated[str, typer.Option(help="Strengths, relative to the prompts' length, with commas.")] = "0.5,1.0",
    processes: options.Processes = 1,
    threads: options.Threads = None,
    device: options.Device = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of runs and tables.")] = Path(
        "runs/ablate"
    ),
) -> None:
    """Repeat the paper's ablations on a recipe; any field of it can be changed with --field value."""
    from dpseg.commands.ablate import AblateOptions
    from dpseg.commands.ablate import ablate as run_ablate
    from dpseg.config import EvalConfig

    asked = AblateOptions(
        data=data,
        out=out,
        recipe=config,
        overrides=tuple(context.args),
        models=tuple(model or ()),
        data_root=data_root,
        split=None if split == "all" else split,
        tables=tables,
        seeds=seeds,
        config=EvalConfig(references=references, limit=limit),
        noise=noise,
        processes=processes,
        threads=threads,
        device=device,
    )
    raise typer.Exit(run_ablate(asked, Console(highlight=False), Console(stderr=True, highlight=False)))


@app.command()
def average(
    models: Annotated[list[str], typer.Argument(help="Names, folders or hub ids, two or more.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder.", show_default=False)],
) -> None:
    """Average the weights of models that went on from the same one, as one model (a model soup)."""
    from dpseg.commands.average import average as run_average

    raise typer.Exit(run_average(models, out, Console(highlight=False)))


@data_app.command("prepare")
def data_prepare(
    name: Annotated[str, typer.Argument(metavar="NAME", help="a847, pc59, pc459; the others are read as they are.")],
    root: Annotated[Path, typer.Option(metavar="DIR", help="Where the official download was unpacked.")] = Path(),
    split: Annotated[str, typer.Option(help="train or val.")] = "val",
) -> None:
    """Write a benchmark's masks as PNG files, once, so that they are read fast."""
    from dpseg.commands.data import DataOptions
    from dpseg.commands.data import prepare as run_prepare

    asked = DataOptions(name, root, split)
    raise typer.Exit(run_prepare(asked, Console(highlight=False), Console(stderr=True, highlight=False)))


@data_app.command("check")
def data_check(
    data: Annotated[
        str, typer.Argument(metavar="NAME|PLACE", help="A benchmark such as a150 or pc59, a folder or a COCO file.")
    ],
    root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the download, or the photos of a COCO file, are.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, val, ...; all: every photo of a folder.")] = "val",
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="classes.csv and classes.png.")] = None,
) -> None:
    """Read a whole data set: print its classes and whatever is broken."""
    from dpseg.commands.data import DataOptions
    from dpseg.commands.data import check as run_check

    asked = DataOptions(data, root, None if split == "all" else split, out)
    raise typer.Exit(run_check(asked, Console(highlight=False), Console(stderr=True, highlight=False)))


@convert_app.command("sed")
def convert_sed(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT.pth", help="As SED publishes it.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder, to give as --model.")],
) -> None:
    """Turn a checkpoint of SED (CVPR 2024) into a model folder."""
    from dpseg.commands.convert import convert_sed as run_convert

    raise typer.Exit(run_convert(checkpoint, out, Console(highlight=False)))


@convert_app.callback()
def _convert() -> None:
    """Turn other systems' weights into model folders."""
