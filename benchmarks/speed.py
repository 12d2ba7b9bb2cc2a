"""How fast and how small the decoder is: against SED's, against its own plain form, and against the machine.

    make bench             150 names, under five minutes on two idle cores; python benchmarks/speed.py [--out DIR]
    make bench-full        847 names too, for which SED's decoder takes 16 GB; python benchmarks/speed.py --full

writes latest.json and latest.md into benchmarks/results. The decoders and the encoder take turns in one process,
products of matrices before and after them, and the shortest of each counts, for short disturbances only add. What is
held against a bound is a ratio, which holds on any idle machine; seconds are printed as figures. Peaks of memory and
the start of the program are measured in fresh processes. base has random weights, which take as long as trained ones,
and prompts are random unit vectors. It fails where a bound is broken, and what memory cannot hold is skipped with a
line. --quick tries the whole with tiny models, and writes only with --out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from decoder_work import count_multiplications
from speed_cases import QUICK, ROOT, Case, Sizes
from speed_memory import available_gb, fresh_probe

from dpseg.files import make_folder, write_atomically
from dpseg.model.class_logits import all_logits
from dpseg.rejection import Rejection

RESULTS = Path(__file__).parent / "results"
SED_GB_A_CLASS = 0.02
"""What SED's decoder takes for each class at 768 x 768 pixels: 16 GB for 847."""


@dataclass(frozen=True)
class Bound:
    """What a figure must be on any machine.

    Attributes:
        what: it says, for the table.
        limit: the largest allowed value, or the smallest.
        least: it is the smallest.
    """

    what: str
    limit: float
    least: bool = False

    def kept(self, value: float | None) -> bool:
        """Whether a figure is within the bound, or was not measured."""
        return value is None or (value >= self.limit if self.least else value <= self.limit)


BOUNDS = {
    "sed_ratio_k150": Bound("150 names: seconds of SED's decoder, against ours", 2.0, True),
    "sed_ratio_k847": Bound("847 names: seconds of SED's decoder, against ours", 1.7, True),
    "plain_ratio_k150": Bound("150 names: seconds of our decoder's plain form, against those by blocks", 3.0, True),
    "largest_difference": Bound("the plain form's logits against those by blocks, as a share of the largest", 1e-4),
    "sgemm_share_k150": Bound("150 names: the decoder's share of the speed of matrix products", 0.25, True),
    "memory_ratio_k847": Bound("peak memory with 847 names, against 150", 1.5),
    "refine_ratio_k150": Bound("150 names, early rejection: Inference I and II with a crop, against I", 1.7),
    "start_ratio": Bound("a cold `dpseg predict`, against importing torch", 6.0),
}


def seconds_of(function: Callable[[], object]) -> float:
    """Returns the seconds that a function takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def turns(functions: dict[str, Callable[[], object]], plan: tuple[str, ...]) -> dict[str, float]:
    """Runs functions in turns, and returns the seconds of the shortest run of each.

    Args:
        functions: by name.
        plan: names, in the order in which they run.
    """
    runs: dict[str, list[float]] = {}
    for name in plan:
        runs.setdefault(name, []).append(seconds_of(functions[name]))
    return {name: min(values) for name, values in runs.items()}


def sgemm_speed(quick: bool) -> float:
    """Returns how fast this machine multiplies square matrices of single precision, in GFLOP/s, at its best size."""
    best = 0.0
    for size in (256,) if quick else (1024, 2048, 3072):
        a, b, out = torch.rand(size, size), torch.rand(size, size), torch.empty(size, size)
        torch.matmul(a, b, out=out)  # warms up
        taken = [seconds_of(lambda a=a, b=b, out=out: torch.matmul(a, b, out=out)) for _ in range(5)]  # type: ignore[misc]
        best = max(best, 2 * size**3 / min(taken) / 1e9)
    return best


def decoders(case: Case, count: int, plan: tuple[str, ...]) -> dict[str, float]:
    """Times the decoders and the encoder in turns, on one photo.

    Args:
        case: base.
        count: K.
        plan: of `turns`, of "encoder", "ours", "plain" (our formulas as they stand) and "sed".

    Returns:
        Seconds of each, GFLOP/s of products of matrices measured before and after (the best), GFLOP of our decoder, and
        where the plan has "plain" by how much its logits differ from ours, against the largest.
    """
    prompts, pyramid, sed = case.prompts(count).embeddings, case.encode().pyramid, case.sed_decoder()
    logits: dict[str, torch.Tensor] = {}

    def ours() -> None:
        logits["ours"] = all_logits(case.model.decode_blocks(pyramid, prompts), count)

    def plain() -> None:
        logits["plain"] = case.model.decode_plainly(pyramid, prompts)[0]

    def theirs() -> None:
        sed(pyramid.dense, prompts.text[None], pyramid.stages)

    few = case.prompts(4).embeddings
    case.model.decode_plainly(pyramid, few)  # these warm up
    sed(pyramid.dense, few.text[None], pyramid.stages)
    case.model.decode_blocks(pyramid, few)
    before = sgemm_speed(case.quick)
    taken = turns({"encoder": case.encode, "ours": ours, "plain": plain, "sed": theirs}, plan)
    taken["sgemm, GFLOP/s"] = max(before, sgemm_speed(case.quick))
    taken["ours, GFLOP"] = 2 * count_multiplications(ours) / 1e9
    if "plain" in logits:
        difference = (logits["ours"] - logits["plain"]).abs().max() / logits["plain"].abs().max()
        taken["largest difference"] = float(difference)
    return taken


def refinement(case: Case, count: int, rejection: Rejection, runs: int) -> dict[str, float]:
    """Times Inference I with early rejection, and what Inference II with one crop adds; the shortest seconds."""
    prompts = case.prompts(count)
    encoded = case.encode()

    with case.rejecting(rejection):
        found, _ = case.look(encoded, prompts)

        def first() -> None:
            case.look(case.encode(), prompts)

        def second() -> None:
            case.look_again(encoded, prompts, found, 1)

        return turns({"first": first, "second": second}, ("first", "second") * runs)


def start(runs: int) -> dict[str, float]:
    """Times a cold `dpseg predict` of one word, its cache empty, and a cold `import torch`; the shortest seconds."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "DPSEG_CACHE": str(Path(folder) / "cache")}
        photo, out = str(ROOT / "examples" / "chelsea.jpg"), str(Path(folder) / "out")
        predict = [sys.executable, "-m", "dpseg", "predict", photo, "--text", "cat", "--out", out]

        def run(command: list[str]) -> None:
            shutil.rmtree(environment["DPSEG_CACHE"], ignore_errors=True)
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")

        functions = {"predict": lambda: run(predict), "torch": lambda: run([sys.executable, "-c", "import torch"])}
        for function in functions.values():  # the first of each reads from the disk and does not count
            function()
        return turns(functions, ("predict", "torch") * runs)


@torch.inference_mode()
def measure(sizes: Sizes, full: bool) -> dict[str, Any]:
    """Measures everything.

    Args:
        sizes: which numbers of classes.
        full: also the long list.

    Returns:
        JSON values, the named figures first; None where memory cannot hold something or it was not asked for.
    """
    base = Case("base", sizes.quick)
    usual = decoders(base, sizes.usual, ("encoder", "ours", "sed", "plain") * 2)
    print(f"{sizes.usual} names: SED / ours {usual['sed'] / usual['ours']:.2f}", flush=True)
    again = refinement(base, sizes.usual, sizes.rejection, sizes.runs)
    many: dict[str, float] = {}
    needed = sizes.many * (0.0 if sizes.quick else SED_GB_A_CLASS)
    if full and (free := available_gb()) < needed:
        print(
            f"skipped: {sizes.many} names in SED's decoder take {needed:.0f} GB, and {free:.0f} GB are free", flush=True
        )
    elif full:
        many = decoders(base, sizes.many, ("ours", "sed") * 2)
        print(f"{sizes.many} names: SED / ours {many['sed'] / many['ours']:.2f}", flush=True)
    del base
    counts = (sizes.usual, sizes.many) if full else (sizes.usual,)
    memory = [fresh_probe("base", count, Rejection(), sizes.quick) for count in counts]
    began = start(sizes.runs)
    speed = usual["ours, GFLOP"] / usual["ours"]
    return {
        "sed_ratio_k150": usual["sed"] / usual["ours"],
        "sed_ratio_k847": many["sed"] / many["ours"] if many else None,
        "plain_ratio_k150": usual["plain"] / usual["ours"],
        "sgemm_share_k150": speed / usual["sgemm, GFLOP/s"],
        "peak_gb_k847": memory[1]["peak_gb"] if full else None,
        "memory_ratio_k847": memory[1]["peak_gb"] / memory[0]["peak_gb"] if full else None,
        "refine_ratio_k150": 1 + again["second"] / again["first"],
        "start_seconds": began["predict"],
        "start_ratio": began["predict"] / began["torch"],
        "largest_difference": usual["largest difference"],
        "usual": usual,
        "many": many,
        "refinement": again,
        "memory": memory,
        "start": began,
        "quick": sizes.quick,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
    }


def markdown(results: dict[str, Any]) -> str:
    """Returns the tables."""
    machine, usual, many = results["machine"], results["usual"], results["many"]
    lines = ["# Speed and memory", ""]
    if results["quick"]:
        lines += ["Tiny models: these figures only show that the benchmark works.", ""]
    lines += [
        f"{machine['processor']}, {machine['instructions']}, {machine['cores']} cores, {machine['threads']} threads,"
        f" torch {machine['torch']}; {usual['sgemm, GFLOP/s']:.0f} GFLOP/s in products of square matrices.",
        "",
        "| | measured | bound | |",
        "|---|---|---|---|",
    ]
    for key, bound in BOUNDS.items():
        value, sign = results[key], "≥" if bound.least else "≤"
        shown = "not measured" if value is None else f"{value:.2f}" if value > 0.01 else f"{value:.1e}"
        lines.append(f"| {bound.what} | {shown} | {sign} {bound.limit} | {'' if bound.kept(value) else 'broken'} |")
    lines += ["", "| base, 768 x 768, seconds | 150 names | 847 names |", "|---|---|---|"]
    titles = {
        "encoder": "image encoder",
        "ours": "our decoder",
        "plain": "our decoder, its formulas as they stand",
        "sed": "SED's decoder",
    }
    for name, title in titles.items():
        cells = (f"{row[name]:.2f}" if name in row else "" for row in (usual, many))
        lines.append(f"| {title} | {' | '.join(cells)} |")
    peaks = [f"{row['peak_gb']:.2f}" for row in results["memory"]] + [""]
    lines.append(f"| peak memory of a photo with ours, GB | {peaks[0]} | {peaks[1]} |")
    first, second = results["refinement"]["first"], results["refinement"]["second"]
    lines += [
        "",
        f"150 names with early rejection: {first:.2f} s from photo to labels, and {second:.2f} s more for Inference II"
        " with a crop.",
        "",
        f"A cold `dpseg predict` of one word takes {results['start_seconds']:.2f} s, importing torch"
        f" {results['start']['torch']:.2f} s of it.",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Measures, prints the tables, writes the files, and returns 1 where a bound is broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, help=f"folder; default: {RESULTS.relative_to(RESULTS.parent.parent)}")
    parser.add_argument("--full", action="store_true", help="also 847 names")
    parser.add_argument("--quick", action="store_true", help="tiny models, to try the benchmark itself")
    asked = parser.parse_args()
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.5:  # threads that wait for a busy core distort even ratios
        print(f"this machine is busy (load {os.getloadavg()[0]:.1f}); the figures hold on an idle one", flush=True)
    results = measure(QUICK if asked.quick else Sizes(), asked.full)
    text = markdown(results)
    print("\n" + text)
    out = asked.out or (None if asked.quick else RESULTS)
    if out is not None:
        folder = make_folder(out)
        write_atomically(folder / "latest.json", (json.dumps(results, indent=1) + "\n").encode())
        write_atomically(folder / "latest.md", text.encode())
    return 0 if asked.quick else int(not all(bound.kept(results[key]) for key, bound in BOUNDS.items()))


if __name__ == "__main__":
    sys.exit(main())
