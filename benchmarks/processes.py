"""Commands in processes of their own, and what they take; without torch, whose memory a child's peak would count."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

NAMES = (
    "person", "bicycle", "car", "cat", "dog", "chair", "couch, sofa", "dining table", "cup, mug", "spoon",
    "plate", "book", "clock", "wall", "floor", "window", "tree", "grass", "sky", "road",
)  # fmt: skip
"""Twenty classes of a usual question, for benchmarks of the whole program."""


def run_process(command: list[str], cache: Path | None = None) -> tuple[float, float]:
    """Runs a command, and returns its seconds and its peak memory in GB (10^9 bytes).

    Args:
        command: what to run.
        cache: where it keeps embeddings; None: where the user does.
    """
    environment = os.environ if cache is None else {**os.environ, "DPSEG_CACHE": str(cache)}
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:3])} ... failed with status {process.returncode}")
    return seconds, usage.ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    ) / 1e9  # bytes there, kilobytes elsewhere
