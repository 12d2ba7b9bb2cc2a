"""Classes as the command line takes them, --text, --ref, --vocabulary or --prompts -> a model and its prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from dpseg.errors import PromptError

if TYPE_CHECKING:
    from dpseg.prompts.prompt_set import PromptSet
    from dpseg.segmenter import Segmenter


class ClassOptions(Protocol):
    """The options of every command that takes classes."""

    @property
    def text(self) -> tuple[str, ...]:
        """Classes, synonyms after commas."""
        ...

    @property
    def references(self) -> tuple[str, ...]:
        """NAME=PICTURE, NAME=PICTURE:MASK or NAME=PICTURE:x0,y0,x1,y1."""
        ...

    @property
    def vocabularies(self) -> tuple[str, ...]:
        """Names of vocabularies, or files with one class a line."""
        ...

    @property
    def prompts(self) -> Path | None:
        """File of a saved prompt set, in place of the three above."""
        ...

    @property
    def bank(self) -> bool:
        """Use the model's bank."""
        ...

    @property
    def model(self) -> str:
        """Name, folder or hub id."""
        ...

    @property
    def device(self) -> str | None:
        """None: CUDA where there is a GPU."""
        ...


def check_classes(options: ClassOptions) -> None:
    """Checks that there are either classes or a file of prompts, before anything is read.

    Raises:
        PromptError: there are both, or neither.
    """
    classes = bool(options.text or options.references or options.vocabularies)
    if options.prompts is not None and classes:
        raise PromptError("--prompts already holds the classes; leave out --text, --ref and --vocabulary, or --prompts")
    if options.prompts is None and not classes:
        raise PromptError("no classes given; name some: --text cat, --vocabulary coco, or --ref mug=mug.jpg")


def load_with_classes(options: ClassOptions, store: Path | None = None) -> tuple[Segmenter, PromptSet]:
    """Loads the model and encodes the classes.

    Args:
        options: of the command.
        store: folder or file of a bank of the user's own, which is asked before the model's.

    Raises:
        DPSegError: the user's mistake.
    """
    from dpseg.data.vocabularies import load_vocabulary
    from dpseg.prompts.prompt_set import PromptSet
    from dpseg.prompts.text import parse_classes
    from dpseg.prompts.visual import Reference, parse_reference
    from dpseg.segmenter import Segmenter

    references: dict[str, list[Reference]] = {}
    for name, reference in map(parse_reference, options.references):
        references.setdefault(name, []).append(reference)
    text = list(options.text)
    names = {entry.name.casefold() for entry in parse_classes(text)} if text else set()
    for vocabulary in options.vocabularies:
        for line, entry in zip(lines := load_vocabulary(vocabulary), parse_classes(lines), strict=True):
            if entry.name.casefold() not in names:
                names.add(entry.name.casefold())
                text.append(line)
    saved = PromptSet.load(options.prompts) if options.prompts is not None else None
    segmenter = Segmenter.from_pretrained(options.model, options.device, store)
    if not options.bank:
        segmenter.bank = None
    return segmenter, saved or segmenter.prompts(text or None, references or None)
