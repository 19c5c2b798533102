"""Jobs on workers that may hang or crash: one job each, a deadline, and a fresh worker in place of a lost one.

Decoders are C code fed with files from anywhere. Each job runs in a Ray actor, which is a process of its
own: past the deadline the process is killed, and whatever kills a process costs that job alone.
"""

import os
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Job = TypeVar("Job")
MAX_ATTEMPTS = 3  # one lost worker can be the machine's fault (memory, a kill), three in a row are the job's
MAX_FAILED_STARTS = 3
POLL_SECONDS = 0.5
KILL_SECONDS = 10.0


@dataclass(frozen=True)
class Done(Generic[Job]):
    """A job that returned."""

    job: Job
    report: Any  # its first result, fetched
    payload: Any  # reference to its second result, which stays in the object store


@dataclass(frozen=True)
class Lost(Generic[Job]):
    """A job given up."""

    job: Job
    reason: Literal["timed_out", "crashed", "failed"]
    detail: str


@dataclass
class _Worker(Generic[Job]):
    """One actor: what it has been given, and what to wait for."""

    handle: Any
    pending: Any  # reference: where it is, once it is up, or the report of its job
    place: tuple[str, int] | None = None  # node and process
    payload: Any = None
    job: Job | None = None  # None while it starts
    deadline: float = float("inf")

    def give(self, job: Job, timeout_seconds: float) -> None:
        """Start a job."""
        self.job, self.deadline = job, time.monotonic() + timeout_seconds
        self.pending, self.payload = self.handle.run.options(num_returns=2).remote(job)

    def kill(self) -> None:
        """End the process, wherever it is, even where it no longer listens to Ray."""
        assert self.place is not None
        node, process = self.place
        on_its_node = NodeAffinitySchedulingStrategy(node, soft=False)
        kill = ray.remote(_kill).options(num_cpus=0, max_retries=0, scheduling_strategy=on_its_node)
        ray.wait([kill.remote(process)], timeout=KILL_SECONDS)
        ray.kill(self.handle)


def _kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)


class _Runner:
    """The actor: runs a function that returns a report and a payload."""

    def __init__(self, function: Callable[[Any], tuple[Any, Any]]) -> None:
        self._function = function

    def place(self) -> tuple[str, int]:
        """Node and process, once it is up: deadlines count from here."""
        return ray.get_runtime_context().get_node_id(), os.getpid()

    def run(self, job: object) -> tuple[Any, Any]:
        """Do one job."""
        return self._function(job)


def run_jobs(
    function: Callable[[Job], tuple[Any, Any]], jobs: Collection[Job], num_workers: int, timeout_seconds: float
) -> Iterator[Done[Job] | Lost[Job]]:
    """Run every job and yield it as it ends, in no particular order; a worker that is free takes the next one.

    A job whose worker dies is tried again on another. A job that raises is given up, so one file that meets a
    bug does not end a night's work; an error of the operating system (a full disk) is raised here.

    Args:
        function: from a job to a report, which comes back, and a payload, which stays in the object store.
        jobs: hashable, each once.

    Raises:
        RayActorError: workers die before they are given anything.
    """
    waiting, crashes, failed_starts = deque(jobs), Counter[Job](), 0
    shared, actor = ray.put(function), ray.remote(_Runner).options(num_cpus=1)
    workers: list[_Worker[Job]] = []
    try:
        while workers or waiting:
            while len(workers) < min(num_workers, len(waiting) + sum(worker.job is not None for worker in workers)):
                handle: Any = actor.remote(shared)
                workers.append(_Worker(handle, handle.place.remote()))
            finished, _ = ray.wait([worker.pending for worker in workers], num_returns=1, timeout=POLL_SECONDS)
            for worker in [worker for worker in workers if worker.pending in finished]:
                try:
                    report: Any = ray.get(worker.pending)
                except RayActorError:
                    workers.remove(worker)
                    if worker.job is None:
                        failed_starts += 1
                        if failed_starts == MAX_FAILED_STARTS:
                            raise
                        continue
                    crashes[worker.job] += 1
                    if crashes[worker.job] < MAX_ATTEMPTS:
                        waiting.appendleft(worker.job)
                    else:
                        yield Lost(worker.job, "crashed", f"decoding it crashed {MAX_ATTEMPTS} workers")
                    continue
                except RayTaskError as error:
                    if worker.job is None or isinstance(error.cause, OSError):  # of the machine, not of the job
                        raise
                    yield Lost(worker.job, "failed", f"it raised {type(error.cause).__name__}: {error.cause}")
                else:
                    failed_starts = 0
                    if worker.job is None:
                        worker.place = report
                    else:
                        yield Done(worker.job, report, worker.payload)
                if waiting:
                    worker.give(waiting.popleft(), timeout_seconds)
                else:
                    workers.remove(worker)
                    ray.kill(worker.handle)
            for worker in [worker for worker in workers if time.monotonic() > worker.deadline]:
                assert worker.job is not None
                workers.remove(worker)
                worker.kill()
                yield Lost(worker.job, "timed_out", f"decoding it took longer than {timeout_seconds:g} s")
    finally:
        for worker in workers:
            ray.kill(worker.handle)
