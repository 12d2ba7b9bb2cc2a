"""Where the prompts of classes come from, as far as it is known: words, single pictures, names of a bank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dpseg.errors import ConfigError, PromptError, WeightsError
from dpseg.model.prompt_encoding import crop_rows, encoder_device, name_features, unit_rows, visual_prompts
from dpseg.prompts.bank import BANK_SOURCE, Bank
from dpseg.prompts.bank_store import BankStore
from dpseg.prompts.banks import check_encoder, feature_bank
from dpseg.prompts.prompt_set import PromptSet
from dpseg.prompts.text import parse_class, parse_classes
from dpseg.prompts.visual import Reference, parse_reference
from dpseg.segmenter import Segmenter


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture of a class.

    Attributes:
        source: how it was given; may be empty.
        reference: the picture; None where only its features are at hand.
        vector: V of it alone, (D,), a unit vector on the CPU.
    """

    source: str
    reference: Reference | None
    vector: Tensor


@dataclass(frozen=True)
class Share:
    """A name of a bank in what a word gets from it.

    Attributes:
        name: the bank's.
        share: in (0, 1].
        source: "bank", or another kind as in `BankMatch.sources`.
    """

    name: str
    share: float
    source: str


@dataclass(frozen=True, eq=False)
class Origins:
    """What is known of where the prompts of a set come from, by class.

    Attributes:
        words: the class's names; no entry where it has none.
        pictures: those that are known one by one; no entry where only their average is known, or there is none.
        bank: what the banks have for its words, the heaviest first; no entry where they have nothing.
    """

    words: Mapping[str, tuple[str, ...]]
    pictures: Mapping[str, tuple[Picture, ...]]
    bank: Mapping[str, tuple[Share, ...]]


def find_origins(
    segmenter: Segmenter,
    prompts: PromptSet,
    text: Sequence[str] = (),
    references: Mapping[str, Sequence[Reference]] | None = None,
) -> Origins:
    """Encodes references one by one, and asks the banks for names.

    Args:
        segmenter: the model that made the prompts, with its banks.
        prompts: of K classes.
        text: the classes in words, synonyms after commas; none: each is called by the name that the set shows.
        references: pictures by class, as they were averaged in the prompts.

    Raises:
        DPSegError: a picture cannot be read.
    """
    encoder = segmenter.model.encoder
    synonyms = {entry.name: entry.synonyms for entry in parse_classes(text)} if text else {}
    has_text = prompts.embeddings.has_text.tolist()
    words = {name: synonyms.get(name, (name,)) for name, has in zip(prompts.names, has_text, strict=True) if has}
    given = [(name, reference) for name, items in (references or {}).items() for reference in items]
    pictures: dict[str, list[Picture]] = {}
    if given:
        vectors, _ = crop_rows(encoder, (reference.crop(encoder.crop_size) for _, reference in given))
        for (name, reference), vector in zip(given, vectors.cpu(), strict=True):
            pictures.setdefault(name, []).append(Picture(_described(reference), reference, vector))
    return Origins(words, {name: tuple(items) for name, items in pictures.items()}, bank_shares(segmenter, words))


def bank_shares(segmenter: Segmenter, words: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[Share, ...]]:
    """Returns what the banks of a segmenter have for words, by class; nothing where they know no name near enough."""
    bank = feature_bank(segmenter.feature_prompts, segmenter.store, segmenter.bank)
    if bank is None or not words:
        return {}
    classes = parse_classes([", ".join(names) for names in words.values()])
    match = bank.lookup(name_features(segmenter.model.encoder, classes, segmenter.cache))
    rows = zip(words, match.names, match.weights, match.sources, strict=True)
    found: dict[str, tuple[Share, ...]] = {}
    for name, names, shares, source in rows:
        together: dict[str, float] = {}  # a bank may have several rows of a name
        for own, share in zip(names, shares, strict=True):
            together[own] = together.get(own, 0.0) + share
        if together:
            found[name] = tuple(Share(own, share, source) for own, share in together.items())
    return found


def bank_prompts_of(segmenter: Segmenter, bank: Bank | BankStore, limit: int) -> tuple[PromptSet, Origins]:
    """Makes prompts of a bank's own names and pictures: each name with its words and the average of its pictures.

    Args:
        segmenter: a model with the encoder that made the bank.
        bank: in a folder or a file; of the latter only averages are known.
        limit: so many names at most, the first, 1 or more.

    Raises:
        ConfigError: the limit is out of range.
        WeightsError: the bank was made with another encoder, or is empty.
    """
    if limit < 1:
        raise ConfigError(f"limit {limit} is out of range; give 1 or more")
    encoder = segmenter.model.encoder
    check_encoder(encoder.fingerprint, bank)
    names = list({parse_class(name).name.casefold(): name for name in reversed(bank.names)}.values())[::-1][:limit]
    if not names:
        raise WeightsError("the bank is empty; add pictures first")
    shown = [parse_class(name).name for name in names]
    rows: list[tuple[Tensor, ...]] = []
    known: dict[str, tuple[Picture, ...]] = {}
    for number, (own, name) in enumerate(zip(names, shown, strict=True)):
        if isinstance(bank, Bank):
            row = bank.names.index(own)
            rows.append((bank.dense[row], *(stage[row] for stage in bank.stages)))
        else:
            mean, known[name] = _stored_pictures(segmenter, bank, names[number])
            rows.append(mean)
    device = encoder_device(encoder)
    dense, s2, s3, s4 = (torch.stack(part).float().to(device) for part in zip(*rows, strict=True))
    visual = visual_prompts(shown, range(len(shown)), unit_rows(encoder, dense, (s2, s3, s4)), BANK_SOURCE)
    prompts = segmenter.prompts(names, bank=False).replace(visual)
    return prompts, Origins({name: (name,) for name in shown}, known, {})


def _stored_pictures(
    segmenter: Segmenter, bank: BankStore, name: str
) -> tuple[tuple[Tensor, ...], tuple[Picture, ...]]:
    """Returns the average features of a name's pictures, (F,) and (D_j,), and the pictures."""
    encoder, device = segmenter.model.encoder, encoder_device(segmenter.model.encoder)
    entries = list(bank.entries(name))
    features = [row for entry in entries if (row := bank.features(entry.key)) is not None]
    dense = torch.stack([row for row, _ in features]).float()
    s2, s3, s4 = (torch.stack([stages[j] for _, stages in features]).float() for j in range(3))
    with torch.no_grad():
        vectors, _ = unit_rows(encoder, dense.to(device), (s2.to(device), s3.to(device), s4.to(device)))
    pictures = (
        Picture(entry.source, _stored_reference(entry.source), vector)
        for entry, vector in zip(entries, vectors.cpu(), strict=True)
    )
    return tuple(part.mean(dim=0) for part in (dense, s2, s3, s4)), tuple(pictures)


def _stored_reference(source: str) -> Reference | None:
    """Returns the picture that a bank's entry was made of, if it is still there."""
    try:
        _, reference = parse_reference(f"picture={source}")
    except PromptError:
        return None
    files = [part for part in (reference.image, reference.mask) if part is not None]
    return reference if all(isinstance(part, str) and Path(part).is_file() for part in files) else None


def _described(reference: Reference) -> str:
    """Returns how a reference was given, as far as it comes from files."""
    if not isinstance(reference.image, str | Path):
        return ""
    where = f":{','.join(f'{value:g}' for value in reference.box)}" if reference.box else ""
    mask = f":{reference.mask}" if isinstance(reference.mask, str | Path) else ""
    return f"{reference.image}{where}{mask}"
