"""Peak memory of segmenting one photo, in a process of its own; `speed.py` starts it.

    python benchmarks/speed_memory.py base 847 [--max-classes 48 --keep-top 8] [--quick]

prints JSON: GB (10^9 bytes) at the process's peak, of the prompts alone, and the seconds of one photo.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch
from speed_cases import Case, ModelName, prompt_bytes

from dpseg.rejection import Rejection, rejection_of


@torch.inference_mode()
def probe(name: ModelName, count: int, rejection: Rejection | None, quick: bool = False) -> dict[str, Any]:
    """Segments one photo, after a short list to warm up, and returns what it took.

    Args:
        name: of the model.
        count: K.
        rejection: None: as the model comes; `Rejection()`: nothing is given up.
        quick: a tiny model.
    """
    case = Case(name, quick)
    case.look(case.encode(), case.prompts(2))
    prompts = case.prompts(count)
    with case.rejecting(rejection):
        start = time.perf_counter()
        case.look(case.encode(), prompts)
        seconds = time.perf_counter() - start
    return {
        "model": name,
        "classes": count,
        "rejection": None if rejection is None else asdict(rejection),
        "seconds": seconds,
        "peak_gb": peak_bytes() / 1e9,
        "prompts_gb": prompt_bytes(prompts) / 1e9,
    }


def peak_bytes() -> int:
    """Returns the largest resident size of this process so far."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux: getrusage there starts with the size of the process that started this one
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return 1024 * int(found[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def available_gb() -> float:
    """Returns how much memory is free, in GB (10^9 bytes); infinite where the system does not tell."""
    status = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    limits = [1024 * int(found[1])] if found else []
    for limit in (
        Path("/sys/fs/cgroup/memory.max"),
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
    ):  # containers'
        if limit.is_file() and limit.read_text().strip().isdigit():
            limits.append(int(limit.read_text()))
    return min(limits, default=float("inf")) / 1e9


def fresh_probe(name: ModelName, count: int, rejection: Rejection | None, quick: bool = False) -> dict[str, Any]:
    """Runs `probe` in a fresh process; the arguments and the result are the same."""
    command = [sys.executable, __file__, name, str(count), *(["--quick"] if quick else [])]
    if rejection is not None:
        command += ["--max-classes", str(rejection.max_classes or "all")]
        command += ["--keep-top", str(rejection.keep_top)] if rejection.keep_top else []
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> None:
    """Prints what one photo took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("model", choices=get_args(ModelName))
    parser.add_argument("classes", type=int)
    parser.add_argument("--max-classes", help="a number, or all; left out: as the model comes")
    parser.add_argument("--keep-top", type=int)
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    rejection = rejection_of(asked.max_classes, asked.keep_top)
    print(json.dumps(probe(asked.model, asked.classes, rejection, asked.quick)))


if __name__ == "__main__":
    main()
