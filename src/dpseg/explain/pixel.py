"""Why a pixel got its class: the logits of the best classes, and the cosines with their words and pictures there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dpseg.errors import ConfigError
from dpseg.explain.cost import TEXT, VISUAL, cost_maps
from dpseg.explain.origins import Origins, Picture, Share
from dpseg.explain.point_logits import Point, PointLogits, baseline_map, decode_at, sample
from dpseg.images import ImageLike
from dpseg.model.class_logits import UNDECODED
from dpseg.photos import Encoded
from dpseg.prompts.prompt_set import PromptSet
from dpseg.refine import find_regions
from dpseg.refine import refine as refine_prompts
from dpseg.segmenter import Segmenter


@dataclass(frozen=True)
class Nearest:
    """The one of a class's own pictures that is most like a pixel.

    Attributes:
        source: how it was given; may be empty.
        cosine: of its V with E, in [-1, 1].
    """

    source: str
    cosine: float


@dataclass(frozen=True)
class Candidate:
    """A class at a pixel. A number is None where the class has no such prompt, or the model no such part.

    Attributes:
        name: its name.
        sources: where its prompts come from, as in `PromptSet.sources`.
        logit: its score is the sigmoid of it.
        baseline: the part of it that is a scaled cosine, see `model.dpseg.Baseline`; None: the model has none.
        decoder: the rest, the decoder's.
        first: the logit of Inference I; None: there was no second.
        cosines: of E with T ("text"), V ("visual") and R ("dual"), and of E_j with GAP(V_j) ("stage4", ...) for each
            scale that the decoder reads.
        picture: of its references.
        bank: names of the banks of which its pictures were made.
        presence: what the logit gains when classes compete, see `model.class_logits.presence_shift`.
        adjustment: what it gains then by how rare the class was in training, see `Matching.logit_adjustment`.
    """

    name: str
    sources: tuple[str, ...]
    logit: float
    baseline: float | None
    decoder: float | None
    first: float | None
    cosines: dict[str, float | None]
    picture: Nearest | None
    bank: tuple[Share, ...]
    presence: float = 0.0
    adjustment: float = 0.0

    @property
    def rank(self) -> float:
        """What decides: the logit, and what it gains."""
        return self.logit + self.presence + self.adjustment

    @property
    def score(self) -> float:
        """Sigmoid of the logit, in [0, 1]."""
        return float(torch.tensor(self.logit).sigmoid())


@dataclass(frozen=True)
class PixelReport:
    """A pixel and the classes that fit it best.

    Attributes:
        point: x and y.
        candidates: the best first; one at least.
        summary: one sentence.
    """

    point: Point
    candidates: tuple[Candidate, ...]
    summary: str

    @property
    def margin(self) -> float | None:
        """By how much the best class leads; None where there is one class only."""
        return self.candidates[0].rank - self.candidates[1].rank if len(self.candidates) > 1 else None

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values."""
        return {
            "at": list(self.point),
            "winner": self.candidates[0].name,
            "margin": self.margin,
            "summary": self.summary,
            "classes": [
                {
                    "name": one.name,
                    "prompts": list(one.sources),
                    "logit": one.logit,
                    "presence": one.presence,
                    "adjustment": one.adjustment,
                    "score": one.score,
                    "baseline": one.baseline,
                    "decoder": one.decoder,
                    "inference_1": one.first,
                    "cosines": one.cosines,
                    "picture": None if one.picture is None else vars(one.picture),
                    "bank": [{"name": share.name, "share": share.share, "source": share.source} for share in one.bank],
                }
                for one in self.candidates
            ],
        }


@torch.inference_mode()
def explain_pixels(
    segmenter: Segmenter,
    image: ImageLike,
    points: Sequence[Point],
    prompts: PromptSet,
    origins: Origins,
    *,
    refine: bool | None = None,
    count: int = 3,
    size: int | None = None,
) -> tuple[Image.Image, list[PixelReport]]:
    """Segments a photo, and looks at some pixels.

    Args:
        segmenter: the model.
        image: the photo.
        points: pixels of it, at its own size.
        prompts: of all classes that compete.
        origins: what is known of where the prompts come from.
        refine: run Inference II too; None: as the model's config says.
        count: so many classes a pixel, the best, 1 or more.
        size: the encoder's input size in pixels; None: the model's own.

    Returns:
        The photo, and a report a pixel.

    Raises:
        ImageError: the photo cannot be read.
        PromptError: the prompts are of another model.
        ConfigError: a point lies outside the photo, or count or size is out of range.
    """
    if count < 1:
        raise ConfigError(f"classes {count} is out of range; give 1 or more")
    encoded = segmenter.encode([image], size)
    photo = encoded.photos[0].image
    for x, y in points:
        if not (0 <= x < photo.width and 0 <= y < photo.height):
            raise ConfigError(
                f"pixel {x},{y} is outside the photo; give x from 0 to {photo.width - 1} and y from 0 to"
                f" {photo.height - 1}"
            )
    prompts = segmenter.usable(prompts)
    first = decode_at(segmenter.model, encoded.pyramid, prompts, points, photo.size)
    again = segmenter.model.config.refine if refine is None else refine
    found, used = _refined(segmenter, encoded, prompts, first, points) if again else (first, prompts)
    reports = []
    for number, point in enumerate(points):
        now, before = found.logits[number], first.logits[number]
        order = found.ranks[number].argsort(descending=True, stable=True)[:count].tolist()
        best = [k for k in order if now[k] > UNDECODED / 2]
        names = [prompts.names[k] for k in best]
        some = used.select(names)
        maps = {name: torch.from_numpy(one) for name, one in cost_maps(segmenter.model, encoded.pyramid, some).items()}
        cosines = {name: sample(one, point, photo.size).tolist() for name, one in maps.items()}
        plain = baseline_map(segmenter.model, encoded.pyramid, some, first.best.shape)
        bases = [None] * len(best) if plain is None else sample(plain, point, photo.size).tolist()
        dense = sample(encoded.pyramid.dense[0].cpu(), point, photo.size)
        candidates = []
        for row, k in enumerate(best):
            logit, base, sources = float(now[k]), bases[row], some.sources[row] if some.sources else ()
            candidates.append(
                Candidate(
                    name=names[row],
                    sources=sources,
                    logit=logit,
                    baseline=base,
                    decoder=None if base is None else logit - base,
                    first=float(before[k]) if again else None,
                    cosines={name: _number(values[row]) for name, values in cosines.items()},
                    picture=_nearest(origins.pictures.get(names[row], ()), dense) if "reference" in sources else None,
                    bank=origins.bank.get(names[row], ()) if {"bank", "regressed"} & {*sources} else (),
                    presence=float(found.presence[k]),
                    adjustment=float(found.adjustment[k]),
                )
            )
        reports.append(PixelReport(point, tuple(candidates), summarise(candidates)))
    return photo, reports


def summarise(candidates: Sequence[Candidate]) -> str:
    """Says in one sentence why the first of the classes won over the second.

    Args:
        candidates: the best first; one at least.
    """
    winner = candidates[0]
    if len(candidates) == 1:
        return f"{winner.name!r} is the only class that was decoded here."
    other = candidates[1]
    fits = [
        (what, winner.cosines.get(kind), other.cosines.get(kind))
        for what, kind in (("words", TEXT), ("pictures", VISUAL))
    ]
    both = [(what, mine, theirs) for what, mine, theirs in fits if mine is not None and theirs is not None]
    better = [f"its {what} ({mine:.2f} against {theirs:.2f})" for what, mine, theirs in both if mine > theirs]
    worse = [f"its {what} ({mine:.2f} against {theirs:.2f})" for what, mine, theirs in both if mine <= theirs]
    if not both:
        why = "the two have no kind of prompt in common"
    elif len(better) == 2:
        why = f"both {better[0]} and {better[1]} fit better"
    elif better:
        why = f"{better[0]} fit better" + (f", {worse[0]} do not" if worse else "")
    else:
        why = f"though {' and '.join(worse)} fit no better"
    deciding = ""
    if winner.baseline is not None and other.baseline is not None and winner.baseline <= other.baseline:
        deciding = f"; by the plain cosine it would be {other.name!r}, the decoder turns it"
    if winner.logit < other.logit:
        deciding = f"; by the logits it would be {other.name!r}, of which less of the photo is seen"
    margin = winner.rank - other.rank
    by = f"{margin:.1f}" if margin >= 1 else f"{margin:.2f}"
    return f"{winner.name!r} wins over {other.name!r} by {by}: {why}{deciding}."


def _refined(
    segmenter: Segmenter, encoded: Encoded, prompts: PromptSet, first: PointLogits, points: Sequence[Point]
) -> tuple[PointLogits, PromptSet]:
    """Runs Inference II, and returns the prompts that it used."""
    if not segmenter.model.reads_pictures:
        return first, prompts
    regions = find_regions(first.best, first.leaders, segmenter.refinement)
    used = refine_prompts(segmenter.model, encoded, prompts, [regions], segmenter.refinement)[0]
    if used is prompts:
        return first, prompts
    return decode_at(segmenter.model, encoded.pyramid, used, points, encoded.photos[0].image.size), used


def _nearest(pictures: Sequence[Picture], dense: Tensor) -> Nearest | None:
    """Returns the picture whose V is most like E at a pixel, (D,)."""
    if not pictures:
        return None
    cosines = torch.stack([picture.vector for picture in pictures]) @ F.normalize(dense, dim=0)
    best = int(cosines.argmax())
    return Nearest(pictures[best].source, float(cosines[best]))


def _number(value: float) -> float | None:
    """Returns None for NaN: the class has no such prompt."""
    return value if value == value else None
