"""A process that does jobs which may hang or crash it, and what the driver knows of it.

A call of a Ray actor costs as much as the probe of a small file, so a worker is given several quick jobs at once. It
notes which of them it is at, and how long that one may take, in memory that other processes of its node can read even
when it hangs: then the job that hangs is known, and the others are not lost.
"""

import gc
import mmap
import os
import pickle
import signal
import struct
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Job = TypeVar("Job")

BATCH_SECONDS = 0.1  # after which a worker begins no further job of a batch
KILL_SECONDS = 10.0
BETWEEN_JOBS = -1
Finish = Callable[[Sequence[Any], Sequence[Any]], Sequence[Any]]


def as_they_are(_: Sequence[Any], reports: Sequence[Any]) -> Sequence[Any]:
    """The `Finish` that changes nothing."""
    return reports


class _Note:
    """The number of the present job in its batch, and until when it may run (`time.monotonic`); shared memory."""

    _LAYOUT = struct.Struct("qd")

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("job")
        os.ftruncate(self.descriptor, self._LAYOUT.size)
        self._memory = mmap.mmap(self.descriptor, self._LAYOUT.size)
        self.begin(BETWEEN_JOBS)

    def begin(self, number: int) -> None:
        """A job begins, with the deadline that the driver knows."""
        self._LAYOUT.pack_into(self._memory, 0, number, 0.0)

    def allow_until(self, moment: float) -> None:
        """Put off the deadline of the present job."""
        number, _ = self._LAYOUT.unpack_from(self._memory)
        self._LAYOUT.pack_into(self._memory, 0, number, moment)

    @classmethod
    def read(cls, process: int, descriptor: int) -> tuple[int, float]:
        """What a process of this node has noted."""
        number, moment = cls._LAYOUT.unpack(Path(f"/proc/{process}/fd/{descriptor}").read_bytes())
        return number, moment


_note: _Note | None = None  # of this process, if it is a worker


def allow_until(moment: float) -> None:
    """Called by a job: it may run until this moment (`time.monotonic`), instead of as long as any job may."""
    if _note is not None:
        _note.allow_until(moment)


@dataclass(frozen=True)
class Location:
    """Where a worker runs."""

    node: str
    process: int
    note: int  # its descriptor of its note


@dataclass(frozen=True)
class BatchReport:
    """The first results of the jobs that a worker did, from the first job of the batch on."""

    content: bytes  # of a list, pickled in C: Ray's pickling in Python costs as much as the probe of a small file
    seconds: float  # that they took

    @property
    def reports(self) -> list[Any]:
        """The results, in the order of the jobs."""
        return pickle.loads(self.content)  # noqa: S301 - of an actor of this run


@dataclass(frozen=True)
class Payload:
    """The second result of a job, in the object store beside those of the jobs that were done in the same batch."""

    batch: Any  # reference to a list
    number: int


@dataclass(frozen=True, eq=False)
class Call:
    """Work that is trusted to return, and what it is called with."""

    function: Callable[..., None]
    arguments: tuple[Any, ...]  # each `Payload` is replaced by the payload itself

    @property
    def has_payloads(self) -> bool:
        """Whether it is called with payloads."""
        return any(isinstance(argument, Payload) for argument in self.arguments)


class Runner:
    """The actor.

    Args:
        functions: from a job to a report and a payload; and from the jobs that were done and their reports to what is
            sent of each.
    """

    def __init__(self, functions: tuple[Callable[[Any], tuple[Any, Any]], Finish]) -> None:
        global _note
        (self._function, self._finish), self._note = functions, _Note()
        _note = self._note
        self._num_modules = 0
        self._collect_garbage()

    def location(self) -> Location:
        """Answered once the process has started, so that deadlines do not include its start."""
        return Location(ray.get_runtime_context().get_node_id(), os.getpid(), self._note.descriptor)

    def run(self, jobs: bytes) -> tuple[BatchReport, list[Any]]:
        """Do jobs, of which none begins after `BATCH_SECONDS`; returns their reports and their payloads.

        Args:
            jobs: a tuple, pickled.
        """
        started = time.monotonic()
        batch: tuple[Any, ...] = pickle.loads(jobs)  # noqa: S301 - of the driver
        reports, payloads = [], []
        for number, job in enumerate(batch):
            self._note.begin(number)
            report, payload = self._function(job)
            reports.append(report)
            payloads.append(payload)
            if time.monotonic() - started > BATCH_SECONDS:
                break
        self._note.begin(BETWEEN_JOBS)
        sent = list(self._finish(batch[: len(reports)], reports))
        self._collect_garbage()
        return BatchReport(pickle.dumps(sent), time.monotonic() - started), payloads

    def call(self, works: bytes, *batches: list[Any]) -> None:
        """Do work that is trusted to return.

        Args:
            works: a tuple of calls, pickled; the batch of each `Payload` is its number among `batches`.
        """
        called: tuple[Call, ...] = pickle.loads(works)  # noqa: S301 - of the driver
        for work in called:
            work.function(*(batches[a.batch][a.number] if isinstance(a, Payload) else a for a in work.arguments))

    def _collect_garbage(self) -> None:
        """Free what decoders leave in cycles; by itself Python looks so rarely that it adds up to many MiB."""
        gc.collect()
        if len(sys.modules) != self._num_modules:
            self._num_modules = len(sys.modules)
            gc.freeze()  # what was imported is never garbage, and looking through it takes milliseconds


@dataclass(frozen=True)
class Overdue:
    """What was found of a job past its deadline."""

    number: int  # of the job in its batch; `BETWEEN_JOBS` if it is not known
    seconds_left: float  # that it may go on; 0: its process was ended


def _end_if_overdue(process: int, descriptor: int) -> Overdue:
    """End a process of this node, unless its job has put off its deadline."""
    try:
        number, moment = _Note.read(process, descriptor)
    except OSError:
        number, moment = BETWEEN_JOBS, 0.0
    if (seconds_left := moment - time.monotonic()) > 0:
        return Overdue(number, seconds_left)
    with suppress(ProcessLookupError):  # it has just ended
        os.kill(process, signal.SIGKILL)
    return Overdue(number, 0.0)


@dataclass(eq=False)
class Worker(Generic[Job]):
    """One actor, what it was given, and the reference to wait for."""

    handle: Any
    pending: Any = field(init=False)  # reference: its location while it starts, then the report of a batch, or None
    location: Location | None = None  # None while it starts
    jobs: tuple[Job, ...] = ()
    payloads: Any = None  # reference to a list, of the jobs
    works: tuple[Call, ...] = ()
    started: float = 0.0
    deadline: float = float("inf")

    def __post_init__(self) -> None:
        self.pending = self.handle.location.remote()

    def give(self, jobs: tuple[Job, ...], timeout_seconds: float) -> None:
        """Start jobs, of which each may take `timeout_seconds`."""
        self.jobs, self.started = jobs, time.monotonic()
        self.deadline = self.started + timeout_seconds + (BATCH_SECONDS if len(jobs) > 1 else 0)
        self.pending, self.payloads = self.handle.run.options(num_returns=2).remote(pickle.dumps(jobs))

    def give_work(self, works: tuple[Call, ...]) -> None:
        """Start work that has no deadline."""
        batches = dict.fromkeys(a.batch for work in works for a in work.arguments if isinstance(a, Payload))
        numbers = {batch: number for number, batch in enumerate(batches)}
        sent = tuple(
            replace(
                work,
                arguments=tuple(
                    replace(a, batch=numbers[a.batch]) if isinstance(a, Payload) else a for a in work.arguments
                ),
            )
            for work in works
        )
        self.works, self.pending = works, self.handle.call.remote(pickle.dumps(sent), *batches)

    def rest(self) -> None:
        """Forget what it was given."""
        self.jobs, self.payloads, self.works, self.deadline = (), None, (), float("inf")

    def end_if_overdue(self) -> Overdue:
        """End the process on its own node, even if it no longer answers Ray, unless its job may go on."""
        assert self.location is not None
        on_its_node = NodeAffinitySchedulingStrategy(self.location.node, soft=False)
        end: Any = ray.remote(_end_if_overdue).options(num_cpus=0, max_retries=0, scheduling_strategy=on_its_node)
        try:
            found: Overdue = ray.get(end.remote(self.location.process, self.location.note), timeout=KILL_SECONDS)
        except (GetTimeoutError, RayError):  # the node is gone, or too busy to answer
            found = Overdue(BETWEEN_JOBS, 0.0)
        if found.seconds_left > 0:
            self.deadline = time.monotonic() + found.seconds_left
        else:
            ray.kill(self.handle)
        return found
