"""The command line. It reads the options; torch and the model are loaded by the commands that need them."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dpseg import __version__, cli_bank, cli_batch, cli_explain, cli_export, cli_prompts, cli_research, cli_serve
from dpseg.commands import options
from dpseg.commands.refinement import FlagWithValue, read_refinement
from dpseg.errors import DPSegError

OUR_MISTAKE, USER_MISTAKE, INTERRUPTED = 1, 2, 130
"""Exit statuses."""

app = typer.Typer(
    name="dpseg",
    help="Name every pixel of a photo from words and reference pictures.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cli_batch.app)
app.add_typer(cli_export.app)
app.add_typer(cli_research.app)
app.add_typer(cli_serve.app)
app.add_typer(cli_explain.explain_app, name="explain")
cli_prompts.prompts_app.add_typer(cli_bank.bank_app, name="bank")
app.add_typer(cli_prompts.prompts_app, name="prompts")


@app.callback()
def _app(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Has the options that go with every command; `run` looks for --debug itself."""


@app.command(cls=FlagWithValue)
def predict(
    photos: options.Photos,
    text: options.Text = None,
    ref: options.References = None,
    refs: options.Refs = None,
    refs_per_class: options.RefsPerClass = 5,
    split: options.RefsSplit = "all",
    ref_context: options.RefContext = "keep",
    vocabulary: options.Vocabularies = None,
    prompts: options.Prompts = None,
    save_prompts: options.SavePrompts = None,
    bank: options.BankPlace = None,
    no_bank: options.NoBank = False,
    feature_prompts: options.FeaturePrompts = "blend",
    match: options.Match = None,
    max_classes: options.MaxClasses = None,
    keep_top: options.KeepTop = None,
    precision: options.Precision = "32",
    background: options.Background = None,
    out: options.Out = Path("out"),
    formats: options.Formats = "png,json,overlay",
    model: options.Model = "dpseg-lite",
    refine: options.RefineHow = None,
    device: options.Device = None,
    batch_size: options.BatchSize = None,
    size: options.Size = None,
    tile: options.Tile = None,
    tile_overlap: options.TileOverlap = None,
    smooth: options.Smooth = None,
) -> None:
    """Segment photos or videos: print what is found, write labels and overlays."""
    from dpseg.commands.predict import PredictOptions
    from dpseg.commands.predict import predict as run_predict
    from dpseg.commands.predict_tiles import tiling_of
    from dpseg.commands.prompts_input import feature_kind
    from dpseg.commands.reference_sets import RefsOptions, context_of
    from dpseg.matching import matching_of
    from dpseg.precision import precision_of
    from dpseg.rejection import rejection_of

    asked = PredictOptions(
        photos=tuple(photos),
        text=tuple(text or ()),
        references=tuple(ref or ()),
        refs=RefsOptions(tuple(refs or ()), refs_per_class, None if split == "all" else split, context_of(ref_context)),
        vocabularies=tuple(vocabulary or ()),
        prompts=prompts,
        save_prompts=save_prompts,
        out=out,
        formats=tuple(part.strip() for part in formats.split(",") if part.strip()),
        model=model,
        refine=read_refinement(refine),
        bank=not no_bank,
        store=bank,
        feature_prompts=feature_kind(feature_prompts),
        matching=None if match is None else matching_of(match),
        rejection=rejection_of(max_classes, keep_top),
        precision=precision_of(precision),
        background=options.read_background(background),
        device=device,
        batch_size=batch_size,
        size=size,
        tiling=tiling_of(tile, tile_overlap),
        smooth=smooth,
    )
    raise typer.Exit(run_predict(asked, Console(highlight=False), Console(stderr=True, highlight=False)))


@app.command()
def info() -> None:
    """Print versions, models, and what is installed."""
    from dpseg.commands.info import info as lines

    rows = lines()
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
        typer.echo(f"{label:<{width}}  {value}")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dpseg {__version__}")
        raise typer.Exit


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit status; errors become one line on the standard error.

    Args:
        arguments: without the program's name.
    """
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    debug = "--debug" in arguments[:end]
    # By default oneDNN, under torch, keeps code for 1024 convolutions, among them those of every photo size it met:
    # over 200 photos that takes some 200 MB more, and saves no time.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
    plain = [word for word in arguments[:end] if word != "--debug"] + list(arguments[end:])
    try:
        status = int(app(plain or ["--help"], prog_name="dpseg", standalone_mode=False) or 0)
        return _fail("stopped", INTERRUPTED, debug=False) if status == INTERRUPTED else status
    except (KeyboardInterrupt, typer.Abort):
        return _fail("stopped", INTERRUPTED, debug=False)
    except BrokenPipeError:  # the reader of a pipe, like `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OUR_MISTAKE
    except DPSegError as error:
        return _fail(str(error), USER_MISTAKE, debug)
    except Exception as error:
        if hasattr(error, "format_message"):  # an unknown or missing option: click's kind, which typer brings along
            return _fail(f"{error.format_message().rstrip('.')}; see: dpseg --help", USER_MISTAKE, debug)
        return _fail(f"{type(error).__name__}: {error}; run with --debug to see where", OUR_MISTAKE, debug)


def main() -> None:
    """The program `dpseg`."""
    sys.exit(run(sys.argv[1:]))


def _fail(text: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"dpseg: {' '.join(text.split())}", file=sys.stderr)
    return status
