"""`dpseg batch --engine ray` on a local Ray of two workers: the same rows, a killed worker, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple
from pathlib import Path

import pytest

from dpseg.batch.manifest import cut
from dpseg.batch.ray_engine import RETRIES, Share, Worker, connected, run_ray, share_out
from dpseg.batch.sources import Item, list_items
from dpseg.batch.work import Job
from dpseg.cli import run
from dpseg.errors import ConfigError, DPSegError
from dpseg.prompts.prompt_set import PromptSet
from support.batch_photos import broken_of, rows_of, write_model, write_photos

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'dpseg[ray]'")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Path of a model, and of its prompts."""
    return write_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Starts Ray on this machine, as the command would, and yields its address; it counts two cores on any machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_OVERRIDE_RESOURCES", json.dumps({"CPU": 2}))
        patch.delenv("RAY_ADDRESS", raising=False)
        with connected(None):
            assert ray.cluster_resources()["CPU"] == 2
            yield ray.get_runtime_context().gcs_address


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPSEG_CACHE", "off")


def test_no_ray_answers() -> None:
    with pytest.raises(ConfigError, match=r"no Ray answers at '127\.0\.0\.1:1'"), connected("127.0.0.1:1"):
        pass


@pytest.mark.slow
def test_two_workers_of_an_existing_ray_write_the_same_rows(made: tuple[str, str], cluster: str) -> None:
    write_photos(Path("photos"), 9)
    Path("photos/004.png").write_text("no picture")
    common = ["batch", "photos", "--model", made[0], "--prompts", made[1], "--block", "2", "--format", "parquet,png"]
    assert run([*common, "--out", "one"]) == 1
    command = [sys.executable, "-m", "dpseg", *common, "--out", "two", "--engine", "ray", "--cluster", cluster]
    done = subprocess.run([*command, "--workers", "2"], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "1 of 9 pictures could not be read" in done.stderr
    assert "Warning" not in done.stderr
    assert rows_of(Path("two")) == rows_of(Path("one"))
    assert broken_of(Path("two")) == broken_of(Path("one"))
    assert json.loads(Path("two/manifest.json").read_text()) == json.loads(Path("one/manifest.json").read_text())
    for name in ("000.png.png", "008.png.png"):
        assert Path("two/labels", name).read_bytes() == Path("one/labels", name).read_bytes()


class DiesOnce(Worker):
    """Notes every block that it begins, and kills its process once, in the middle of the third."""

    def segment(self, number: int, items: Sequence[Item], step: Callable[[], None] | None = None) -> None:
        with Path("begun.txt").open("a") as file:
            file.write(f"{number} {os.getpid()}\n")
        super().segment(number, items, die_once if number == 2 else None)


def die_once() -> None:
    marker = Path("died.txt")
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_workers_block_is_done_again_once(made: tuple[str, str], cluster: str, tmp_path: Path) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import this file

    class Here(DiesOnce):  # Ray's workers stay in the folder in which Ray was started
        def __init__(self, job: Job, threads: int) -> None:
            os.chdir(tmp_path)
            super().__init__(job, threads)

    write_photos(Path("photos"), 12)
    job = Job(str(tmp_path / "out"), PromptSet.load(made[1]), made[0], device="cpu")
    blocks = list(enumerate(cut(list_items(["photos"]), 2)))
    assert sum(run_ray(job, blocks, workers=2, worker=Here)) == 12
    begun = [line.split() for line in Path("begun.txt").read_text().splitlines()]
    assert Counter(int(number) for number, _ in begun) == {0: 1, 1: 1, 2: 2, 3: 1, 4: 1, 5: 1}
    assert Path("died.txt").exists()
    assert not list(Path("out/begun").iterdir())
    assert len({process for _, process in begun}) == 3  # two workers, and the one that came for the dead
    assert [row["key"] for row in rows_of(Path("out"))] == [f"{number:03d}.png" for number in range(12)]


@pytest.mark.slow
def test_what_a_worker_meets_is_told(made: tuple[str, str], cluster: str, tmp_path: Path) -> None:
    write_photos(Path("photos"), 1)
    job = Job(str(tmp_path / "out"), PromptSet.load(made[1]), str(tmp_path / "nowhere"), device="cpu")
    with pytest.raises(DPSegError, match="nowhere"):
        list(run_ray(job, [(0, list_items(["photos"]))], workers=1))
    with pytest.raises(ConfigError, match=r"3 workers with 1 threads each do not fit \(2 cores on 1 machine, 0 GPUs\)"):
        list(run_ray(job, [(0, list_items(["photos"]))], workers=3))


def test_a_block_that_kills_its_workers_ends_the_run(made: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    write_photos(Path("photos"), 2)
    worker = Worker(Job("out", PromptSet.load(made[1]), made[0], device="cpu"), 1)
    items = list_items(["photos"])

    class Killed(BaseException):
        pass

    def kill() -> None:
        raise Killed

    batch = {"number": [5], "items": [json.dumps([astuple(item) for item in items])]}
    for _ in range(RETRIES + 1):
        with pytest.raises(Killed):
            worker.segment(5, items, kill)
    (failure,) = worker(batch)["failure"]
    assert failure.startswith("block 5 (000.png to 001.png): its worker was killed 4 times")
    for note in Path("out/begun").iterdir():  # as a new run does
        note.unlink()
    assert worker(batch)["failure"] == [""]
    assert not list(Path("out/begun").iterdir())
    assert len(rows_of(Path("out"))) == 2


def test_cores_and_gpus_are_shared_out() -> None:
    assert share_out([8], 0, None, None) == Share(4, 2, gpu=False)
    assert share_out([1], 0, None, None) == Share(1, 1, gpu=False)
    assert share_out([2], 0, 2, None) == Share(2, 1, gpu=False)
    assert share_out([3, 3], 0, None, 2) == Share(2, 2, gpu=False)  # no worker is on two machines
    assert share_out([3, 3], 0, 1, None) == Share(1, 3, gpu=False)
    assert share_out([16, 16], 4, None, None) == Share(4, 1, gpu=True)
    assert share_out([16], 2, 1, 8) == Share(1, 8, gpu=True)
    for cpus, gpus, workers, threads in (([2], 0, None, 3), ([8], 2, 3, None), ([3, 3], 0, 3, 2), ([0], 0, None, None)):
        with pytest.raises(ConfigError, match="do not fit"):
            share_out(cpus, gpus, workers, threads)
    with pytest.raises(ConfigError, match="workers 0 is out of range"):
        share_out([2], 0, 0, None)


def test_ray_is_not_installed(
    made: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photos(Path("photos"), 1)
    common = ["batch", "photos", "--model", made[0], "--prompts", made[1], "--out", "out", "--engine", "ray"]
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run(common) == 2
    assert "pip install 'dpseg[ray]'" in capsys.readouterr().err
