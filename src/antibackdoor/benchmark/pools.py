"""Who does the tasks of a grid: processes of this machine, or those of a Ray cluster."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias

import torch

from antibackdoor import plugins
from antibackdoor.benchmark.folder import FileStore, Record
from antibackdoor.benchmark.measure import Task, failed, forget_data, perform
from antibackdoor.errors import ConfigError

__all__ = ["LocalPool", "Pool", "RayPool", "local_pool"]

_JOBS_ON_A_CARD = 4
_IDLE_SECONDS = 300  # a process without work for so long ends
_TRIES = 3
_KNOCK_SECONDS = 10

Started: TypeAlias = Callable[[Task], None]
Ended: TypeAlias = Iterator[tuple[Task, Record | None]]


class Pool(Protocol):
    """Does tasks, several at once; used in a ``with`` block."""

    @property
    def slots(self) -> int:
        """How many tasks run at once."""

    def __enter__(self) -> Self:
        """Make it ready."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop its processes."""

    def run(self, tasks: Sequence[Task], store: FileStore, started: Started) -> Ended:
        """Do tasks.

        Args:
            tasks: In the order in which to begin them.
            store: What cells share.
            started: Called with each task as it begins.

        Yields:
            Each task once, as it ends, with what ``perform`` returned; a failure where its process was lost.
        """


def local_pool(device: str, jobs: int | None = None, threads: int | None = None) -> LocalPool:
    """Return the processes of this machine.

    Args:
        device: As in ``RunConfig``.
        jobs: Tasks at once. If None, 4 on each CUDA card, and on a CPU one for every ``threads`` processors.
        threads: CPU threads of each task; 1 if None. On a CPU a network trained with another number differs in its
            last bits and, after some epochs, in its figures; therefore it does not follow from the number of jobs.

    Raises:
        ConfigError: A number below 1.
    """
    from joblib import cpu_count

    for name, value in (("--jobs", jobs), ("--threads", threads)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}: must be at least 1, got {value}")
    threads = threads or 1
    cards = torch.cuda.device_count() if torch.cuda.is_available() and device in {"auto", "cuda"} else 0
    if jobs is None:
        on_a_card = cards or device.startswith("cuda")
        jobs = _JOBS_ON_A_CARD * max(1, cards) if on_a_card else max(1, int(cpu_count()) // threads)
    return LocalPool(jobs, threads, tuple(f"cuda:{number}" for number in range(cards)) if cards > 1 else ())


@dataclass(frozen=True)
class LocalPool:
    """Processes of this machine, through joblib; one job alone runs in this process.

    Attributes:
        jobs: Tasks at once.
        threads: CPU threads of each.
        cards: Devices to share out, the least busy first; none leaves the configuration's device.
    """

    jobs: int
    threads: int = 1
    cards: tuple[str, ...] = ()

    @property
    def slots(self) -> int:
        """How many tasks run at once."""
        return self.jobs

    def __enter__(self) -> Self:
        """Do nothing: processes start with the first task."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the processes, so that none of them keeps memory."""
        forget_data()
        if self.jobs > 1:
            from joblib.externals.loky import get_reusable_executor

            # Asked for as it is: one of another size would first wait for the cells in flight.
            get_reusable_executor(reuse=True).shutdown(wait=True, kill_workers=True)

    def run(self, tasks: Sequence[Task], store: FileStore, started: Started) -> Ended:
        """Do tasks; see :class:`Pool`. One that ran out of a card's memory beside others is done again last, alone."""
        waiting = deque(replace(task, threads=self.threads, plugins=plugins.loaded()) for task in tasks)
        if self.jobs == 1:
            for task in waiting:
                started(task)
                yield task, perform(task, store)
            return
        crowded: list[Task] = []
        while waiting:
            running: dict[Future[Record | None], Task] = {}
            try:
                for task, record in self._together(waiting, running, store, started):
                    if _out_of_memory(record):
                        crowded.append(task)
                    else:
                        yield task, record
            except _lost_worker():
                # Nobody knows which of them cost the process its life, so each is tried again on its own.
                for task in running.values():
                    yield task, self._alone(task, store)
        for task in crowded:
            yield task, self._alone(task, store)

    def _together(
        self, waiting: deque[Task], running: dict[Future[Record | None], Task], store: FileStore, started: Started
    ) -> Ended:
        workers = self._workers(self.jobs)
        while waiting or running:
            while waiting and len(running) < self.jobs:
                task = self._on_a_card(waiting[0], list(running.values()))
                running[workers.submit(_in_worker, task, store, os.getpid())] = task
                waiting.popleft()
                started(task)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                record = future.result()
                yield running.pop(future), record

    def _alone(self, task: Task, store: FileStore) -> Record | None:
        try:
            record: Record | None = self._workers(1).submit(_in_worker, task, store, os.getpid()).result()
        except _lost_worker():
            message = "its process was killed, twice; with too little memory, --jobs 1 needs least"
            return failed(task.cell, "WorkerLost", message)
        return record

    def _workers(self, count: int) -> Any:
        from joblib.externals.loky import get_reusable_executor

        limits = {"OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)}
        return get_reusable_executor(count, timeout=_IDLE_SECONDS, kill_workers=True, env=limits)

    def _on_a_card(self, task: Task, running: Sequence[Task]) -> Task:
        if not self.cards:
            return task
        busy = Counter(other.device for other in running)
        return replace(task, device=min(self.cards, key=lambda card: busy[card]))


def _in_worker(task: Task, store: FileStore, first: int) -> Record | None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one stops the others.
    _end_with(first)
    return perform(task, store)


@lru_cache(maxsize=1)
def _end_with(first: int) -> None:
    """End this process soon after the first one, which may be killed: nobody else would stop it."""

    def watch() -> None:
        while os.getppid() == first:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _out_of_memory(record: Record | None) -> bool:
    error = None if record is None else record["error"]
    return isinstance(error, dict) and error.get("type") == torch.OutOfMemoryError.__name__


def _lost_worker() -> type[Exception]:
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    lost: type[Exception] = TerminatedWorkerError
    return lost


@dataclass
class _MemoryStore:
    """What cells share, on a machine that does not see the folder of the grid."""

    held: dict[str, bytes]
    made: dict[str, bytes] = field(default_factory=dict)

    def get(self, name: str) -> bytes | None:
        return self.made.get(name, self.held.get(name))

    def put(self, name: str, blob: bytes) -> None:
        self.made[name] = blob


@dataclass(frozen=True)
class RayPool:
    """Processes of a Ray cluster; only this one writes into the folder of the grid.

    Every machine needs this package and the data at the same place. A task whose machine is lost is tried again
    elsewhere; what it would have returned is the same.

    Attributes:
        address: "auto" for the cluster this machine is in, "HOST:PORT", "ray://HOST:PORT", or "local" for one of its
            own.
        gpus_per_cell: Share of a GPU that a task takes, above 0; of no effect without GPUs or with the device "cpu".
        cpus_per_cell: Processors that a task takes, above 0.
        device: As in ``RunConfig``.
        threads: CPU threads of each task; see :func:`local_pool`.
    """

    address: str
    gpus_per_cell: float = 0.25
    cpus_per_cell: float = 1.0
    device: str = "auto"
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("gpus_per_cell", "cpus_per_cell", "threads"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"--{name.replace('_', '-')}: must be above 0, got {getattr(self, name)}")

    @property
    def slots(self) -> int:
        """How many tasks the cluster can run at once."""
        there = _ray().cluster_resources()
        shares = [there.get("CPU", 0.0) / self.cpus_per_cell]
        if self._gpus():
            shares.append(there.get("GPU", 0.0) / self.gpus_per_cell)
        return max(1, int(min(shares)))

    def __enter__(self) -> Self:
        """Join the cluster.

        Raises:
            ConfigError: Ray is not installed, or there is no such cluster.
        """
        ray = _ray()
        host, colon, port = self.address.removeprefix("ray://").rpartition(":")
        try:
            if colon and port.isdecimal():  # Ray itself would knock for many minutes.
                socket.create_connection((host, int(port)), timeout=_KNOCK_SECONDS).close()
            ray.init(self.address, log_to_driver=False, logging_level="ERROR")
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(f"--ray {self.address}: no such cluster: {' '.join(str(error).split())}") from None
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the cluster; it stops what this process still had running there."""
        _ray().shutdown()

    def run(self, tasks: Sequence[Task], store: FileStore, started: Started) -> Ended:
        """Do tasks; see :class:`Pool`."""
        ray = _ray()
        remote = ray.remote(num_cpus=self.cpus_per_cell, num_gpus=self._gpus(), max_retries=_TRIES)(_on_ray)
        stored: dict[str, Any] = {}
        waiting = deque(replace(task, threads=self.threads, plugins=plugins.loaded()) for task in tasks)
        running: dict[Any, Task] = {}
        while waiting or running:
            while waiting and len(running) < self.slots:
                task = waiting.popleft()
                blobs = [self._stored(name, store, stored) for name in task.needs]
                running[remote.remote(task, *blobs)] = task
                started(task)
            for reference in ray.wait(list(running))[0]:
                task = running.pop(reference)
                yield task, _collected(ray, reference, task, store)

    def _gpus(self) -> float:
        return self.gpus_per_cell if self.device != "cpu" and _ray().cluster_resources().get("GPU", 0.0) else 0.0

    @staticmethod
    def _stored(name: str, store: FileStore, stored: dict[str, Any]) -> Any:
        """Put something shared into the cluster's memory, once."""
        if name not in stored:
            stored[name] = _ray().put(store.get(name))
        return stored[name]


def _on_ray(task: Task, *blobs: bytes | None) -> tuple[Record | None, dict[str, bytes]]:
    held = {name: blob for name, blob in zip(task.needs, blobs, strict=True) if blob is not None}
    store = _MemoryStore(held)
    return perform(task, store), store.made


def _collected(ray: Any, reference: Any, task: Task, store: FileStore) -> Record | None:
    try:
        record, made = ray.get(reference)
    except ray.exceptions.RayError as error:
        return failed(task.cell, "WorkerLost", f"its process was lost {_TRIES + 1} times: {type(error).__name__}")
    for name, blob in made.items():
        store.put(name, blob)
    found: Record | None = record
    return found


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            f"--ray needs ray, which does not import here ({error}): pip install 'antibackdoor[ray]'"
        ) from None
    return ray
