"""`dpseg prompts generate`: classes in, painted pictures of each in a folder."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dpseg.commands.places import check_writable
from dpseg.commands.progress import progress
from dpseg.errors import ConfigError, PromptError

if TYPE_CHECKING:
    from dpseg.generation.manifest import Entry, Manifest
    from dpseg.generation.painting import Painting
    from dpseg.generation.pipeline import Painter, Wishes
    from dpseg.generation.plan import Slot
    from dpseg.prompts.text import ClassName
    from dpseg.segmenter import Segmenter

GPU_BATCH = 4
"""Pictures at a time on a GPU; a CPU takes one."""

ROWS = 12
"""So many classes with pictures missing are listed."""


@dataclass(frozen=True)
class GenerateOptions:
    """The options of `dpseg prompts generate`.

    Attributes:
        out: folder of the pictures.
        text: classes, synonyms after commas.
        vocabularies: names of vocabularies, or files with one class a line.
        generator: folder of a diffusers pipeline, or "user/model" on the hub.
        per_class: pictures a class, 1 or more.
        templates: M, 1 to 80.
        negative: what is not to be seen.
        steps: of denoising; None: the pipeline's own.
        guidance: None: the pipeline's own.
        size: side in pixels; None: the pipeline's own.
        seed: 0 or more.
        batch_size: pictures at a time; None: as suits the device.
        device: None: CUDA where there is a GPU.
        dtype: auto, 32, 16 or bf16.
        model: whose joint space agreement is measured in.
        min_agreement: pictures below it are rejected, in [-1, 1]; None: none for that.
        retries: so many tries more for a picture that is rejected, 0 or more.
        keep_all: keep what still fails after the last try, but for what the safety checker flags.
        license: of the generator, where its model card does not say.
        save_prompts: file to which the prompt set of the pictures is written.
    """

    out: Path
    text: tuple[str, ...] = ()
    vocabularies: tuple[str, ...] = ()
    generator: str = "stabilityai/stable-diffusion-2-1"
    per_class: int = 10
    templates: int = 10
    negative: str = ""
    steps: int | None = None
    guidance: float | None = None
    size: int | None = None
    seed: int = 0
    batch_size: int | None = None
    device: str | None = None
    dtype: str = "auto"
    model: str = "dpseg-lite"
    min_agreement: float | None = None
    retries: int = 2
    keep_all: bool = False
    license: str | None = None
    save_prompts: Path | None = None


def generate(options: GenerateOptions, console: Console, errors: Console) -> int:
    """Paints what is missing of the pictures, and says what became of them.

    Args:
        options: what the user asked for.
        console: where progress and the summary are printed.
        errors: where classes without a picture are reported.

    Returns:
        The exit status: 0, or 1 where a class has no picture.

    Raises:
        DPSegError: the user's mistake, noticed before the first picture where that is possible.
    """
    from dpseg.generation.manifest import Manifest
    from dpseg.generation.plan import plan
    from dpseg.generation.source import import_diffusers
    from dpseg.segmenter import Segmenter

    _check(options)
    classes = _classes(options)
    slots = plan(classes, options.per_class, options.templates)
    check_writable(options.out)
    if options.save_prompts is not None:
        check_writable(options.save_prompts.parent)
    manifest = Manifest(options.out)
    import_diffusers()
    with console.status("Loading the models") if console.is_terminal else nullcontext():
        segmenter = Segmenter.from_pretrained(options.model, options.device)
        painting = _begin(options, classes, manifest, segmenter)
    start = time.perf_counter()
    batch_size = options.batch_size or (1 if segmenter.device.type == "cpu" else GPU_BATCH)
    made: list[Entry] = []
    with progress(console, painting.open(slots), "pictures", lines=True) as advance:
        for entries in painting.paint(slots, batch_size):
            made += entries
            for _ in filter(painting.closes, entries):
                advance()
    kept, failed = painting.kept(slots), painting.failed(slots)
    _tell_made(made, time.perf_counter() - start, console)
    _tell_kept(kept, slots, options, painting.painter, console)
    without = _tell_failed(failed, kept, classes, errors)
    _use(options, classes, kept, segmenter, console)
    return 1 if without else 0


def _check(options: GenerateOptions) -> None:
    """Checks the numbers.

    Raises:
        ConfigError: one is out of range.
    """
    lowest = {"per_class": 1, "steps": 1, "guidance": 0, "size": 8, "seed": 0, "batch_size": 1, "retries": 0}
    for name, least in lowest.items():
        value = getattr(options, name)
        if value is not None and not least <= value < 2**63:
            raise ConfigError(f"{name.replace('_', '-')} {value} is out of range; give {least} or more")
    if options.min_agreement is not None and not -1 <= options.min_agreement <= 1:
        raise ConfigError(f"min-agreement {options.min_agreement} is out of range; give a cosine from -1 to 1")


def _classes(options: GenerateOptions) -> list[ClassName]:
    """Returns the classes of --text, and those of the vocabularies that --text does not hold."""
    from dpseg.data.vocabularies import load_vocabulary
    from dpseg.prompts.text import parse_classes

    if not options.text and not options.vocabularies:
        raise PromptError("no classes given; name some: --text cat, or --vocabulary coco")
    classes = parse_classes(options.text) if options.text else []
    names = {entry.name.casefold() for entry in classes}
    for vocabulary in options.vocabularies:
        for entry in parse_classes(load_vocabulary(vocabulary)):
            if entry.name.casefold() not in names:
                names.add(entry.name.casefold())
                classes.append(entry)
    return classes


def _begin(
    options: GenerateOptions, classes: Sequence[ClassName], manifest: Manifest, segmenter: Segmenter
) -> Painting:
    """Loads the pipeline, and checks that the folder's pictures were painted as these are to be.

    Raises:
        DPSegError: they were not, or the pipeline cannot be used.
    """
    from dpseg.generation.painting import Painting, Rules
    from dpseg.generation.pipeline import Painter, Wishes
    from dpseg.generation.quality import Judge
    from dpseg.generation.source import find_generator, import_diffusers

    found = find_generator(options.generator)
    dtype = found.dtype(options.dtype, segmenter.device)
    painter = Painter.load(found, dtype, segmenter.device)
    wishes = painter.resolve(Wishes(options.negative, options.steps, options.guidance, options.size))
    settings = _settings(options, wishes, found.weights(), str(dtype).removeprefix("torch."))
    manifest.check(settings, {entry.name: entry.synonyms for entry in classes})
    about = settings | {
        "judge": options.model,
        "generator": options.generator,
        "commit": found.commit,
        "license": found.license() or options.license,
        "diffusers": str(import_diffusers().__version__),
        "safety_checker": painter.has_safety_checker,
    }
    judge = Judge.of(segmenter.model.encoder, segmenter.model.config.templates, classes, segmenter.cache)
    rules = Rules(options.min_agreement, options.retries, options.keep_all)
    return Painting(manifest, painter, judge, wishes, rules, options.seed, about)


def _settings(options: GenerateOptions, wishes: Wishes, weights: str, dtype: str) -> dict[str, Any]:
    """Returns what must be the same for all pictures of a folder."""
    settings: dict[str, Any] = {
        "weights": weights,
        "dtype": dtype,
        "base_seed": options.seed,
        "negative": wishes.negative,
        "steps": wishes.steps,
        "guidance": wishes.guidance,
        "size": wishes.size,
        "min_agreement": options.min_agreement,
        "keep_all": options.keep_all,
    }
    return settings if options.min_agreement is None else settings | {"judge": options.model}


def _tell_made(made: Sequence[Entry], seconds: float, console: Console) -> None:
    """Says what this run painted."""
    from dpseg.generation.manifest import KEPT

    if not made:
        console.print("nothing is missing, so nothing was painted")
        return
    kept = sum(entry.state == KEPT for entry in made)
    reasons = Counter(str(entry.reason) for entry in made if entry.state != KEPT)
    why = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    rejected = f", {len(made) - kept} rejected ({why})" if why else ""
    count = f"{len(made)} picture{'s' if len(made) > 1 else ''}"
    console.print(f"painted {count} in {seconds:.1f} s: {kept} kept{rejected}", markup=False, soft_wrap=True)


def _tell_kept(
    kept: Sequence[Entry], slots: Sequence[Slot], options: GenerateOptions, painter: Painter, console: Console
) -> None:
    """Says what the folder holds of what was asked for."""
    classes = len({slot.entry.name for slot in slots})
    line = f"{options.out}: {len(kept)} of {len(slots)} pictures of {classes} class{'es' if classes > 1 else ''}"
    if values := [entry.agreement for entry in kept if entry.agreement is not None]:
        middle = statistics.median(values)
        line += f"; agreement {min(values):.2f} to {max(values):.2f}, median {middle:.2f}, by {options.model}"
    console.print(line, markup=False, soft_wrap=True)
    if not painter.has_safety_checker:
        console.print(
            f"{options.generator} has no safety checker; look at the pictures before you show them to others",
            markup=False,
            soft_wrap=True,
        )


def _tell_failed(
    failed: Sequence[Entry], kept: Sequence[Entry], classes: Sequence[ClassName], errors: Console
) -> list[str]:
    """Says which classes lack pictures, and returns those that have none."""
    counts: dict[str, Counter[str]] = {}
    for entry in failed:
        counts.setdefault(entry.name, Counter())[str(entry.reason)] += 1
    for name, reasons in list(counts.items())[:ROWS]:
        why = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        errors.print(f"{name}: {reasons.total()} missing after all tries ({why})", markup=False, soft_wrap=True)
    if len(counts) > ROWS:
        errors.print(f"and {len(counts) - ROWS} classes more")
    have = {entry.name for entry in kept}
    without = [entry.name for entry in classes if entry.name not in have]
    if without:
        errors.print(f"no picture of: {', '.join(without)}", markup=False, soft_wrap=True)
    return without


def _use(
    options: GenerateOptions,
    classes: Sequence[ClassName],
    kept: Sequence[Entry],
    segmenter: Segmenter,
    console: Console,
) -> None:
    """Writes the prompt set, where it is asked for, and says how to use what was made."""
    from dpseg.prompts.visual import Reference

    if options.save_prompts is not None:
        references: dict[str, list[Reference]] = {}
        for entry in kept:
            mask = None if entry.mask is None else options.out / entry.mask
            references.setdefault(entry.name, []).append(Reference(options.out / str(entry.file), mask=mask))
        text = [", ".join(entry.synonyms) for entry in classes]
        segmenter.prompts(text, references or None, bank=False).save(options.save_prompts)
        command = f"dpseg predict PHOTOS --model {options.model} --prompts {options.save_prompts}"
    elif kept:
        place = options.out / str(kept[0].file)
        stencil = "" if kept[0].mask is None else f":{options.out / kept[0].mask}"
        command = f'dpseg predict PHOTOS --ref "{kept[0].name}={place}{stencil}", or all by --save-prompts FILE'
    else:
        return
    console.print(f"use: {command}", markup=False, soft_wrap=True)
