"""What looks wrong in prompts: classes that are hardly told apart, odd pictures, words that the model hardly knows.

The bounds were measured with dpseg-lite, on pictures of Caltech-101 (ten a name) and on the largest objects of each
class of four photo sets: things of COCO, clothing, facades and circuit boards. With encoders whose cosines lie
otherwise, such as CLIP's, the first two warn too often or too seldom. `benchmarks/prompt_warnings.py` prints the
figures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dpseg.explain.gap import Vectors
from dpseg.explain.origins import Origins
from dpseg.explain.prompt_report import ClassReport, PromptWarning
from dpseg.model.encoders import Encoder

ALIKE = 0.8
"""Classes whose R have at least this cosine are hardly told apart. Of 42 pairs above it (by words, three pictures, or
both), other pictures went to the right one of the two in 70 % of the cases, where 50 % is chance; of the 27,054 pairs
below it in 96 %. Of those above it, 14 % were told apart in 90 % of the cases or more. It finds few of those that
are confused: of the 552 pairs with less than 60 %, 97 % lie below it."""

UNLIKE = 0.3
"""A picture is unlike the others of its class where its cosine with their average is below this share of the class's
median. Of true pictures, 1.8 % lay below it with 3 a class, 1.0 % with 5 and 0.9 % with 8; of pictures of another class
that were put among them, 41, 55 and 60 %."""

LEAST_PICTURES = 3
"""With fewer pictures, none can be called the odd one."""

PIECES, LETTERS = 3, 2.0
"""A word that is cut into so many pieces or more, with fewer letters each on average, is hardly known to the text
encoder. With MiniLM that holds for none of COCO's 133 and PASCAL-Context's 459 names, for 0.1 % of ADE20K's 847, 1.0 %
of Caltech's 101 ("okapi") and 0.9 % of lite's bank; and for 60 % of random words of 4 letters, 92 % of 7, 89 % of
product codes, and 48 % of made-up words that can be spoken."""


def is_unknown(pieces: Sequence[str]) -> bool:
    """Whether a word that is cut into these pieces is hardly known to the text encoder, see `PIECES`."""
    return len(pieces) >= PIECES and sum(map(len, pieces)) < LETTERS * len(pieces)


def alike_classes(reports: Sequence[ClassReport], cosines: Vectors) -> list[PromptWarning]:
    """Finds pairs of classes that are hardly told apart, the most alike first."""
    pairs = [(int(a), int(b)) for a, b in np.argwhere(np.triu(cosines, 1) >= ALIKE)]
    warnings = []
    for a, b in sorted(pairs, key=lambda pair: -cosines[pair]):
        first, second = reports[a], reports[b]
        shared = [one.name for one in first.bank if one.name in {other.name for other in second.bank}]
        both_banked = bool({"bank", "regressed"} & {*first.sources} & {*second.sources})
        why = f"; both have the bank's pictures of {shared[0]!r}" if shared and both_banked else ""
        text = (
            f"{first.name!r} and {second.name!r} are hardly told apart: their prompts have a cosine of"
            f" {cosines[a, b]:.2f}{why}; keep one, make them synonyms, or give pictures in which they differ"
        )
        warnings.append(PromptWarning("alike", (first.name, second.name), text))
    return warnings


def unlike_pictures(
    reports: Sequence[ClassReport], origins: Origins, visual: Vectors, has_visual: NDArray[np.bool_]
) -> list[PromptWarning]:
    """Finds pictures that are unlike the others of their class, and the class that they are nearer to."""
    warnings = []
    for k, report in enumerate(reports):
        for number, picture in enumerate(report.pictures):
            if not picture.unlike or picture.to_others is None:
                continue
            middle = float(np.median([one.to_others or 0.0 for one in report.pictures]))
            cosines = np.where(has_visual, visual @ origins.pictures[report.name][number].vector.numpy(), -np.inf)
            cosines[k] = picture.to_others
            nearer = int(cosines.argmax())
            other = f" and {cosines[nearer]:.2f} with those of {reports[nearer].name!r}" if nearer != k else ""
            which = picture.source or f"picture {number + 1}"
            text = (
                f"{report.name!r}: {which} is unlike its other pictures: a cosine of {picture.to_others:.2f} with their"
                f" average, where {middle:.2f} is usual{other}; look at it"
            )
            warnings.append(PromptWarning("unlike", (report.name,), text))
    return warnings


def unknown_words(encoder: Encoder, reports: Sequence[ClassReport]) -> list[PromptWarning]:
    """Finds words that the text encoder hardly knows."""
    warnings = []
    for report in reports:
        for word in dict.fromkeys(word for name in report.words for word in name.split()):
            pieces = encoder.word_pieces(word)
            if is_unknown(pieces):
                text = (
                    f"{report.name!r}: the text encoder hardly knows {word!r}, it reads {' '.join(pieces)}; add a"
                    " synonym that says what it looks like, or pictures"
                )
                warnings.append(PromptWarning("unknown", (report.name,), text))
    return warnings


def notes(reports: Sequence[ClassReport], has_visual: NDArray[np.bool_]) -> list[str]:
    """Says for how many classes odd pictures cannot be told."""
    shown = [report for report, has in zip(reports, has_visual, strict=True) if has]
    average = sum(not report.pictures for report in shown)
    few = sum(0 < len(report.pictures) < LEAST_PICTURES for report in shown)
    notes = []
    if average:
        notes.append(f"odd pictures cannot be told of {_count(average)}: only the average of their pictures is kept")
    if few:
        notes.append(f"odd pictures cannot be told of {_count(few)} with fewer than {LEAST_PICTURES}")
    return notes


def _count(classes: int) -> str:
    return f"{classes} class{'' if classes == 1 else 'es'}"
