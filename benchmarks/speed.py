"""Speed and memory of base and lite, against the plain reference path and against the project's bounds.

    make bench          or: python benchmarks/speed.py [--out DIR] [--full] [--quick]

runs on an idle machine for some minutes, and writes latest.json, latest.md and latest.png into benchmarks/results.
Times are medians of three runs after one to warm up, all in one process, in which the plain path, the path by blocks
and multiplications of matrices take turns, so that ratios hold on any machine. Each figure of memory comes from a
process of its own. base has random weights, which take as long as trained ones; prompts are random unit vectors. It
fails where a bound is broken. --full also decodes 10,000 classes of base to the end, for some minutes more; --quick
tries the whole with tiny models, and writes nothing unless --out says where.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from decoder_work import count_multiplications
from speed_cases import CROPS, QUICK, Case, ModelName, Sizes
from speed_memory import fresh_probe
from speed_parts import seconds_by_part, sgemm_speed, timed_once
from speed_report import BOUNDS, draw, markdown

from dpseg.files import make_folder, write_atomically
from dpseg.model.class_logits import all_logits
from dpseg.rejection import Rejection

RESULTS = Path(__file__).parent / "results"
EXACT = Rejection()


def medians(runs: dict[str, list[float]]) -> dict[str, float]:
    """Returns the median of each."""
    return {name: statistics.median(values) for name, values in runs.items()}


def photo_seconds(case: Case, count: int, rejection: Rejection | None, runs: int, again: bool = False) -> list[float]:
    """Returns the seconds of one photo from the encoder to its labels, of each run; one more warms up.

    Args:
        case: a model and a photo.
        count: K.
        rejection: None: as the model comes.
        runs: so many.
        again: with Inference II.
    """
    prompts = case.prompts(count)

    def once() -> None:
        encoded = case.encode()
        found, _ = case.look(encoded, prompts)
        if again:
            case.look_again(encoded, prompts, found, CROPS[0])

    with case.rejecting(rejection):
        return [timed_once(once) for _ in range(runs + 1)][1:]


def against_plain(case: Case, sizes: Sizes) -> dict[str, Any]:
    """Times the plain path and the path by blocks in turns, and what share of the matrix speed is reached."""
    prompts = case.prompts(sizes.usual).embeddings
    encoded = case.encode()
    pyramid = encoded.pyramid

    def blocks() -> torch.Tensor:
        return all_logits(case.model.decode_blocks(pyramid, prompts), sizes.usual)

    def plain() -> torch.Tensor:
        return case.model.decode_plainly(pyramid, prompts)[0]

    expected = plain()
    difference = float((blocks() - expected).abs().max() / expected.abs().max())  # these warm up, too
    del expected
    runs: dict[str, list[float]] = {"sgemm": [], "encoder": [], "blocks": [], "plain": []}
    for _ in range(sizes.runs):
        runs["sgemm"].append(sgemm_speed(3, (256,) if sizes.quick else (1024, 2048, 3072)))
        runs["encoder"].append(timed_once(case.encode))
        runs["blocks"].append(timed_once(blocks))
        runs["plain"].append(timed_once(plain))
    taken = medians(runs)
    work = {"encoder": count_multiplications(case.encode), "decoder": count_multiplications(blocks)}
    work["both"] = sum(work.values())
    seconds = {"encoder": taken["encoder"], "decoder": taken["blocks"], "both": taken["encoder"] + taken["blocks"]}
    reached = {part: 2 * work[part] / seconds[part] / 1e9 for part in work}
    return {
        "plain_seconds": taken["plain"],
        "blocks_seconds": taken["blocks"],
        "encoder_seconds": taken["encoder"],
        "speedups": [p / b for p, b in zip(runs["plain"], runs["blocks"], strict=True)],
        "largest_difference": difference,
        "gflop": {part: 2 * count / 1e9 for part, count in work.items()},
        "gflop_per_second": reached,
        "sgemm_gflop_per_second": taken["sgemm"],
        "share_of_sgemm": {part: speed / taken["sgemm"] for part, speed in reached.items()},
    }


def parts(case: Case, sizes: Sizes) -> dict[str, dict[str, float]]:
    """Returns the seconds of each part of one photo, exact and with early rejection."""
    rows = {}
    for name, count, rejection in (("exact", sizes.usual, EXACT), ("early rejection", sizes.many, sizes.rejection)):
        prompts = case.prompts(count)
        with case.rejecting(rejection):
            rows[f"{name}, {count} classes"] = seconds_by_part(lambda: case.look(case.encode(), prompts))  # noqa: B023
    return rows


def refinement(case: Case, sizes: Sizes, rejection: Rejection) -> dict[str, float]:
    """Returns the seconds of one photo with Inference I, and the ratio with II to it, for each number of crops."""
    prompts = case.prompts(sizes.usual)
    runs: dict[str, list[float]] = {}

    def first() -> None:
        nonlocal encoded, found
        encoded = case.encode()
        found, _ = case.look(encoded, prompts)

    with case.rejecting(rejection):
        encoded = case.encode()
        found, _ = case.look(encoded, prompts)
        for number in range(sizes.runs + 1):
            one = timed_once(first)
            some = CROPS if number else CROPS[:1]  # the first run warms up
            again = [timed_once(lambda n=n: case.look_again(encoded, prompts, found, n)) for n in some]  # type: ignore[misc]
            if number:
                runs.setdefault("seconds", []).append(one)
                for crops, seconds in zip(CROPS, again, strict=True):
                    runs.setdefault(f"ratio, {crops} crops", []).append(1 + seconds / one)
    return medians(runs)


def memory(sizes: Sizes, full: bool) -> list[dict[str, Any]]:
    """Returns what fresh processes took, of both models and growing numbers of classes."""
    jobs: list[tuple[ModelName, int, Rejection | None]] = []
    counts = (sizes.few, sizes.usual, sizes.many, sizes.most)
    jobs += [("base", count, EXACT) for count in (counts if full else counts[:3])]
    jobs += [("base", count, sizes.rejection) for count in counts[1:]]
    jobs += [("lite", count, EXACT) for count in counts] + [("lite", count, None) for count in counts[1:]]
    rows = []
    for name, count, rejection in jobs:
        rows.append(fresh_probe(name, count, rejection, sizes.quick))
        print(f"{name}, {count} classes: {rows[-1]['seconds']:.2f} s, {rows[-1]['peak_gb']:.2f} GB", flush=True)
    return rows


def peak(rows: list[dict[str, Any]], model: str, count: int, exact: bool, less_prompts: bool = False) -> float | None:
    """Returns the peak in GB of one row; None: there is none."""
    for row in rows:
        bound = (row["rejection"] or {"max_classes": 0})["max_classes"]
        if (row["model"], row["classes"], bound is None) == (model, count, exact):
            return float(row["peak_gb"] - (row["prompts_gb"] if less_prompts else 0))
    return None


def growth(rows: list[dict[str, Any]], sizes: Sizes, less_prompts: bool) -> dict[str, float]:
    """Returns by what factor memory grows from the usual number of classes to the most, of each model and mode."""
    found = {}
    for model in ("base", "lite"):
        for exact in (True, False):
            usual, most = (peak(rows, model, n, exact, less_prompts) for n in (sizes.usual, sizes.most))
            if usual is not None and most is not None:
                found[f"{model}, {'exact' if exact else 'early rejection'}"] = most / usual
    return found


@torch.inference_mode()
def measure(sizes: Sizes, full: bool = False) -> dict[str, Any]:
    """Measures everything.

    Args:
        sizes: which numbers of classes.
        full: also memory of the most classes of base, exact.

    Returns:
        JSON values, the bounded figures first.
    """
    base, runs = Case("base", sizes.quick), sizes.runs
    compared = against_plain(base, sizes)
    print(f"base, {sizes.usual} classes: decoder x {statistics.median(compared['speedups']):.2f}", flush=True)
    usual = photo_seconds(base, sizes.usual, EXACT, runs)
    by_part = parts(base, sizes)
    again = {name: refinement(base, sizes, bound) for name, bound in (("reject", sizes.rejection), ("exact", EXACT))}
    many, rejecting = (photo_seconds(base, sizes.many, bound, runs) for bound in (EXACT, sizes.rejection))
    del base
    lite = Case("lite", sizes.quick)
    short, long = (photo_seconds(lite, count, None, runs, again=True) for count in (sizes.few, sizes.usual))
    del lite
    rows = memory(sizes, full)
    grown = growth(rows, sizes, less_prompts=True)
    return {
        "decoder_speedup_k150": statistics.median(compared["speedups"]),
        "seconds_k150": statistics.median(usual),
        "seconds_k847": statistics.median(many),
        "peak_gb_k847": peak(rows, "base", sizes.many, exact=True),
        "seconds_k847_reject": statistics.median(rejecting),
        "peak_gb_k847_reject": peak(rows, "base", sizes.many, exact=False),
        "memory_ratio_k10000": max(grown.values()),
        "sgemm_share_k150": compared["share_of_sgemm"]["both"],
        "lite_seconds_20": statistics.median(short),
        "lite_seconds_150": statistics.median(long),
        "refine_ratio_k150": again["reject"][f"ratio, {CROPS[0]} crops"],
        "memory_ratios": grown,
        "memory_ratios_with_prompts": growth(rows, sizes, less_prompts=False),
        "crops": CROPS[0],
        "rejection": {"max_classes": sizes.rejection.max_classes, "keep_top": sizes.rejection.keep_top},
        "against_plain": compared,
        "refinement": again,
        "parts": by_part,
        "memory": rows,
        "quick": sizes.quick,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
    }


def main() -> int:
    """Measures, prints the table, writes the files, and returns 1 where a bound is broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, help=f"folder; default: {RESULTS.relative_to(RESULTS.parent.parent)}")
    parser.add_argument("--full", action="store_true", help="also decode 10,000 classes of base to the end")
    parser.add_argument("--quick", action="store_true", help="tiny models, to try the benchmark itself")
    asked = parser.parse_args()
    results = measure(QUICK if asked.quick else Sizes(), asked.full)
    text = markdown(results)
    print("\n" + text)
    out = asked.out or (None if asked.quick else RESULTS)
    if out is not None:
        folder = make_folder(out)
        write_atomically(folder / "latest.json", (json.dumps(results, indent=1) + "\n").encode())
        write_atomically(folder / "latest.md", text.encode())
        write_atomically(folder / "latest.png", draw(results))
    return 0 if asked.quick else int(not all(bound.kept(results[key]) for key, bound in BOUNDS.items()))


if __name__ == "__main__":
    sys.exit(main())
