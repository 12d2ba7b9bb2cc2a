"""`dpseg batch --engine ray`: the same rows, a killed worker, and what is refused; with Ray, and with a stand-in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dpseg.batch.manifest import cut
from dpseg.batch.ray_engine import RETRIES, Share, Worker, connected, run_ray, share_out
from dpseg.batch.sources import Item, list_items
from dpseg.batch.work import Job
from dpseg.cli import run
from dpseg.errors import ConfigError, DPSegError
from dpseg.prompts.prompt_set import PromptSet
from support.batch_photos import broken_of, rows_of, write_photos

pytest_plugins = "support.batch_photos"
pytestmark = pytest.mark.usefixtures("workplace")

BATCH = ["batch", "many", "--block", "2", "--format", "parquet,png"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Starts Ray on this machine, as the command would, and yields its address; it counts two cores on any machine."""
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'dpseg[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_OVERRIDE_RESOURCES", json.dumps({"CPU": 2}))
        patch.delenv("RAY_ADDRESS", raising=False)
        with connected(None):
            assert ray.cluster_resources()["CPU"] == 2
            yield ray.get_runtime_context().gcs_address


class OneByOne:
    """Stands in for a dataset of Ray: a worker in this process takes one row after the other."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], override_num_blocks: int) -> None:
        assert override_num_blocks == len(rows)
        self.rows = rows

    def map_batches(self, worker: Any, **asked: Any) -> OneByOne:
        assert (asked["batch_size"], asked["batch_format"]) == (1, "numpy")
        assert (asked["compute"], asked["num_cpus"], asked["num_gpus"]) == ({"size": 2}, 1, 0)
        self.worker = worker(*asked["fn_constructor_args"])
        return self

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        for row in self.rows:
            answer = self.worker({name: np.array([value]) for name, value in row.items()})
            yield {name: value[0] for name, value in answer.items()}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Puts something in Ray's place, of two cores on one machine of two; returns what was called of it."""
    called: list[str] = []
    nodes = [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": False, "Resources": {"CPU": 9.0}}]
    ray = SimpleNamespace(
        is_initialized=lambda: False,
        init=lambda **options: called.append(options["address"]),
        nodes=lambda: nodes,
        shutdown=lambda: called.append("shutdown"),
    )
    context = SimpleNamespace(get_current=lambda: SimpleNamespace())
    data = SimpleNamespace(ActorPoolStrategy=dict, from_items=OneByOne, DataContext=context)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.data", data)
    monkeypatch.setattr("torch.set_num_threads", lambda count: called.append(f"{count} threads"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return called


def test_a_stand_in_for_ray_writes_the_same_rows(
    options: list[str], stand_in: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_photos(Path("many"), 9)
    Path("many/004.png").write_text("no picture")
    Path("two/begun").mkdir(parents=True)
    for number in range(RETRIES + 1):
        Path(f"two/begun/00000001-{number}").touch()  # of a run that was killed
    assert run([*BATCH, *options, "--out", "one"]) == 1
    assert run([*BATCH, *options, "--out", "two", "--engine", "ray", "--workers", "2"]) == 1
    assert stand_in == ["local", "1 threads", "shutdown"]
    check_same(capsys.readouterr().err)
    assert not list(Path("two/begun").iterdir())


def check_same(errors: str) -> None:
    """Compares what two engines wrote of nine photos, one of which is none."""
    one, two = Path("one"), Path("two")
    assert "1 of 9 pictures could not be read" in errors
    assert "Warning" not in errors
    assert len(rows_of(one)) == 9
    assert rows_of(two) == rows_of(one)
    assert broken_of(two) == broken_of(one)
    assert json.loads((two / "manifest.json").read_text()) == json.loads((one / "manifest.json").read_text())
    for name in ("labels/000.png.png", "labels/008.png.png"):
        assert (two / name).read_bytes() == (one / name).read_bytes()


@pytest.mark.slow
def test_two_workers_of_an_existing_ray_write_the_same_rows(options: list[str], cluster: str) -> None:
    write_photos(Path("many"), 9)
    Path("many/004.png").write_text("no picture")
    assert run([*BATCH, *options, "--out", "one"]) == 1
    command = [sys.executable, "-m", "dpseg", *BATCH, *options, "--out", "two", "--engine", "ray", "--workers", "2"]
    done = subprocess.run([*command, "--cluster", cluster], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    check_same(done.stderr)


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


@pytest.fixture
def job(model: str, colours: PromptSet, tmp_path: Path) -> Job:
    return Job(str(tmp_path / "out"), colours, model, device="cpu")


@pytest.mark.slow
def test_a_killed_workers_block_is_done_again_once(job: Job, cluster: str, tmp_path: Path) -> None:
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import this file

    class Here(DiesOnce):  # Ray's workers stay in the folder in which Ray was started
        def __init__(self, job: Job, threads: int) -> None:
            os.chdir(tmp_path)
            super().__init__(job, threads)

    write_photos(Path("many"), 12)
    blocks = list(enumerate(cut(list_items(["many"]), 2)))
    assert sum(run_ray(job, blocks, workers=2, worker=Here)) == 12
    begun = [line.split() for line in Path("begun.txt").read_text().splitlines()]
    assert Counter(int(number) for number, _ in begun) == {0: 1, 1: 1, 2: 2, 3: 1, 4: 1, 5: 1}
    assert Path("died.txt").exists()
    assert not list(Path("out/begun").iterdir())
    assert len({process for _, process in begun}) == 3  # two workers, and the one that came for the dead
    assert [row["key"] for row in rows_of(Path("out"))] == [f"{number:03d}.png" for number in range(12)]


@pytest.mark.parametrize("engine", ["stand_in", pytest.param("cluster", marks=pytest.mark.slow)])
def test_what_a_worker_meets_is_told(job: Job, engine: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    request.getfixturevalue(engine)
    blocks = list(enumerate(cut(list_items([str(path) for path in write_photos(Path("many"), 2)]), 1)))
    with pytest.raises(DPSegError, match="nowhere"):
        list(run_ray(replace(job, model=str(tmp_path / "nowhere")), blocks, workers=2))
    with pytest.raises(ConfigError, match=r"3 workers with 1 threads each do not fit \(2 cores on 1 machine, 0 GPUs\)"):
        list(run_ray(job, blocks, workers=3))


def test_no_ray_answers(stand_in: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"no Ray answers at '127\.0\.0\.1:1'"), connected("127.0.0.1:1"):
        pass
    assert stand_in == []


def test_a_block_that_kills_its_workers_ends_the_run(job: Job) -> None:
    write_photos(Path("many"), 2)
    worker = Worker(job, 1)
    items = list_items(["many"])

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
