"""`dpseg prompts bank`: shows, mends and exports a bank of pictures; `commands.bank_add` fills it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console

from dpseg.errors import ConfigError, WeightsError
from dpseg.files import make_folder

if TYPE_CHECKING:
    from dpseg.prompts.bank import Bank
    from dpseg.prompts.bank_store import BankStore
    from dpseg.segmenter import Segmenter

SOURCES = 2
"""So many files of a name are listed."""


def list_bank(bank: Path, name: str | None, as_json: bool, console: Console) -> int:
    """Prints what a bank holds: names with their pictures, or all entries of one name.

    Args:
        bank: its folder.
        name: None: all.
        as_json: print JSON.
        console: where.

    Returns:
        The exit status, 0.

    Raises:
        DPSegError: there is no such bank or name.
    """
    from dpseg.prompts.bank_store import BankStore

    store = BankStore(bank)
    entries = list(store.entries(name))
    if name is None:
        sources: dict[str, list[str]] = {}
        for entry in entries:
            sources.setdefault(entry.name, []).append(entry.source)
        rows: list[Any] = [{"name": one, "pictures": len(own), "sources": own} for one, own in sorted(sources.items())]
        lines: list[Sequence[str]] = [(one["name"], str(one["pictures"]), _some(one["sources"])) for one in rows]
        head: Sequence[str] = ("name", "pictures", "sources")
        total = f"{count(len(entries), 'picture')} of {count(len(rows), 'name')}"
    else:
        rows = [asdict(entry) for entry in entries]
        lines = [(one["key"][:12], one["when"], one["source"], one["license"]) for one in rows]
        head, total = ("key", "added", "source", "license"), f"{count(len(entries), 'picture')} of {name}"
    if as_json:
        say(console, json.dumps({"encoder": store.encoder, "entries": rows}, ensure_ascii=False, indent=1))
    else:
        _table(console, head, lines)
        say(console, total)
    return 0


def remove(bank: Path, name: str | None, key: str | None, console: Console) -> int:
    """Removes entries by name, by picture, or both.

    Returns:
        The exit status, 0.

    Raises:
        DPSegError: there is no such bank or entry.
    """
    from dpseg.prompts.bank_store import BankStore

    store = BankStore(bank)
    removed = store.remove(name, key)
    say(console, f"{removed} removed; {holds(store)}")
    return 0


def merge(out: Path, banks: Sequence[Path], console: Console, errors: Console) -> int:
    """Writes what several banks hold into one, without what is damaged.

    Args:
        out: its folder, made where it is missing.
        banks: folders, or files of banks.
        console: where the sum is printed.
        errors: where damages are listed.

    Returns:
        The exit status: 0, or 1 where something is damaged.

    Raises:
        DPSegError: one is no bank, or of another encoder.
    """
    from dpseg.prompts.bank import Bank
    from dpseg.prompts.bank_contents import head_of
    from dpseg.prompts.bank_store import BankStore

    opened: list[Bank | BankStore] = [Bank.load(p) if p.is_file() else BankStore(p, salvage=True) for p in banks]
    for place, one in zip(banks, opened, strict=True):
        if one.encoder != opened[0].encoder:
            raise WeightsError(
                f"{place} is of the encoder {one.encoder!r}, {banks[0]} of {opened[0].encoder!r}; banks of several"
                " encoders cannot be merged, add the pictures anew with one model"
            )
    first = opened[0]
    store = BankStore.create(out, head_of(first) if isinstance(first, Bank) else first.head)
    hurt = False
    for place, one in zip(banks, opened, strict=True):
        added, damaged = (store.add_bank(one, str(place)), 0) if isinstance(one, Bank) else store.merge(one)
        say(console, f"{place}: {added} added")
        for line in () if isinstance(one, Bank) else one.damages:
            say(errors, line)
        if damaged:
            say(errors, f"{place}: {damaged} left out, they are damaged")
        hurt = hurt or bool(damaged) or (not isinstance(one, Bank) and bool(one.damages))
    say(console, holds(store))
    return 1 if hurt else 0


def compact(bank: Path, console: Console) -> int:
    """Writes a bank anew without what was removed.

    Returns:
        The exit status, 0.

    Raises:
        DPSegError: there is no such bank, it is damaged, or cannot be written.
    """
    from dpseg.prompts.bank_store import BankStore

    store = BankStore(bank)
    store.compact()
    say(console, f"{holds(store)}, {sum(path.stat().st_size for path in bank.rglob('*')) / 1e6:.1f} MB")
    return 0


def verify(bank: Path, console: Console, errors: Console) -> int:
    """Reads all of a bank, says what is damaged, and what to do.

    Returns:
        The exit status: 0, or 1 where something is damaged.

    Raises:
        DPSegError: there is no such bank, or nothing of it can be read.
    """
    from dpseg.prompts.bank_check import check_bank

    found = check_bank(bank)
    for problem in found.problems:
        say(errors, problem)
    if found.leftovers:
        say(console, f"{found.leftovers} files of writers that were stopped or are at work; they do not count")
    if found.problems:
        say(
            errors,
            f"{bank} is damaged: {found.sound} of the {found.entries} pictures that can be read are sound; save them"
            f" with: dpseg prompts bank merge NEW {bank}, and add the others again",
        )
        return 1
    say(console, f"{bank} is sound: {count(found.entries, 'picture')} of {count(found.names, 'name')}")
    return 0


def search(bank: Path, word: str, top: int, model: str, device: str | None, console: Console, errors: Console) -> int:
    """Prints the names of a bank that are nearest in meaning to a word, and their shares in the blend that it gets.

    Returns:
        The exit status, 0.

    Raises:
        DPSegError: there is no such bank, or it was made with another model.
    """
    from dpseg.model.prompt_encoding import name_features
    from dpseg.prompts.bank_store import BankStore
    from dpseg.prompts.banks import check_encoder
    from dpseg.prompts.text import parse_class

    entry = parse_class(word)
    if top < 1:
        raise ConfigError(f"--top {top} is out of range; give 1 or more")
    store = BankStore(bank)
    segmenter = load_model(model, device, errors)
    check_encoder(segmenter.model.encoder.fingerprint, store)
    found = store.search(name_features(segmenter.model.encoder, [entry], segmenter.cache)[0], top)
    rows = [
        (one.name, str(one.pictures), f"{one.cosine:.3f}", f"{one.share:.1%}" if one.share else "-") for one in found
    ]
    _table(console, ("name", "pictures", "cosine", "weight"), rows)
    if not any(one.share for one in found):
        say(console, f"no name is near enough; {entry.name!r} gets no pictures of this bank")
    return 0


def export(bank: Path, file: Path, console: Console) -> int:
    """Writes a bank into one file, a row a name.

    Returns:
        The exit status, 0.

    Raises:
        DPSegError: there is no such bank, it is empty, or the file cannot be written.
    """
    from dpseg.prompts.bank_store import BankStore

    bank_file: Bank = BankStore(bank).to_bank()
    make_folder(file.parent)
    bank_file.save(file)
    say(console, f"{file}: {len(bank_file)} names; as bank.safetensors beside a model's config.json it is the model's")
    return 0


def load_model(model: str, device: str | None, errors: Console) -> Segmenter:
    """Loads a model; on a terminal it is shown that it does."""
    from dpseg.segmenter import Segmenter

    with errors.status(f"Loading {model}") if errors.is_terminal else nullcontext():
        return Segmenter.from_pretrained(model, device)


def holds(store: BankStore) -> str:
    """Says how much a bank holds."""
    return f"{store.folder} holds {count(len(store), 'picture')} of {count(len(store.names), 'name')}"


def count(number: int, thing: str) -> str:
    """Returns "1 picture", "2 pictures"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _some(sources: Sequence[str]) -> str:
    """Lists files, each once, and how many more there are."""
    distinct = list(dict.fromkeys(sources))
    more = f" and {len(distinct) - SOURCES} more" if len(distinct) > SOURCES else ""
    return ", ".join(distinct[:SOURCES]) + more


def _table(console: Console, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(cell_len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        cells = [cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
        say(console, "  ".join(cells).rstrip())


def say(console: Console, text: str) -> None:
    """Prints a line as it is."""
    console.print(text, markup=False, soft_wrap=True)
