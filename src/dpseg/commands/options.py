"""The options of `dpseg predict`, those that several commands share, and some of `dpseg evaluate`: names and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpseg.errors import ConfigError

DEFAULT_BACKGROUND = 0.5
"""The threshold of `--background auto`: below it the model holds a class for less likely than not."""

CLASSES, RESULTS, MODEL = "What to look for", "Results", "Model"
"""Headings in the help."""

Photos = Annotated[list[str], typer.Argument(help="Files, folders and globs of photos; or videos.")]
Text = Annotated[
    list[str] | None,
    typer.Option("--text", "-t", metavar="WORDS", help='cat, or with synonyms "couch, sofa".', rich_help_panel=CLASSES),
]
References = Annotated[
    list[str] | None,
    typer.Option(
        "--ref",
        "-r",
        metavar="NAME=PICTURE",
        help="A picture of a class; with a mask, NAME=PICTURE:MASK, or a box, NAME=PICTURE:x0,y0,x1,y1. Without --text,"
        " the classes are those of the pictures.",
        rich_help_panel=CLASSES,
    ),
]
Refs = Annotated[
    list[str] | None,
    typer.Option(
        metavar="DIR|FILE",
        help="Pictures of many classes: DIR/NAME/*.jpg, underscores in NAME are spaces; or labelled photos, from which"
        " objects are cut: a folder with images/, masks/ and classes.txt, or a COCO file.",
        rich_help_panel=CLASSES,
    ),
]
RefsPerClass = Annotated[
    int,
    typer.Option(help="Of labelled --refs: so many objects a class, large ones that differ.", rich_help_panel=CLASSES),
]
RefsSplit = Annotated[
    str,
    typer.Option("--split", help="Of labelled --refs: photos named in SPLIT.txt.", rich_help_panel=CLASSES),
]
CONTEXTS = "keep|blur|mean"
CONTEXT_HELP = "What surrounds the thing in a picture with a mask or box: kept, blurred, or the mean colour."
RefContext = Annotated[str, typer.Option(metavar=CONTEXTS, help=CONTEXT_HELP, rich_help_panel=CLASSES)]
Match = Annotated[
    str | None,
    typer.Option(
        metavar="plain|alike",
        help="How pictures are compared with a photo; alike: for classes that look alike, few things in a photo.",
    ),
]
MaxClasses = Annotated[
    str | None,
    typer.Option(
        metavar="N|all",
        help="Of a list with more than N classes, decode only the N likeliest of each photo: faster, and the others are"
        " not found. all: decode every class. Default: as suits the model.",
    ),
]
KeepTop = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="With --max-classes: of those, only the ones among the N likeliest somewhere in the photo."
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        metavar="32|bf16",
        help="Numbers that the model computes in; bf16 is faster where the processor or GPU has bfloat16, and changes"
        " some labels.",
    ),
]
Vocabularies = Annotated[
    list[str] | None,
    typer.Option(
        "--vocabulary",
        "-v",
        metavar="NAME|FILE",
        help="coco, ade150, ... or a file, one class a line.",
        rich_help_panel=CLASSES,
    ),
]
Prompts = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Classes that --save-prompts kept.", rich_help_panel=CLASSES),
]
SavePrompts = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Keep the encoded classes for --prompts.", rich_help_panel=CLASSES),
]
BankPlace = Annotated[
    Path | None,
    typer.Option(
        "--bank",
        metavar="DIR|FILE",
        help="A bank of your own, from dpseg prompts bank; asked before the model's.",
        rich_help_panel=CLASSES,
    ),
]
NoBank = Annotated[
    bool,
    typer.Option("--no-bank", help="Give words no pictures of the model's bank.", rich_help_panel=CLASSES),
]
FEATURE_PROMPTS = "off|blend|regress"
FeaturePrompts = Annotated[
    str,
    typer.Option(
        metavar=FEATURE_PROMPTS,
        help="What words without pictures get from the banks: nothing; pictures of names that mean nearly the same; or,"
        " where no name does, also features that are regressed from the words.",
        rich_help_panel=CLASSES,
    ),
]
Background = Annotated[
    str | None,
    typer.Option(
        metavar="THRESHOLD|auto",
        help="Pixels that score below it, 0 to 1, get no class: none.",
        rich_help_panel=CLASSES,
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder.", rich_help_panel=RESULTS)]
Formats = Annotated[
    str,
    typer.Option(
        "--format",
        "-f",
        help="png (labels), json, overlay, coco, panoptic, labelstudio, tiff (labels, with a georeference), npz, with"
        " commas; of videos overlay, json, coco.",
        rich_help_panel=RESULTS,
    ),
]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="Name, folder of a saved model, or user/model on the Hugging Face hub.",
        rich_help_panel=MODEL,
    ),
]
Refine = Annotated[
    bool | None,
    typer.Option(
        "--refine/--no-refine",
        help="Look again with crops of what was found (Inference II), or not. Default: as suits the model.",
        rich_help_panel=MODEL,
    ),
]
RefineHow = Annotated[
    str | None,
    typer.Option(
        "--refine",
        metavar="[HOW]",
        help="Look again with crops of what was found (Inference II); off, or --no-refine: do not. With cores, of each"
        " region the surest half; with pooled, features of the photo in place of crops; with sequence, each photo once,"
        " by what was found in those before it. Several with commas. Default: as suits the model.",
        rich_help_panel=MODEL,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda, cuda:1, ... Default: a GPU where there is one.", rich_help_panel=MODEL),
]
BatchSize = Annotated[
    int | None, typer.Option(help="Photos at a time. Default: as suits the device.", rich_help_panel=MODEL)
]
Size = Annotated[
    int | None, typer.Option(help="Input size in pixels. Default: the model's own.", rich_help_panel=MODEL)
]
Tile = Annotated[
    int | None,
    typer.Option(
        metavar="PIXELS",
        help="Large photos: cut them in overlapping squares of that side, each seen at the input size. A TIFF is read"
        " by windows; the labels are a TIFF.",
        rich_help_panel=MODEL,
    ),
]
TileOverlap = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="Of a tile's side that its neighbour covers too, 0 to 0.5. Default: 0.25.",
        rich_help_panel=MODEL,
    ),
]
Smooth = Annotated[
    float | None,
    typer.Option(
        metavar="WEIGHT",
        help="Of videos: how much the frames before count, 0 to below 1, such as 0.5. Steadier; what moves fast smears."
        " Default: 0.",
        rich_help_panel=MODEL,
    ),
]

DataSets = Annotated[
    str | None,
    typer.Option("--data", metavar="NAMES", help="Several of them, with commas: a150,pc59,data/clothing."),
]
Root = Annotated[Path | None, typer.Option(metavar="DIR", help="Where the benchmarks' downloads were unpacked.")]
Seen = Annotated[
    str | None,
    typer.Option(metavar="NAME|FILE", help="Names that training had, for mIoU over seen and unseen names."),
]
Report = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", metavar="DIR|FILE.json", help="Folder of the report and of what is counted; or a JSON file."
    ),
]
Processes = Annotated[int, typer.Option(help="So many share the photos.")]
Threads = Annotated[int | None, typer.Option(help="Of each process. Default: the cores are shared out.")]
Shard = Annotated[str | None, typer.Option(metavar="I/N", help="Count only the I-th of N parts, on one of N machines.")]
Block = Annotated[int, typer.Option(help="Photos that are counted before their counts are written.")]


def read_background(text: str | None) -> float | None:
    """Reads the value of --background: a number from 0 to 1, or auto; None: it was not given.

    Raises:
        ConfigError: it is neither.
    """
    if text is None:
        return None
    if text.strip().lower() == "auto":
        return DEFAULT_BACKGROUND
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ConfigError(
            f"background {text!r} is no threshold; give a number from 0 to 1, or auto ({DEFAULT_BACKGROUND})"
        )
    return value
