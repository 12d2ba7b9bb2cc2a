"""Puts the faults of faults.toml into a copy of the package, one by one, and sees that the quick tests catch each.

    make faults            or: python tests/faults/run.py [--only WORD] [--workers N] [--map FILE]

First the quick tests run once, to learn which of them run which line; --map keeps that for the next time that src and
tests are the same. Then, for each fault, the tests that run its lines do, and after them those that run its file, the
first failure being enough. What survives is printed, and the status is then 1. A fault whose text is not in its file
exactly once is one of the list, not of the tests, and the status is 2.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

from coverage import CoverageData

ROOT = Path(__file__).resolve().parents[2]
_PHASE = re.compile(r"\|(setup|run|teardown)$")  # of a test, behind its name
FEW = 25
"""Tests that are tried first, of those that run a fault's lines; then the others."""


@dataclass(frozen=True)
class Fault:
    """A change of one place that makes the package wrong.

    Attributes:
        what: it breaks, for people.
        file: below src/dpseg.
        old: text that is there once.
        new: text in its place.
    """

    what: str
    file: str
    old: str
    new: str

    @property
    def path(self) -> Path:
        """The file, relative to the checkout."""
        return Path("src", "dpseg", self.file)

    def lines(self) -> range:
        """The numbers of the lines that it changes."""
        before = (ROOT / self.path).read_text("utf-8").split(self.old)[0]
        first = before.count("\n") + 1
        return range(first, first + self.old.count("\n") + 1)


def read_faults(word: str) -> list[Fault]:
    """Returns the faults whose description or file holds a word; ends the program where the list is wrong."""
    listed = tomllib.loads((Path(__file__).parent / "faults.toml").read_text("utf-8"))["fault"]
    faults = [Fault(**one) for one in listed]
    for fault in faults:
        count = (ROOT / fault.path).read_text("utf-8").count(fault.old) if (ROOT / fault.path).is_file() else 0
        if count != 1 or fault.old == fault.new:
            print(f"{fault.path}: {fault.what}: its text stands there {count} times, and must once; mend the list")
            sys.exit(2)
    chosen = [fault for fault in faults if word in f"{fault.file} {fault.what}"]
    if not chosen:
        print(f"no fault holds {word!r}; the list is {Path(__file__).parent / 'faults.toml'}")
        sys.exit(2)
    return chosen


def copy_checkout(folder: Path) -> Path:
    """Copies what git knows of the checkout below a folder, with a link to the data beside it, and returns the copy."""
    copy = folder / ROOT.name
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    if (ROOT.parent / "shared").is_dir():
        (folder / "shared").symlink_to(ROOT.parent / "shared")
    return copy


def pytest(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the quick tests, or some of them, in a copy."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=1800)
    except subprocess.TimeoutExpired:  # a fault may let something wait forever
        return subprocess.CompletedProcess(command, 1, "", "")


def digest(copy: Path) -> str:
    """Returns what tells one state of src and tests from another."""
    whole = hashlib.sha256()
    for path in sorted(path for part in ("src", "tests") for path in (copy / part).rglob("*.py")):
        whole.update(path.relative_to(copy).as_posix().encode() + path.read_bytes())
    return whole.hexdigest()[:16]


def learn(copy: Path, place: Path, workers: int) -> None:
    """Runs the quick tests once, and keeps which of them run which line."""
    done = pytest(copy, "-n", str(workers), "--dist", "loadfile", "--cov=dpseg", "--cov-context=test", "--cov-report=")
    if done.returncode:
        print(done.stdout[-3000:])
        sys.exit("the tests fail without any fault; mend that first")
    shutil.copy2(copy / ".coverage", place)


def tests_of(fault: Fault, data: CoverageData) -> list[str]:
    """Returns the tests that run the lines of a fault, those of many files first; then the others that run its file.

    What is imported, cached or shared by fixtures runs once, for the first test that needs it, and others see it too.
    """
    (file,) = [name for name in data.measured_files() if name.endswith(f"/{fault.path}")] or [""]
    contexts = data.contexts_by_lineno(file) if file else {}
    own = _tests([context for line in fault.lines() for context in contexts.get(line, [])])
    return list(dict.fromkeys([*own, *_tests([context for one in contexts.values() for context in one])]))


def _tests(contexts: list[str]) -> list[str]:
    """Returns the tests of contexts, each once, those of many files first."""
    by_file: dict[str, list[str]] = {}
    for test in dict.fromkeys(_PHASE.sub("", context) for context in contexts if context):
        by_file.setdefault(test.split("::")[0], []).append(test)
    rounds = max((len(tests) for tests in by_file.values()), default=0)
    return [tests[n] for n in range(rounds) for tests in by_file.values() if n < len(tests)]


def is_caught(fault: Fault, tests: list[str], copy: Path) -> bool:
    """Puts a fault into a copy, runs tests until one fails, and takes it out again."""
    path = copy / fault.path
    whole = path.read_text("utf-8")
    path.write_text(whole.replace(fault.old, fault.new), "utf-8")
    try:
        for some in filter(None, (tests[:FEW], tests[FEW:])):
            done = pytest(copy, "-x", *some)
            if done.returncode in (1, 2) or done.returncode < 0:  # a test failed, or what it imports did, or it crashed
                return True
            if done.returncode:
                sys.exit(f"pytest cannot run the tests of {fault.file}: {done.stdout[-1000:]}{done.stderr[-1000:]}")
        return False
    finally:
        path.write_text(whole, "utf-8")


def main() -> int:
    """Tries all faults, prints what became of each, and returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", default="", metavar="WORD", help="faults whose description or file holds it")
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1))
    parser.add_argument("--map", type=Path, help="where to keep which test runs which line")
    asked = parser.parse_args()
    faults, start = read_faults(asked.only), time.monotonic()
    if asked.map is not None and not os.access(asked.map.resolve().parent, os.W_OK):
        print(f"--map {asked.map}: its folder is not there or cannot be written; give another")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        copies: Queue[Path] = Queue()
        for number in range(asked.workers):
            copies.put(copy_checkout(Path(folder) / str(number)))
        first = copies.get()
        place = Path(f"{(asked.map or Path(folder) / 'map').resolve()}.{digest(first)}")
        if not place.is_file():
            learn(first, place, asked.workers)
        copies.put(first)
        data = CoverageData(str(place))
        data.read()

        def attempt(fault: Fault) -> bool:
            copy = copies.get()
            try:
                caught = is_caught(fault, tests_of(fault, data), copy)
            finally:
                copies.put(copy)
            print(f"{'caught' if caught else 'SURVIVED'}: {fault.file}: {fault.what}", flush=True)
            return caught

        with ThreadPoolExecutor(asked.workers) as pool:
            caught = list(pool.map(attempt, faults))
    print(f"{sum(caught)} of {len(faults)} faults caught in {time.monotonic() - start:.0f} s")
    return int(not all(caught))


if __name__ == "__main__":
    sys.exit(main())
