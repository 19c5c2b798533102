"""A process that does jobs which may hang or crash it, and what the driver knows of it.

A call of a Ray actor costs as much as the probe of a small file, so a worker is given several quick jobs at once. It
notes which of them it is at in memory that other processes of its node can read even when it hangs: then the job that
hangs is known, and the others are not lost.
"""

import mmap
import os
import signal
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Job = TypeVar("Job")

BATCH_SECONDS = 0.1  # after which a worker begins no further job of a batch
KILL_SECONDS = 10.0
BETWEEN_JOBS = -1
_NOTE = struct.Struct("q")


@dataclass(frozen=True)
class Location:
    """Where a worker runs."""

    node: str
    process: int
    note: int  # its descriptor of the file in memory that holds the number of its present job


@dataclass(frozen=True)
class BatchReport:
    """The first results of the jobs that a worker did, from the first job of the batch on."""

    reports: list[Any]
    seconds: float  # that they took


@dataclass(frozen=True, eq=False)
class Call:
    """Work that is trusted to return, and what it is called with."""

    function: Callable[..., None]
    arguments: tuple[Any, ...]  # references are replaced by what they refer to


class Runner:
    """The actor.

    Args:
        function: from a job to a report and a payload.
    """

    def __init__(self, function: Callable[[Any], tuple[Any, Any]]) -> None:
        self._function = function
        self._descriptor = os.memfd_create("job")
        os.ftruncate(self._descriptor, _NOTE.size)
        self._note = mmap.mmap(self._descriptor, _NOTE.size)
        self._begin(BETWEEN_JOBS)

    def _begin(self, number: int) -> None:
        _NOTE.pack_into(self._note, 0, number)

    def location(self) -> Location:
        """Answered once the process has started, so that deadlines do not include its start."""
        return Location(ray.get_runtime_context().get_node_id(), os.getpid(), self._descriptor)

    def run(self, *jobs: object) -> tuple[BatchReport, list[Any]]:
        """Do jobs, of which none begins after `BATCH_SECONDS`; returns their reports and their payloads."""
        started = time.monotonic()
        reports, payloads = [], []
        for number, job in enumerate(jobs):
            self._begin(number)
            report, payload = self._function(job)
            reports.append(report)
            payloads.append(payload)
            if time.monotonic() - started > BATCH_SECONDS:
                break
        self._begin(BETWEEN_JOBS)
        return BatchReport(reports, time.monotonic() - started), payloads

    def call(self, function: Callable[..., None], *arguments: object) -> None:
        """Do work that is trusted to return."""
        function(*arguments)


def _kill(process: int, note: int) -> int:
    """End a process of this node; returns the number of the job that it was at."""
    try:
        (number,) = _NOTE.unpack(Path(f"/proc/{process}/fd/{note}").read_bytes())
        os.kill(process, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return BETWEEN_JOBS
    return number


@dataclass(eq=False)
class Worker(Generic[Job]):
    """One actor, what it was given, and the reference to wait for."""

    handle: Any
    pending: Any = field(init=False)  # reference: its location while it starts, then the report of a batch, or None
    location: Location | None = None  # None while it starts
    jobs: tuple[Job, ...] = ()
    payload: Any = None  # reference to the payloads of the jobs
    work: Call | None = None
    deadline: float = float("inf")

    def __post_init__(self) -> None:
        self.pending = self.handle.location.remote()

    def give(self, jobs: tuple[Job, ...], timeout_seconds: float) -> None:
        """Start jobs, of which each may take `timeout_seconds`."""
        wait = timeout_seconds if len(jobs) == 1 else timeout_seconds + BATCH_SECONDS
        self.jobs, self.deadline = jobs, time.monotonic() + wait
        self.pending, self.payload = self.handle.run.options(num_returns=2).remote(*jobs)

    def give_work(self, work: Call) -> None:
        """Start work that has no deadline."""
        self.work, self.pending = work, self.handle.call.remote(work.function, *work.arguments)

    def rest(self) -> None:
        """Forget what it was given."""
        self.jobs, self.payload, self.work, self.deadline = (), None, None, float("inf")

    def kill(self) -> int:
        """End the process on its own node, even if it no longer answers Ray.

        Returns:
            The number of the job that it was at, among those it was given; `BETWEEN_JOBS` if that is not known.
        """
        assert self.location is not None
        on_its_node = NodeAffinitySchedulingStrategy(self.location.node, soft=False)
        kill = ray.remote(_kill).options(num_cpus=0, max_retries=0, scheduling_strategy=on_its_node)
        try:
            number: Any = ray.get(kill.remote(self.location.process, self.location.note), timeout=KILL_SECONDS)
        except (GetTimeoutError, RayError):  # the node is gone, or too busy to answer
            number = BETWEEN_JOBS
        ray.kill(self.handle)
        return number
