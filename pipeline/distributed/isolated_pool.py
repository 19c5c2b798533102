"""Jobs that may hang or crash their process: each has a deadline, and a lost worker is replaced.

Video decoders are C code that reads untrusted files. Jobs run in a fixed number of Ray actors, which are processes of
their own: one is killed when a job passes its deadline, and a crash ends that job only. What follows from the jobs,
such as writing a shard of their payloads, is done by the same processes.
"""

import logging
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Any, Generic, Literal, Self, TypeVar

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from pipeline.distributed.actor_pool import LOOK_SECONDS, check_own_node
from pipeline.distributed.isolated_worker import (
    BATCH_SECONDS,
    BETWEEN_JOBS,
    BatchReport,
    Call,
    Finish,
    Location,
    Payload,
    Runner,
    Worker,
    as_they_are,
)

Job = TypeVar("Job")
T = TypeVar("T")
logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3  # one crash may be the machine's fault, such as a lack of memory; three are the job's
MAX_FAILED_STARTS = 3
MAX_BATCH = 1024  # jobs; only those of less than 0.1 ms would fill it
MAX_CALLS = 16  # without payloads, that a worker is given at once
POLL_SECONDS = 0.5
HOST_LOST = "its node has died"  # in Ray's message about an actor


@dataclass(frozen=True)
class Done(Generic[Job]):
    """A job that returned."""

    job: Job
    report: Any  # its first result
    payload: Payload  # its second result, which is in the object store


@dataclass(frozen=True)
class Lost(Generic[Job]):
    """A job that did not return."""

    job: Job
    reason: Literal["timed_out", "crashed", "failed"]
    detail: str


class IsolatedPool(Generic[Job]):
    """A fixed number of workers, the jobs that wait for one, and how often each job has crashed its worker.

    A job whose worker dies is tried again on another worker, `MAX_ATTEMPTS` times in all. A job that raises an error is
    lost and the others continue, except that an error of the operating system (such as a full disk) is raised to the
    caller. Quick jobs are given to a worker several at once. If the worker dies of one, each is tried again alone.

    The loss of a host is the fault of no job. The workers that are left go on, whether or not there is room for others.

    The workers end with the block of a `with` statement.

    Args:
        function: from a job to a report, which is fetched, and a payload, which stays in the object store.
        jobs: hashable and distinct.
        timeout_seconds: that one job may take.
        finish: from the jobs that a worker did and their reports to what is fetched of each; called once for them all,
            which takes less time where it would otherwise follow each job, when the caches of the processor are full
            of other code. Trusted to return.
    """

    def __init__(
        self,
        function: Callable[[Job], tuple[Any, Any]],
        jobs: Collection[Job],
        num_workers: int,
        timeout_seconds: float,
        finish: Finish = as_they_are,
    ) -> None:
        self._waiting, self._work, self._workers = deque(jobs), deque[Call](), list[Worker[Job]]()
        self._num_workers, self._timeout = num_workers, timeout_seconds
        # Ray's record of every task, which nothing reads, would cost all its processes time.
        self._actor = ray.remote(Runner).options(num_cpus=1, enable_task_events=False)
        self._functions = ray.put((function, finish))  # together, as they may hold the same large object
        self._alone = set[Job]()  # jobs whose batch was lost
        self._called_alone = set[Call]()
        self._crashes, self._work_crashes, self._failed_starts = Counter[Job](), Counter[Call](), 0
        self._seconds_per_job = float("inf")  # in the last batch
        self._heard = monotonic()  # when a worker was last ready

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_workers()

    def call(self, function: Callable[..., None], *arguments: object) -> None:
        """Let the next idle worker call a function that is trusted to return, before any job that waits.

        It and its arguments can be pickled: it is found by its name in its module.

        A `Payload` among the arguments is replaced by the payload itself. It is called between two outcomes; `outcomes`
        ends when all calls have returned, and raises their errors. A call is repeated if its worker dies; so is one
        without payloads that a worker was given together with the call that it died of. Payloads are lost with the host
        of the worker that made them: then the call is not made, which is logged, and the caller has to look afterwards
        what is missing.
        """
        self._work.append(Call(function, arguments))

    def outcomes(self) -> Iterator[Done[Job] | Lost[Job]]:
        """Run every job and yield it when it ends, in no particular order; an idle worker takes the next jobs.

        Raises:
            RayActorError: workers die while they start, or of a call.
            RayTaskError: a job raised an OSError, or a call any error. It is raised as soon as it happens.
            NodeLostError: the node of this program has left the cluster.
        """
        while self._num_busy or self._waiting or self._work:
            self._start_workers()
            for worker in self._ready():
                yield from self._collect(worker)
                self._give_next(worker)
            for worker in [worker for worker in self._workers if monotonic() > worker.deadline]:
                yield from self._after_deadline(worker)
        self._end_workers()  # which have not started: there may be no room for them

    def _end_workers(self) -> None:
        for worker in self._workers:
            ray.kill(worker.handle)
        self._workers.clear()

    def _start_workers(self) -> None:
        """Start workers up to their number, but no more than there is to do."""
        num_wanted = min(self._num_workers, self._num_busy + len(self._waiting) + len(self._work))
        while len(self._workers) < num_wanted:
            self._workers.append(Worker(self._actor.remote(self._functions)))

    @property
    def _num_busy(self) -> int:
        return sum(bool(worker.jobs or worker.works) for worker in self._workers)

    def _ready(self) -> list[Worker[Job]]:
        """Workers that have started, have done their work, or have died; waits at most `POLL_SECONDS` for one."""
        pending = [worker.pending for worker in self._workers]
        finished, _ = ray.wait(pending, num_returns=1, timeout=POLL_SECONDS)
        if finished:
            self._heard = monotonic()
        elif monotonic() - self._heard > LOOK_SECONDS:
            self._heard = monotonic()
            self._look()
        return [worker for worker in self._workers if worker.pending in finished]

    def _look(self) -> None:
        """Nothing has come for a while: say so, if it is because no worker has started.

        Raises:
            NodeLostError: the node of this program has left the cluster.
        """
        check_own_node()
        if not self._num_busy:
            logger.warning(
                "  no worker process has started within %g s: the hosts are slow, or none has a free CPU; the program "
                "goes on waiting",
                LOOK_SECONDS,
            )

    def _collect(self, worker: Worker[Job]) -> Iterator[Done[Job] | Lost[Job]]:
        """What became of the jobs of a ready worker; nothing of those that are tried again."""
        try:
            result: Any = ray.get(worker.pending)
        except RayActorError as error:
            self._workers.remove(worker)
            ray.kill(worker.handle)  # it may only be out of reach
            yield from self._after_death(worker, error)
            return
        except (RayTaskError, ObjectLostError) as error:
            yield from self._after_error(worker.jobs, error)
            worker.rest()
            return
        self._failed_starts = 0
        jobs, payloads = worker.jobs, worker.payloads
        worker.rest()
        if isinstance(result, Location):
            worker.location = result
        elif isinstance(result, BatchReport):
            reports = result.reports
            self._seconds_per_job = result.seconds / len(reports)
            self._waiting.extendleft(reversed(jobs[len(reports) :]))
            for number, report in enumerate(reports):
                yield Done(jobs[number], report, Payload(payloads, number))

    def _after_error(self, jobs: tuple[Job, ...], error: RayTaskError | ObjectLostError) -> Iterator[Lost[Job]]:
        """What follows from an error that a worker reported of its jobs, or if there are none, of its calls.

        Raises:
            RayTaskError: it is one of the machine, or of a call.
        """
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, ObjectLostError):
            logger.warning("  a host was lost, and with it results that were in its memory; they are made again")
            self._waiting.extendleft(reversed(jobs))
        elif not jobs or isinstance(cause, OSError):
            raise error
        elif len(jobs) == 1:
            yield Lost(jobs[0], "failed", f"it raised {type(cause).__name__}: {cause}")
        else:
            self._try_alone(jobs)

    def _after_death(self, worker: Worker[Job], error: RayActorError) -> Iterator[Lost[Job]]:
        """Give what a dead worker was at to another one.

        Raises:
            RayActorError: `MAX_FAILED_STARTS` workers in a row died while they started, or too many of one call.
        """
        if HOST_LOST in str(error):
            self._work.extendleft(reversed(worker.works))
            self._waiting.extendleft(reversed(worker.jobs))
        elif worker.works:
            self._work.extendleft(reversed(worker.works))
            self._called_alone.update(worker.works)
            if len(worker.works) == 1:
                self._work_crashes.update(worker.works)
                if self._work_crashes[worker.works[0]] == MAX_ATTEMPTS:
                    raise error
        elif len(worker.jobs) == 1:
            if self._may_try_again(worker.jobs[0]):
                self._waiting.appendleft(worker.jobs[0])
            else:
                yield Lost(worker.jobs[0], "crashed", f"decoding it crashed {MAX_ATTEMPTS} workers")
        elif worker.jobs:
            self._try_alone(worker.jobs)
        else:
            self._failed_starts += 1
            if self._failed_starts == MAX_FAILED_STARTS:
                raise error

    def _may_try_again(self, job: Job) -> bool:
        self._crashes[job] += 1
        return self._crashes[job] < MAX_ATTEMPTS

    def _try_alone(self, jobs: tuple[Job, ...]) -> None:
        self._alone.update(jobs)
        self._waiting.extendleft(reversed(jobs))

    def _give_next(self, worker: Worker[Job]) -> None:
        """Give a worker what is next, or end it if there is nothing; nothing if it has died."""
        if worker not in self._workers:
            return
        if self._work:
            worker.give_work(self._next_works())
        elif self._waiting:
            worker.give(self._next_jobs(), self._timeout)
        else:
            self._workers.remove(worker)
            ray.kill(worker.handle)

    def _next_jobs(self) -> tuple[Job, ...]:
        """As many jobs as take `BATCH_SECONDS`, as long as enough are left for every worker."""
        size = min(MAX_BATCH, BATCH_SECONDS / self._seconds_per_job, len(self._waiting) / self._num_workers)
        return _first(self._waiting, int(size), lambda job: bool(self._alone) and job in self._alone)

    def _next_works(self) -> tuple[Call, ...]:
        """The next call, and further ones if none of them needs payloads, which take memory and may be used up."""
        num_idle = self._num_workers - self._num_busy
        size = min(MAX_CALLS, -(-len(self._work) // max(1, num_idle)))
        return _first(self._work, size, lambda work: work.has_payloads or work in self._called_alone)

    def _after_deadline(self, worker: Worker[Job]) -> Iterator[Lost[Job]]:
        """End a worker, unless its job may go on; the jobs that it was not at are done by another one."""
        jobs, found = worker.jobs, worker.end_if_overdue()
        if found.seconds_left > 0:
            return
        self._workers.remove(worker)
        number = found.number
        if number == BETWEEN_JOBS:  # its host does not answer, or it has just done them
            first, *others = jobs
            if others or self._may_try_again(first):
                self._try_alone(jobs)
                return
            number = 0
        self._waiting.extendleft(reversed(jobs[:number] + jobs[number + 1 :]))
        allowed = max(self._timeout, worker.deadline - worker.started - BATCH_SECONDS)
        yield Lost(jobs[number], "timed_out", f"decoding it took longer than {allowed:.4g} s")


def _first(waiting: deque[T], size: int, is_alone: Callable[[T], bool]) -> tuple[T, ...]:
    """Take the first ones that wait, at most `size` but at least one; one that is to be alone is taken alone."""
    taken = [waiting.popleft()]
    if not is_alone(taken[0]):
        while len(taken) < size and not is_alone(waiting[0]):
            taken.append(waiting.popleft())
    return tuple(taken)
