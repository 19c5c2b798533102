"""Jobs that may hang or crash their process: each has a deadline, and a lost worker is replaced.

Video decoders are C code that reads untrusted files. Each job runs in a Ray actor, which is a process of its own: it is
killed after the deadline, and a crash ends that job only. A job that gets on may put off its deadline (`allow_until`).
"""

import os
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Job = TypeVar("Job")
MAX_ATTEMPTS = 3  # one crash may be the machine's fault, such as a lack of memory; three are the job's
MAX_FAILED_STARTS = 3
POLL_SECONDS = 0.5
KILL_SECONDS = 10.0

ANSWER_SECONDS = 5.0  # for a worker to say until when its job may run

_allowed_until = 0.0  # of the job that this process runs, in the time of `time.monotonic`; 0: its timeout holds


def allow_until(moment: float) -> None:
    """Called by a job, in its worker: it may run until this moment (`time.monotonic`), instead of its timeout."""
    global _allowed_until
    _allowed_until = moment


@dataclass(frozen=True)
class Done(Generic[Job]):
    """A job that returned."""

    job: Job
    report: Any  # its first result
    payload: Any  # reference to its second result, which is in the object store


@dataclass(frozen=True)
class Lost(Generic[Job]):
    """A job that did not return."""

    job: Job
    reason: Literal["timed_out", "crashed", "failed"]
    detail: str


@dataclass(eq=False)
class _Worker(Generic[Job]):
    """One actor, the job it was given, and the reference to wait for."""

    handle: Any
    pending: Any  # reference: its location while it starts, then the report of its job
    location: tuple[str, int] | None = None  # node and process
    payload: Any = None
    job: Job | None = None  # None while it starts
    started: float = 0.0
    deadline: float = float("inf")

    def give(self, job: Job, timeout_seconds: float) -> None:
        """Start a job."""
        self.job, self.started = job, time.monotonic()
        self.deadline = self.started + timeout_seconds
        self.pending, self.payload = self.handle.run.options(num_returns=2).remote(job)

    def seconds_left(self) -> float:
        """How long the job may still run, by what it told its process; 0 if that does not answer."""
        try:
            return ray.get(self.handle.seconds_left.remote(), timeout=ANSWER_SECONDS)
        except (GetTimeoutError, RayActorError):
            return 0.0

    def kill(self) -> None:
        """End the process on its own node, even if it no longer answers Ray."""
        assert self.location is not None
        node, process = self.location
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

    def location(self) -> tuple[str, int]:
        """Node and process. Answered once the process has started, so that deadlines do not include its start."""
        return ray.get_runtime_context().get_node_id(), os.getpid()

    def run(self, job: object) -> tuple[Any, Any]:
        """Do one job."""
        allow_until(0.0)
        return self._function(job)

    @ray.method(concurrency_group="control")
    def seconds_left(self) -> float:
        """How long the job may still run; answered by a thread of its own, while it runs."""
        return _allowed_until - time.monotonic()


class _Pool(Generic[Job]):
    """The workers, the jobs that wait for one, and how often each job has crashed its worker."""

    def __init__(
        self, function: Callable[[Job], tuple[Any, Any]], jobs: Collection[Job], num_workers: int, timeout: float
    ) -> None:
        self.waiting, self.workers = deque(jobs), list[_Worker[Job]]()
        self._num_workers, self._timeout = num_workers, timeout
        self._function, self._actor = (
            ray.put(function),
            ray.remote(num_cpus=1, concurrency_groups={"control": 1})(_Runner),
        )
        self._crashes, self._failed_starts = Counter[Job](), 0

    def start_workers(self) -> None:
        """Start workers up to their number, but no more than there are jobs left."""
        num_jobs = len(self.waiting) + sum(worker.job is not None for worker in self.workers)
        while len(self.workers) < min(self._num_workers, num_jobs):
            handle: Any = self._actor.remote(self._function)
            self.workers.append(_Worker(handle, handle.location.remote()))

    def ready(self) -> list[_Worker[Job]]:
        """Workers that have started, have done their job, or have died; waits at most `POLL_SECONDS` for one."""
        finished, _ = ray.wait([worker.pending for worker in self.workers], num_returns=1, timeout=POLL_SECONDS)
        return [worker for worker in self.workers if worker.pending in finished]

    def collect(self, worker: _Worker[Job]) -> Done[Job] | Lost[Job] | None:
        """What became of the job of a ready worker; None if it has none yet, or its job is tried again.

        Raises:
            RayActorError: `MAX_FAILED_STARTS` workers in a row died while they started.
            RayTaskError: the operating system refused something, such as writing to a full disk.
        """
        try:
            report: Any = ray.get(worker.pending)
        except RayActorError:
            self.workers.remove(worker)
            if worker.job is None:
                self._failed_starts += 1
                if self._failed_starts == MAX_FAILED_STARTS:
                    raise
                return None
            self._crashes[worker.job] += 1
            if self._crashes[worker.job] < MAX_ATTEMPTS:
                self.waiting.appendleft(worker.job)
                return None
            return Lost(worker.job, "crashed", f"decoding it crashed {MAX_ATTEMPTS} workers")
        except RayTaskError as error:
            if worker.job is None or isinstance(error.cause, OSError):  # an error of the machine, not of the job
                raise
            return Lost(worker.job, "failed", f"it raised {type(error.cause).__name__}: {error.cause}")
        self._failed_starts = 0
        if worker.job is None:
            worker.location = report
            return None
        return Done(worker.job, report, worker.payload)

    def give_next(self, worker: _Worker[Job]) -> None:
        """Give a worker the next job, or end it if there is none; nothing if it has died."""
        if worker not in self.workers:
            return
        if self.waiting:
            worker.give(self.waiting.popleft(), self._timeout)
        else:
            self.workers.remove(worker)
            ray.kill(worker.handle)

    def kill_overdue(self) -> Iterator[Lost[Job]]:
        """Kill the workers whose job has passed its deadline."""
        for worker in [worker for worker in self.workers if time.monotonic() > worker.deadline]:
            assert worker.job is not None
            if (seconds_left := worker.seconds_left()) > 0:
                worker.deadline = time.monotonic() + seconds_left
                continue
            self.workers.remove(worker)
            worker.kill()
            yield Lost(
                worker.job, "timed_out", f"decoding it took longer than {worker.deadline - worker.started:.3g} s"
            )

    def close(self) -> None:
        """End all workers."""
        for worker in self.workers:
            ray.kill(worker.handle)


def run_jobs(
    function: Callable[[Job], tuple[Any, Any]], jobs: Collection[Job], num_workers: int, timeout_seconds: float
) -> Iterator[Done[Job] | Lost[Job]]:
    """Run every job and yield it when it ends, in no particular order; an idle worker takes the next job.

    A job whose worker dies is tried again on another worker, `MAX_ATTEMPTS` times in all. A job that raises an error is
    lost and the others continue, except that an error of the operating system (such as a full disk) is raised here.

    Args:
        function: from a job to a report, which is fetched, and a payload, which stays in the object store.
        jobs: hashable and distinct.

    Raises:
        RayActorError: workers die while they start.
        RayTaskError: a job raised an OSError.
    """
    pool = _Pool(function, jobs, num_workers, timeout_seconds)
    try:
        while pool.workers or pool.waiting:
            pool.start_workers()
            for worker in pool.ready():
                if (outcome := pool.collect(worker)) is not None:
                    yield outcome
                pool.give_next(worker)
            yield from pool.kill_overdue()
    finally:
        pool.close()
