"""Classes as the command line takes them, --text, --ref, --refs, --vocabulary or --prompts -> model and prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, get_args

from rich.console import Console

from dpseg.commands.reference_sets import References, RefsOptions, check_refs, open_sets
from dpseg.config import FeaturePrompts
from dpseg.errors import ConfigError, PromptError, did_you_mean
from dpseg.matching import Matching
from dpseg.precision import Precision
from dpseg.rejection import Rejection

if TYPE_CHECKING:
    from dpseg.prompts.prompt_set import PromptSet
    from dpseg.prompts.visual import Reference
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
    def refs(self) -> RefsOptions:
        """Folders of pictures and labelled sets, and how references are cut."""
        ...

    @property
    def vocabularies(self) -> tuple[str, ...]:
        """Names of vocabularies, or files with one class a line."""
        ...

    @property
    def prompts(self) -> Path | None:
        """File of a saved prompt set, in place of the four above."""
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


@dataclass(frozen=True, kw_only=True)
class AskedClasses:
    """The options that all commands have which explain what a model does with classes.

    Attributes:
        text: classes, synonyms after commas.
        references: NAME=PICTURE, NAME=PICTURE:MASK or NAME=PICTURE:x0,y0,x1,y1.
        refs: folders of pictures and labelled sets, and how references are cut.
        vocabularies: names of vocabularies, or files with one class a line.
        prompts: file of a saved prompt set, in place of the four above.
        bank: use the model's bank.
        store: folder or file of a bank of the user's own.
        feature_prompts: what words without pictures get from the banks.
        model: name, folder or hub id.
        device: None: CUDA where there is a GPU.
    """

    text: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    refs: RefsOptions = field(default_factory=RefsOptions)
    vocabularies: tuple[str, ...] = ()
    prompts: Path | None = None
    bank: bool = True
    store: Path | None = None
    feature_prompts: FeaturePrompts = "blend"
    model: str = "dpseg-lite"
    device: str | None = None


@dataclass(frozen=True, eq=False)
class LoadedClasses:
    """A model, its prompts, and what they were made of.

    Attributes:
        segmenter: the model with its banks.
        prompts: of the classes.
        text: the classes in words; none of a saved set, and where there are pictures alone.
        references: pictures by class.
    """

    segmenter: Segmenter
    prompts: PromptSet
    text: Sequence[str]
    references: Mapping[str, Sequence[Reference]]


def feature_kind(text: str) -> FeaturePrompts:
    """Reads --feature-prompts.

    Raises:
        ConfigError: the word is unknown.
    """
    kinds: tuple[FeaturePrompts, ...] = get_args(FeaturePrompts)
    for kind in kinds:
        if kind == text.strip().lower():
            return kind
    raise ConfigError(f"feature prompts {text!r} are unknown; {did_you_mean(text, kinds)}")


def check_classes(options: ClassOptions) -> None:
    """Checks that there are either classes or a file of prompts, before anything is read.

    Raises:
        PromptError: there are both, or neither.
        ConfigError: the options of references do not go together.
    """
    check_refs(options.refs)
    classes = bool(options.text or options.references or options.refs.places or options.vocabularies)
    if options.prompts is not None and classes:
        raise PromptError(
            "--prompts already holds the classes; leave out --text, --ref, --refs and --vocabulary, or --prompts"
        )
    if options.prompts is None and not classes:
        raise PromptError("no classes given; name some: --text cat, --vocabulary coco, or --ref mug=mug.jpg")


def load_classes(
    options: ClassOptions,
    errors: Console,
    store: Path | None = None,
    feature_prompts: FeaturePrompts = "blend",
    matching: Matching | None = None,
    rejection: Rejection | None = None,
    precision: Precision = "32",
) -> LoadedClasses:
    """Loads the model and encodes the classes.

    Args:
        options: of the command.
        errors: where progress is shown, and what of the references is not used or cannot be read.
        store: folder or file of a bank of the user's own, which is asked before the model's.
        feature_prompts: what words without pictures get from the banks.
        matching: how prompts are compared with a photo; None: as the model's config says.
        rejection: which classes of a long list are given up early; None: as the model's config says.
        precision: of the numbers that the model computes in.

    Raises:
        DPSegError: the user's mistake.
    """
    from dpseg.data.picture_features import PictureEncoder
    from dpseg.prompts.prompt_set import PromptSet
    from dpseg.segmenter import Segmenter

    text = _listed(options)
    references = References(text, options.refs, errors)
    references.add_single(options.references)
    sets = open_sets(options.refs)
    saved = PromptSet.load(options.prompts) if options.prompts is not None else None
    with _status(errors, f"Loading {options.model}"):
        segmenter = Segmenter.from_pretrained(
            options.model, options.device, store, feature_prompts, matching, rejection, precision
        )
    if not options.bank:
        segmenter.bank = None
    if saved is not None:
        return LoadedClasses(segmenter, saved, (), {})
    encoder = PictureEncoder(segmenter.model.encoder, segmenter.cache)
    for found in sets:
        references.add_set(found, encoder)
    references.report_failed()
    with _status(errors, "Encoding the classes"):
        prompts = segmenter.prompts(text or None, references.by_class or None)
    return LoadedClasses(segmenter, prompts, text, references.by_class)


def _listed(options: ClassOptions) -> list[str]:
    """Returns the classes in words; one that --text names is not taken from a vocabulary again."""
    from dpseg.data.vocabularies import load_vocabulary
    from dpseg.prompts.text import parse_classes

    text = list(options.text)
    names = {entry.name.casefold() for entry in parse_classes(text)} if text else set()
    for vocabulary in options.vocabularies:
        for line, entry in zip(lines := load_vocabulary(vocabulary), parse_classes(lines), strict=True):
            if entry.name.casefold() not in names:
                names.add(entry.name.casefold())
                text.append(line)
    return text


def _status(errors: Console, text: str) -> AbstractContextManager[object]:
    return errors.status(text) if errors.is_terminal else nullcontext()
