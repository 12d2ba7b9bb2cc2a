"""Where the time of decoding goes, and how fast this machine multiplies matrices."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch

from dpseg.model import block_decoder
from dpseg.model.block_decoder import BlockDecoder
from dpseg.model.class_logits import Decoded
from dpseg.model.cost_guidance import CostGuidance
from dpseg.model.dpseg import DPSeg
from dpseg.model.rejection import Survivors
from dpseg.model.stage_run import StageRun

PARTS: tuple[tuple[object, str, str], ...] = (
    (DPSeg, "encode", "image encoder"),
    (BlockDecoder, "__init__", "what all classes share"),
    (StageRun, "spatial", "hybrid dilated blocks"),
    (StageRun, "add", "attention: sums"),
    (StageRun, "mix", "attention: each class"),
    (CostGuidance, "__call__", "F_v^j and its projection"),
    (StageRun, "rise", "raising and fusing"),
    (Survivors, "add", "early rejection"),
    (block_decoder, "_head", "last convolution, auxiliary heads"),
    (Decoded, "labels", "resizing to labels"),
)
"""Where a function is, its name, and what it does. None of them calls another."""

EMBEDDING, REST = "F_c and its embedding", "the rest"
PART_ORDER = [*(part for _, _, part in PARTS[:2]), EMBEDDING, *(part for _, _, part in PARTS[2:]), REST]
"""All parts, in the order in which a photo meets them."""


@contextlib.contextmanager
def timed_parts() -> Iterator[dict[str, float]]:
    """Gathers the seconds of each part of what is run within, by wrapping the functions that do it."""
    seconds: dict[str, float] = defaultdict(float)

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments, **options)
            seconds[part] += time.perf_counter() - start
            return steps(part, result) if isinstance(result, Iterator) else result

        return run

    def steps(part: str, results: Iterator[Any]) -> Iterator[Any]:
        while True:
            start = time.perf_counter()
            try:
                result = next(results)
            except StopIteration:
                return
            finally:
                seconds[part] += time.perf_counter() - start
            yield result

    originals = [(place, name, getattr(place, name)) for place, name, _ in PARTS]
    make_embedding = block_decoder.template_embedding
    for place, name, part in PARTS:
        setattr(place, name, timed(part, getattr(place, name)))
    block_decoder.template_embedding = lambda *given: timed(EMBEDDING, make_embedding(*given))
    try:
        yield seconds
    finally:
        for place, name, function in originals:
            setattr(place, name, function)
        block_decoder.template_embedding = make_embedding


def seconds_by_part(function: Callable[[], object]) -> dict[str, float]:
    """Runs a function once, and returns the seconds of each part, in the order in which a photo meets them."""
    with timed_parts() as seconds:
        start = time.perf_counter()
        function()
        whole = time.perf_counter() - start
    return {part: seconds[part] for part in PART_ORDER if part in seconds} | {REST: whole - sum(seconds.values())}


def sgemm_speed(runs: int, sizes: tuple[int, ...]) -> float:
    """Returns how fast this machine multiplies square matrices of single precision, in GFLOP/s, at its best size.

    Args:
        runs: of each size; their median counts.
        sizes: sides of the matrices.
    """
    best = 0.0
    for size in sizes:
        a, b, out = torch.rand(size, size), torch.rand(size, size), torch.empty(size, size)
        torch.matmul(a, b, out=out)  # warms up
        taken = [timed_once(lambda a=a, b=b, out=out: torch.matmul(a, b, out=out)) for _ in range(runs)]  # type: ignore[misc]
        best = max(best, 2 * size**3 / statistics.median(taken) / 1e9)
    return best


def timed_once(function: Callable[[], object]) -> float:
    """Returns the seconds that a function takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
