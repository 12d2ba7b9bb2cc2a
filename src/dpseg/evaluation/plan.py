"""What is measured on one data set: which photos, in which blocks, with which words, pictures and rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dpseg.config import EvalConfig, PromptKind
from dpseg.data.labelled import LabelledSet, prompts_of
from dpseg.errors import ConfigError, DataError
from dpseg.evaluation.references import draw_references
from dpseg.evaluation.tally import Tally
from dpseg.prompts.text import parse_class


@dataclass(frozen=True, eq=False)
class Plan:
    """One data set and how it is measured; everything but the model. It can be sent to another process.

    Attributes:
        name: how the data set is called.
        dataset: N photos and their masks.
        config: which prompts, and how.
        names: K classes in words, synonyms after commas, one for each class of the data set.
        prompt_names: P names to decode, synonyms after commas: the classes, or several names for one of them.
        prompt_classes: the class of each of those.
        pool: where reference pictures are cut from; None: there are none.
        drawn: class index -> indices of the pool's photos that become references.
        photos: indices of the photos that are measured.
    """

    name: str
    dataset: LabelledSet
    config: EvalConfig
    names: tuple[str, ...]
    prompt_names: tuple[str, ...]
    prompt_classes: tuple[int, ...]
    pool: LabelledSet | None
    drawn: Mapping[int, tuple[int, ...]]
    photos: tuple[int, ...]

    @property
    def shown(self) -> list[str]:
        """K names as they are shown."""
        return [parse_class(name).name for name in self.names]

    @property
    def ignored(self) -> set[int]:
        """Class indices whose pixels do not count."""
        return {0} if self.dataset.background_line0 and self.config.ignore_background else set()

    @property
    def background(self) -> float | None:
        """Score in [0, 1] below which a pixel is background, class 0; None: there is no background."""
        return self.config.background if self.dataset.background_line0 and not self.config.ignore_background else None

    @property
    def rows(self) -> list[tuple[PromptKind, bool]]:
        """The rows of the table: kind of prompts, and whether it is Inference II."""
        return [(kind, refine) for kind in self.config.prompts for refine in self.config.refine]

    @property
    def blocks(self) -> list[tuple[int, ...]]:
        """The photos in groups of `EvalConfig.block`, whoever measures them."""
        size = self.config.block
        return [self.photos[start : start + size] for start in range(0, len(self.photos), size)]

    def tallies(self) -> list[Tally]:
        """Returns a tally for each row in which nothing is counted."""
        return [Tally(self.shown, self.dataset.ignore_index, self.ignored) for _ in self.rows]


def make_plan(
    dataset: LabelledSet,
    config: EvalConfig,
    names: Sequence[str] | None = None,
    pool: LabelledSet | None = None,
    name: str | None = None,
) -> Plan:
    """Checks what is asked for and draws the reference pictures.

    Args:
        dataset: photos and masks.
        config: which prompts, and how.
        names: words for the classes, one for each line of classes.txt, synonyms after commas; None: those lines.
        pool: where reference pictures are cut from, without the photos of `dataset`; needed for pictures.
        name: how the data set is called; None: as its folder.

    Raises:
        DataError: names and classes differ in number, or there is nothing to cut references from.
        ConfigError: a number is out of range.
    """
    if config.references < 1 or config.block < 1 or (config.limit is not None and config.limit < 1):
        raise ConfigError(
            f"references {config.references}, limit {config.limit}, block {config.block}: give numbers of 1 or more"
        )
    if names is not None and len(names) != len(dataset.class_names):
        raise DataError(
            f"{len(names)} names for {len(dataset.class_names)} classes; give one for each line of classes.txt"
        )
    drawn: dict[int, tuple[int, ...]] = {}
    if {"pictures", "both"} & set(config.prompts):
        if pool is None:
            raise DataError("no photos to cut reference pictures from; use --prompts text or bank")
        if tuple(pool.class_names) != tuple(dataset.class_names):
            raise DataError(
                f"{str(pool.root)!r}: the photos for reference pictures have other classes than the evaluated ones;"
                " use --prompts text"
            )
        drawn = draw_references(pool, dataset.stems, config.references, config.seed)
    own = tuple(dataset.class_names if names is None else names)
    prompt_names, prompt_classes = prompts_of(dataset) if names is None else (own, tuple(range(len(own))))
    first = int(dataset.background_line0)  # class 0 is decoded unless it is no class
    decoded = [place for place, value in enumerate(prompt_classes) if value >= first]
    return Plan(
        name=dataset.root.resolve().name if name is None else name,
        dataset=dataset,
        config=config,
        names=own,
        prompt_names=tuple(prompt_names[place] for place in decoded),
        prompt_classes=tuple(prompt_classes[place] for place in decoded),
        pool=pool,
        drawn=drawn,
        photos=_spread(len(dataset), config.limit),
    )


def _spread(count: int, limit: int | None) -> tuple[int, ...]:
    """Returns `limit` of `count` indices, evenly spread."""
    if limit is None or limit >= count:
        return tuple(range(count))
    return tuple(sorted({int(index) for index in np.linspace(0, count - 1, limit).round()}))
