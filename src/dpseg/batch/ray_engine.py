"""The blocks of a run, shared by workers of Ray Data: one actor with one model each, on one machine or on a cluster."""

from __future__ import annotations

import json
import logging
import os
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from dpseg.batch.sources import Item
from dpseg.batch.store import Store
from dpseg.batch.work import BlockWork, Job
from dpseg.errors import ConfigError, DPSegError

RETRIES = 3
"""A block whose worker was killed is begun again so often; then the run ends, as the block itself may be what kills."""

_SECONDS = 10  # in which a cluster has to answer
_BEGUN = "begun"  # folder of empty files NUMBER-ID, one for each time that a block was begun and is not finished

_THREADS = 2  # of a worker without a GPU, as long as nobody says otherwise


@dataclass(frozen=True)
class Share:
    """What the workers get.

    Attributes:
        workers: so many, 1 or more.
        threads: cores of each, 1 or more.
        gpu: whether each has a GPU of its own.
    """

    workers: int
    threads: int
    gpu: bool


class Worker:
    """Segments blocks as they come; Ray makes one in each of its processes."""

    def __init__(self, job: Job, threads: int) -> None:
        """Keeps what to do; the model is loaded with the first block, so that what is wrong with it is told."""
        self._job, self._threads, self._store = job, threads, Store(job.out)
        self._work: BlockWork | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Segments one block.

        Args:
            batch: arrays with one value: "number", and "items" as `run_ray` writes them.

        Returns:
            Arrays with one value: "number", "pictures", and "failure": what is wrong; "": nothing.
        """
        number, items = int(batch["number"][0]), [Item(*values) for values in json.loads(str(batch["items"][0]))]
        failure = ""
        try:
            self.segment(number, items)
        except DPSegError as error:
            failure = str(error)
        return {"number": np.array([number]), "pictures": np.array([len(items)]), "failure": np.array([failure])}

    def segment(self, number: int, items: Sequence[Item], step: Callable[[], None] | None = None) -> None:
        """Segments one block; the arguments are those of `BlockWork`.

        Raises:
            DPSegError: as `BlockWork`, and as `Job.segmenter`.
        """
        if self._work is None:
            import torch

            torch.set_num_threads(self._threads)
            self._work = BlockWork(self._job, self._job.segmenter())
        notes = _note_begin(self._store, number, items)
        self._work(number, items, step)
        for note in notes:
            self._store.delete(note)


def run_ray(
    job: Job,
    blocks: Sequence[tuple[int, Sequence[Item]]],
    cluster: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    worker: type[Worker] = Worker,
) -> Iterator[int]:
    """Segments blocks with Ray Data.

    Args:
        job: what to do.
        blocks: numbers and pictures, one block or more.
        cluster: address of an existing Ray, HOST:PORT or "auto"; None: that of RAY_ADDRESS, or a new one here.
        workers: None: one a GPU, or one for every two cores.
        threads: cores of each worker; None: 1 beside a GPU; else what the workers leave each other, or 2.
        worker: what runs in each process.

    Yields:
        The number of pictures of each block, when it is finished.

    Raises:
        ConfigError: the workers do not fit, or there is no such cluster.
        DPSegError: what a worker met.
    """
    import ray
    from ray.data import ActorPoolStrategy, from_items

    store = Store(job.out)
    for name in store.names(_BEGUN):  # of a run that was killed
        store.delete(f"{_BEGUN}/{name}")
    with connected(cluster):
        cpus, gpus = _resources(ray.nodes())
        share = share_out(cpus, 0 if job.device == "cpu" else gpus, workers, threads)
        rows = [{"number": number, "items": json.dumps([astuple(item) for item in items])} for number, items in blocks]
        finished = from_items(rows, override_num_blocks=len(rows)).map_batches(
            worker,
            batch_size=1,
            batch_format="numpy",
            compute=ActorPoolStrategy(size=min(share.workers, len(rows))),
            fn_constructor_args=(job, share.threads),
            num_cpus=share.threads,
            num_gpus=1 if share.gpu else 0,
        )
        for row in finished.iter_rows():
            if row["failure"]:
                raise DPSegError(str(row["failure"]))
            yield int(row["pictures"])


def share_out(cpus: Sequence[int], gpus: int, workers: int | None, threads: int | None) -> Share:
    """Decides how many workers there are, and what each gets.

    Args:
        cpus: cores of each machine, one machine or more.
        gpus: of all machines.
        workers: as for `run_ray`.
        threads: as for `run_ray`.

    Raises:
        ConfigError: so many do not fit.
    """
    for what, value in (("workers", workers), ("threads", threads)):
        if value is not None and value < 1:
            raise ConfigError(f"{what} {value} is out of range; give 1 or more")
    if threads is None:
        left = _THREADS if workers is None else sum(cpus) // workers
        threads = 1 if gpus else max(1, min(left, max(cpus)))
    room = sum(cores // threads for cores in cpus)
    room = min(room, gpus) if gpus else room
    if not room or (workers or 0) > room:
        machines = f"{sum(cpus)} cores on {len(cpus)} machine{'s' if len(cpus) > 1 else ''}, {gpus} GPUs"
        raise ConfigError(f"{workers or 1} workers with {threads} threads each do not fit ({machines}); give fewer")
    return Share(workers or room, threads, bool(gpus))


def _note_begin(store: Store, number: int, items: Sequence[Item]) -> list[str]:
    """Notes that a block is begun, and returns all such notes; Ray itself would begin it again without end.

    Raises:
        DPSegError: it was begun too often.
    """
    notes = [f"{_BEGUN}/{name}" for name in store.names(_BEGUN) if name.startswith(f"{number:08d}-")]
    if len(notes) > RETRIES:
        raise DPSegError(
            f"block {number} ({items[0].key} to {items[-1].key}): its worker was killed {len(notes)} times, as if"
            " memory were short; give fewer --workers, or leave its pictures out"
        )
    notes.append(f"{_BEGUN}/{number:08d}-{uuid.uuid4().hex}")
    store.write(notes[-1], b"")
    return notes


def _resources(nodes: Sequence[Mapping[str, Any]]) -> tuple[list[int], int]:
    """Returns the cores of each machine that has some, and the GPUs of all."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    cpus = [int(resources["CPU"]) for resources in alive if resources.get("CPU")]
    return cpus or [0], sum(int(resources.get("GPU", 0)) for resources in alive)


def _reach(address: str) -> None:
    """Tries to reach an address of the kind HOST:PORT; Ray itself would try for minutes.

    Raises:
        ConnectionError: nobody answers.
    """
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "/" not in host:
        try:
            socket.create_connection((host, int(port)), timeout=_SECONDS).close()
        except OSError as error:
            raise ConnectionError(f"{address}: nobody answers") from error


@contextmanager
def connected(cluster: str | None) -> Iterator[None]:
    """Uses a cluster, or starts Ray on this machine for as long as it is needed; that of this process is used.

    Args:
        cluster: as for `run_ray`.

    Raises:
        ConfigError: there is no such cluster.
    """
    import ray
    from ray.data import DataContext

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False  # ours is enough
    context.print_on_execution_start = False
    if ray.is_initialized():
        yield
        return
    address = cluster or os.environ.get("RAY_ADDRESS") or "local"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a Ray of our own reports to nobody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a warning that a user cannot act on
    try:
        _reach(address)
        ray.init(
            address=address,
            include_dashboard=False if address == "local" else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, TimeoutError) as error:
        raise ConfigError(f"no Ray answers at {address!r}; start one with ray start --head, or correct it") from error
    try:
        yield
    finally:
        ray.shutdown()
