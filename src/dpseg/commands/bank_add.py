"""`dpseg prompts bank add`: pictures and objects of labelled photos -> a bank."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from dpseg.commands.bank import holds, load_model, say
from dpseg.commands.progress import progress
from dpseg.config import Context
from dpseg.errors import ConfigError, PromptError

if TYPE_CHECKING:
    from dpseg.commands.bank_pictures import AddCount, BankFiller
    from dpseg.data.labelled import LabelledSet
    from dpseg.prompts.bank_store import BankStore
    from dpseg.segmenter import Segmenter

POOL = 64
"""So many objects of a class are compared, the largest; more where more are kept."""


@dataclass(frozen=True)
class AddOptions:
    """The options of `dpseg prompts bank add`.

    Attributes:
        bank: its folder, made where it is missing.
        folder: pictures, laid out NAME/PICTURE.jpg; None: none.
        references: NAME=PICTURE, NAME=PICTURE:MASK or NAME=PICTURE:x0,y0,x1,y1.
        data: a labelled data set: folder, COCO file or benchmark; None: none.
        per_class: so many objects a class are kept of it.
        split: which of its photos; None: all.
        root: folder in which a benchmark's download was unpacked; None: this one.
        context: what surrounds the thing in pictures with a mask or box.
        license: of the pictures.
        model: name, folder or hub id.
        device: None: CUDA where there is a GPU.
    """

    bank: Path
    folder: Path | None = None
    references: tuple[str, ...] = ()
    data: str | None = None
    per_class: int = 10
    split: str | None = None
    root: Path | None = None
    context: Context = "keep"
    license: str = ""
    model: str = "dpseg-lite"
    device: str | None = None


def add(options: AddOptions, console: Console, errors: Console) -> int:
    """Adds pictures to a bank; those that are in it already are not encoded again.

    Args:
        options: what the user asked for.
        console: where the sum is printed.
        errors: where progress is shown and pictures that cannot be read are listed.

    Returns:
        The exit status: 0, or 1 where a picture could not be read.

    Raises:
        DPSegError: the user's mistake, noticed before the first picture where that is possible.
    """
    from dpseg.commands.bank_pictures import BankFiller
    from dpseg.data.benchmarks import open_dataset
    from dpseg.data.pictures import folder_pictures, reference_pictures

    if options.folder is None and not options.references and options.data is None:
        raise PromptError("no pictures given; name a folder with NAME/PICTURE.jpg, --ref NAME=PICTURE, or --data")
    if options.per_class < 1:
        raise ConfigError(f"--per-class {options.per_class} is out of range; give 1 or more")
    pictures = [] if options.folder is None else folder_pictures(options.folder)
    pictures += reference_pictures(options.references, options.context)
    dataset = None if options.data is None else open_dataset(options.data, options.root, options.split)
    segmenter = load_model(options.model, options.device, errors)
    store = _open_for(options.bank, segmenter)
    filler = BankFiller(store, segmenter, options.license)
    if pictures:
        with progress(errors, len(pictures), "pictures", lines=True) as step:
            filler.add_all(pictures, step)
    if dataset is not None:
        _add_objects(dataset, options, filler, errors)
    _print_count(filler.count, store, console, errors)
    return 1 if filler.count.failed else 0


def _add_objects(dataset: LabelledSet, options: AddOptions, filler: BankFiller, errors: Console) -> None:
    """Adds objects of labelled photos, class by class."""
    from dpseg.data.objects import cut_objects, find_candidates

    with progress(errors, len(dataset), "masks", lines=True) as step:
        candidates = find_candidates(dataset, max(POOL, options.per_class), filler.count.failed, step)
    with progress(errors, len(candidates), "classes", lines=True) as step:
        for value in sorted(candidates):
            filler.add_best(cut_objects(dataset, value, candidates[value], options.context), options.per_class)
            step()


def _open_for(bank: Path, segmenter: Segmenter) -> BankStore:
    """Opens or makes the bank of a model."""
    from dpseg.commands.bank_pictures import bank_head
    from dpseg.prompts.bank_index import HEAD_FILE
    from dpseg.prompts.bank_store import BankStore
    from dpseg.prompts.banks import check_encoder

    store = BankStore(bank) if (bank / HEAD_FILE).is_file() else BankStore.create(bank, bank_head(segmenter))
    check_encoder(segmenter.model.encoder.fingerprint, store)
    return store


def _print_count(count: AddCount, store: BankStore, console: Console, errors: Console) -> None:
    say(console, f"{count.added} added, {count.there} were there; {holds(store)}")
    if count.failed:
        say(errors, f"{len(count.failed)} could not be read:")
        for error in count.failed:
            say(errors, f"  {error}")
