"""What the paper's ablations compare: variants of a recipe, and of how a trained model is prompted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from dpseg.config import Fusion, Guidance, PromptKind
from dpseg.errors import ConfigError, did_you_mean
from dpseg.recipe import TrainConfig

TableName = Literal["prompts", "fusion", "guidance", "templates", "noise", "refinement"]
TABLES: tuple[TableName, ...] = get_args(TableName)
"""All ablations, in the paper's order."""

TRAINED_TABLES: tuple[TableName, ...] = ("fusion", "guidance", "templates")
"""Those whose variants differ in training, so that each needs a model of its own."""

KINDS: dict[PromptKind, str] = {
    "text": "words alone",
    "pictures": "pictures alone",
    "both": "words and pictures",
}
FUSIONS: dict[Fusion, str] = {
    "text": "T alone in F_c",
    "visual": "V alone in F_c",
    "cost_concat": "cost volumes of T and of V, concatenated",
    "cost_average": "cost volumes of T and of V, averaged",
    "average": "R = Avg(T, V), one cost volume",
}
GUIDANCES: dict[Guidance, str] = {
    "none": "F_c alone",
    "visual2": "F_c and the finest F_v^j",
    "upsampled": "F_c and an upsampled F_c at each scale",
    "visual234": "F_c and F_v^j at each scale",
}
TEMPLATE_COUNTS = (1, 10, 20, 40, 80)


@dataclass(frozen=True)
class Measurement:
    """One way to test a trained model.

    Attributes:
        kind: what the classes are told by.
        refine: Inference II, or Inference I.
        noise: strength of the noise on visual prompts, relative to their norm, 0 or more.
    """

    kind: PromptKind
    refine: bool = False
    noise: float = 0.0

    @property
    def name(self) -> str:
        """A short name, for files and lines."""
        inference = "II" if self.refine else "I"
        return f"{self.kind}-{inference}" + (f"-noise{self.noise:g}" if self.noise else "")


@dataclass(frozen=True)
class Training:
    """One way to train.

    Attributes:
        name: of its folder.
        changes: fields of the recipe, dots leading into nested ones, and their values; tuples stand for lists.
    """

    name: str
    changes: tuple[tuple[str, Any], ...] = ()


FULL = Training("full")
"""The recipe as it is."""


@dataclass(frozen=True)
class Variant:
    """One row of a table.

    Attributes:
        name: unique in its table.
        label: how the row is called.
        training: of its model.
        measured: how that is tested.
    """

    name: str
    label: str
    training: Training
    measured: Measurement


@dataclass(frozen=True)
class Table:
    """One ablation.

    Attributes:
        name: which.
        about: what differs between its rows, and what does not.
        variants: its rows.
        reference: name of the row that is the full method: the others are compared with it.
    """

    name: TableName
    about: str
    variants: tuple[Variant, ...]
    reference: str


def read_tables(text: str, config: TrainConfig | None) -> tuple[TableName, ...]:
    """Reads --tables, and returns them in the paper's order.

    Args:
        text: names with commas; all: every one that can be made.
        config: the recipe; None: there are only trained models.

    Raises:
        ConfigError: a name is unknown, or that table cannot be made.
    """
    words = [word.strip().lower() for word in text.split(",") if word.strip()]
    if words == ["all"]:
        return tuple(name for name in TABLES if _hindrance(name, config) is None)
    if not words:
        raise ConfigError(f"no tables given; known: {', '.join(TABLES)}, all")
    for word in words:
        if word not in TABLES:
            raise ConfigError(f"table {word!r} is unknown; {did_you_mean(word, [*TABLES, 'all'])}")
        hindrance = _hindrance(word, config)
        if hindrance is not None:
            raise ConfigError(hindrance)
    return tuple(name for name in TABLES if name in words)


def read_strengths(text: str) -> tuple[float, ...]:
    """Reads --noise: strengths above 0, with commas; returns them in rising order, each once.

    Raises:
        ConfigError: one is something else.
    """
    strengths = set()
    for word in [word.strip() for word in text.split(",") if word.strip()]:
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise ConfigError(f"noise {word!r} is no strength; give numbers above 0, such as 0.5,1.0")
        strengths.add(value)
    if not strengths:
        raise ConfigError("no noise given; give numbers above 0, such as 0.5,1.0")
    return tuple(sorted(strengths))


def make_tables(names: Sequence[TableName], config: TrainConfig | None, strengths: Sequence[float]) -> list[Table]:
    """Returns the tables with their variants.

    Args:
        names: which, of `read_tables`.
        config: the recipe; None: there are only trained models.
        strengths: of the noise, above 0.
    """
    tables = []
    for name in names:
        if name == "prompts":
            tables.append(_prompts())
        elif name == "noise":
            tables.append(_noise(strengths))
        elif name == "refinement":
            tables.append(_refinement())
        else:
            assert config is not None
            tables.append(_trained(name, config))
    return tables


def trainings(tables: Sequence[Table]) -> dict[Training, tuple[Measurement, ...]]:
    """Returns each training that the tables need, the full method first, and all ways in which its model is tested."""
    wanted: dict[Training, dict[Measurement, None]] = {FULL: {}}
    for table in tables:
        for variant in table.variants:
            wanted.setdefault(variant.training, {})[variant.measured] = None
    return {training: tuple(measured) for training, measured in wanted.items() if measured}


def _hindrance(name: str, config: TrainConfig | None) -> str | None:
    """Returns why a table cannot be made, or None."""
    if name in TRAINED_TABLES and config is None:
        return (
            f"table {name!r} needs trainings of its own; give --config in place of --model, or choose --tables"
            f" {','.join(table for table in TABLES if table not in TRAINED_TABLES)}"
        )
    if name == "templates" and config is not None and config.model.encoder == "lite":
        return "table 'templates' is not for the encoder lite, which reads one sentence a name; leave it out"
    return None


def _prompts() -> Table:
    variants = tuple(Variant(kind, label, FULL, Measurement(kind)) for kind, label in KINDS.items())
    about = "What the classes are told by when testing; one model, trained on all three. Inference I."
    return Table("prompts", about, variants, "both")


def _noise(strengths: Sequence[float]) -> Table:
    noisy = (
        Variant(f"{strength:g}", f"noise {strength:g}", FULL, Measurement("both", noise=strength))
        for strength in strengths
    )
    variants = (
        Variant("none", "words and pictures, no noise", FULL, Measurement("both")),
        *noisy,
        Variant("text", KINDS["text"], FULL, Measurement("text")),
    )
    about = (
        "Gaussian noise on V and GAP(V_j) when testing, its length relative to theirs; the sums are made unit vectors"
        " again. Words and pictures, Inference I."
    )
    return Table("noise", about, variants, "none")


def _refinement() -> Table:
    variants = tuple(
        Variant(
            f"{kind} {'II' if refine else 'I'}",
            f"{label}, Inference {'II' if refine else 'I'}",
            FULL,
            Measurement(kind, refine),
        )
        for kind, label in KINDS.items()
        for refine in (False, True)
    )
    about = "Inference II prompts again with crops of what Inference I found in the same photo."
    return Table("refinement", about, variants, "both II")


def _trained(name: TableName, config: TrainConfig) -> Table:
    """Returns a table whose rows are the values of one field of the model; the recipe's own value is the full one."""
    labels: dict[Any, str]
    if name == "fusion":
        own: Any = config.model.fusion
        labels = dict(FUSIONS)
        about = (
            "How T and V meet in the cost volume that the decoder reads; F_v^j guides it in every row. A model that"
            " reads one of the two is not trained on prompts of the other alone."
        )
    elif name == "guidance":
        own = config.model.guidance
        labels = dict(GUIDANCES)
        about = "Which cost volumes guide the decoder."
    else:
        own = config.model.templates
        labels = {count: f"{count} template{'s' if count > 1 else ''}" for count in sorted({*TEMPLATE_COUNTS, own})}
        about = "Sentences a name, M."
    labels.setdefault(own, f"{name}={own}")
    variants = tuple(
        Variant(str(value), label, _training(name, value, own, config), Measurement("both"))
        for value, label in labels.items()
    )
    return Table(name, f"{about} Words and pictures, Inference I.", variants, str(own))


def _training(field: str, value: Any, own: Any, config: TrainConfig) -> Training:
    if value == own:
        return FULL
    changes: list[tuple[str, Any]] = [(f"model.{field}", value)]
    mix = _readable_mix(config.prompt_mix, value)
    if mix != config.prompt_mix:
        changes.append(("prompt_mix", mix))
    return Training(f"{field}={value}", tuple(changes))


def _readable_mix(mix: tuple[float, float, float], fusion: Any) -> tuple[float, float, float]:
    """Returns the mix of prompts for a model that reads T or V alone: both in place of those that it cannot read."""
    text, pictures, both = mix
    if fusion == "text":
        return text, 0.0, round(both + pictures, 6)
    return (0.0, pictures, round(both + text, 6)) if fusion == "visual" else mix
