"""Large pictures in processes of their own: how much memory one takes, and what a kill leaves."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from support.large_pictures import write_black

RUN = """
import os, resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from dpseg.large import tiff
from dpseg.large.segment import LargeRun, TileOptions, Tiling, open_windows
from support.large_pictures import make_segmenter, prompts_of
tiff.CACHE_BYTES = 10_000_000  # by far less than the picture, as with larger ones
folder, stop = Path(sys.argv[2]), int(sys.argv[3])
segmenter, done = make_segmenter(folder / "cache"), 0
def advance():
    global done
    done += 1
    if done == stop:
        os.kill(os.getpid(), signal.SIGKILL)
for name in sys.argv[4:]:
    with open_windows(folder / name) as picture:
        place, options = (folder, Path(name).stem), TileOptions(Tiling(1024))
        run = LargeRun(segmenter, picture, folder / name, prompts_of(segmenter), place, options, ("png", "json"))
        finished = run.finished
        run.segment(advance)
    print(finished, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True)
"""


def process(folder: Path, stop: int, *names: str) -> tuple[int, list[list[int]]]:
    """Segments TIFF files in one process, which kills itself after so many tiles.

    Returns its status, and for each picture the rows that were finished before, and the peak memory in MB until then.
    """
    command = [sys.executable, "-c", RUN, str(Path(__file__).parent), str(folder), str(stop), *names]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    scale = 1_000_000 if sys.platform == "darwin" else 1000
    lines = [line.split() for line in result.stdout.splitlines()]
    return result.returncode, [[int(finished), int(memory) // scale] for finished, memory in lines]


@pytest.mark.skipif(sys.platform == "win32", reason="the system does not say how much memory a process took")
def test_memory_is_bounded_and_a_kill_loses_a_row_at_most(tmp_path: Path) -> None:
    write_black(tmp_path / "small.tif", 1500, 512)
    write_black(tmp_path / "large.tif", 4500, 512)
    small_tiles, columns = 4, 6  # of 4500 pixels: ceil((4500 - 1024) / 768) + 1
    status, [[_, small]] = process(tmp_path, small_tiles + 3 * columns + 2, "small.tif", "large.tif")
    assert status == -signal.SIGKILL
    assert [path.name for path in tmp_path.glob("large_*")] == ["large_tiles.part"]
    status, [[finished, large]] = process(tmp_path, -1, "large.tif")
    assert (status, finished) == (0, 3)
    labels = tifffile.imread(tmp_path / "large_labels.tif")
    assert labels.shape == (4500, 4500)
    assert len(np.unique(labels)) == 1
    assert large < small + 45  # MB; the picture has 61 MB, its labels 20 MB
