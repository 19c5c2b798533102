"""Many jobs on Ray actors or tasks: the next job goes to whichever worker is idle.

For jobs that are trusted to return. Jobs that may hang or crash their process run in `isolated_pool`.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from data.errors import ReelflowError, shorten

Job = TypeVar("Job")
JobOut = TypeVar("JobOut", covariant=True)

logger = logging.getLogger(__name__)

LOOK_SECONDS = 10.0
"""Without a result, after which the program looks whether its own node is still in the cluster."""
DEVICE_ERRORS = ("AcceleratorError", "CUDA error", "cuDNN error")  # after one, a process cannot use its GPU any more


class Jobs(Protocol[JobOut]):
    """A queue of jobs whose length is not known."""

    def __bool__(self) -> bool:
        """Whether there is another job."""
        ...

    def popleft(self) -> JobOut:
        """Remove the next job."""
        ...


class WorkerStartError(ReelflowError, RuntimeError):
    """A worker process could not be set up, which no other job would change; the message is that of its error."""


class NodeLostError(ReelflowError, RuntimeError):
    """The node of this program has left the cluster: Ray starts no actor for it any more, and says nothing."""


@dataclass(frozen=True)
class JobFailure:
    """In place of the result of a job that raised, or whose actors all died."""

    error: RayError


@contextmanager
def outcomes_of_actors(
    start_actor: Callable[[], Any],
    submit: Callable[[Any, Job], Any],
    jobs: deque[Job] | Jobs[Job],
    num_actors: int,
    max_attempts: int,
) -> Iterator[Iterator[tuple[Job, Any]]]:
    """Yield an iterator over (job, its result or `JobFailure`), in the order in which jobs finish.

    An actor that dies is replaced, and its job is tried again. An actor whose GPU failed is replaced too. The actors
    end with the block.

    Args:
        start_actor: returns the handle of a new actor.
        submit: gives a job to an actor; returns the reference to its result, such as `actor.encode.remote(job)`.
        jobs: started in their order, one at a time per actor, and removed; more may be added while the block runs.
        num_actors: at most as many as there are jobs.
        max_attempts: number of actors that may die of one job before it counts as failed.

    Raises:
        WorkerStartError: the constructor of an actor raised. Raised by the iterator.
        NodeLostError: the raylet of this program's node has ended. Raised by the iterator.
    """
    actors: list[Any] = []

    def start() -> Any:  # noqa: ANN401 - Ray's handle
        actors.append(start_actor())
        return actors[-1]

    try:
        idle = [start() for _ in range(num_actors if jobs else 0)]
        yield _outcomes(idle[::-1], start, submit, jobs, max_attempts)
    finally:
        for actor in actors:
            ray.kill(actor)


@contextmanager
def results_of_actors(
    start_actor: Callable[[], Any], submit: Callable[[Any, Job], Any], jobs: Sequence[Job], max_actors: int
) -> Iterator[Iterator[tuple[Job, Any]]]:
    """As `outcomes_of_actors` with one attempt per job, where a failure is raised.

    Raises:
        RayTaskError: a job raised; it is also an instance of the class of the job's error. Raised by the iterator.
        RayActorError: an actor died. Raised by the iterator.
        WorkerStartError: the constructor of an actor raised. Raised by the iterator.
    """
    with outcomes_of_actors(start_actor, submit, deque(jobs), min(max_actors, len(jobs)), 1) as outcomes:
        yield _raising(outcomes)


def results_of_tasks(submit: Callable[[Job], Any], jobs: Sequence[Job]) -> Iterator[tuple[Job, Any]]:
    """Yield (job, result) in the order in which jobs finish. All jobs are submitted at once; Ray schedules them.

    Args:
        submit: starts the task of a job; returns the reference to its result.

    Raises:
        RayTaskError: a job raised; it is also an instance of the class of the job's error.
    """
    return _raising(_outcomes([None] * len(jobs), lambda: None, lambda _, job: submit(job), deque(jobs), 1))


def _raising(outcomes: Iterator[tuple[Job, Any]]) -> Iterator[tuple[Job, Any]]:
    for job, outcome in outcomes:
        if isinstance(outcome, JobFailure):
            raise outcome.error
        yield job, outcome


def _outcomes(
    idle: list[Any],
    start: Callable[[], Any],
    submit: Callable[[Any, Job], Any],
    jobs: deque[Job] | Jobs[Job],
    max_attempts: int,
) -> Iterator[tuple[Job, Any]]:
    num_to_replace = 0  # actors that died
    num_failed_starts = 0  # actors in a row that died before they were there
    again: deque[tuple[Job, int]] = deque()  # jobs whose actor died, and how many actors died of each
    running: dict[Any, tuple[Job, int, Any]] = {}  # reference -> job, deaths and worker
    # Actors in the place of dead ones, by a reference that is ready once they are there. Before that they get no job:
    # where a host is lost there may be no room for them, while other actors are idle.
    starting: dict[Any, Any] = {}

    def next_job() -> tuple[Job, int]:
        return again.popleft() if again else (jobs.popleft(), 0)

    while jobs or again or running:
        while (jobs or again) and (idle or num_to_replace):
            if not idle:
                num_to_replace -= 1
                if (worker := start()) is None:
                    idle.append(worker)  # tasks need no actor
                else:
                    starting[_readiness(worker)] = worker
                continue
            job, deaths = next_job()
            if deaths:  # others may have died while they were idle, with their node: no attempt is lost to them
                alive = [worker for worker in idle if _is_alive(worker)]
                num_to_replace += len(idle) - len(alive)
                idle = alive
            if not idle:
                again.appendleft((job, deaths))
                continue
            worker = idle.pop()
            running[submit(worker, job)] = job, deaths, worker
        reference = _first_done([*running, *starting])
        outcome = _outcome(reference)
        if (worker := starting.pop(reference, None)) is not None:
            if not isinstance(outcome, _Death):
                idle.append(worker)
                num_failed_starts = 0
                continue
            num_failed_starts += 1
            if num_failed_starts < max_attempts or not (jobs or again):
                num_to_replace += 1  # it had no job: its node may be the one that is being lost
                continue
            job, deaths = next_job()  # none can start: the death counts as if the job had been given to that actor
        else:
            job, deaths, worker = running.pop(reference)
        if isinstance(outcome, _Death):
            num_to_replace += 1
            if isinstance(outcome.error, ActorUnavailableError):
                ray.kill(worker)  # if it comes back, it must not keep the room of the one that replaces it
            if deaths + 1 < max_attempts:
                reason = str(outcome.error).partition("\n")[0]
                logger.warning("  a worker process died, and another one does its work again: %s", reason)
                again.append((job, deaths + 1))
            else:
                yield job, JobFailure(outcome.error)
            continue
        if worker is not None and isinstance(outcome, JobFailure) and _is_of_the_device(outcome.error):
            ray.kill(worker)  # which frees its GPU for the one that replaces it
            num_to_replace += 1
        else:
            idle.append(worker)
        yield job, outcome


@dataclass(frozen=True)
class _Death:
    """In place of the result of a job whose actor died."""

    error: RayError


def _outcome(reference: Any) -> Any:  # noqa: ANN401 - of any class, as the job returns it
    """The result of a job, `JobFailure` where it raised, or `_Death`.

    Raises:
        WorkerStartError: the constructor of its actor raised.
    """
    try:
        return ray.get(reference)
    except RayTaskError as error:
        return JobFailure(error)
    except (RayActorError, OutOfMemoryError) as error:
        if isinstance(error, RayActorError) and error.actor_init_failed:
            raise WorkerStartError(f"a worker process cannot be set up: {_last_error(str(error))}") from error
        return _Death(error)


def _readiness(actor: Any) -> Any:  # noqa: ANN401 - Ray's
    """A reference that is ready once an actor is there, or has died."""
    return actor.__ray_ready__.remote()


def _first_done(references: list[Any]) -> Any:  # noqa: ANN401 - Ray's reference
    """The reference of a result that is there, or will be first.

    Raises:
        NodeLostError: the node of this program has left the cluster, and no result can come.
    """
    while True:
        done, _ = ray.wait(references, num_returns=1, timeout=LOOK_SECONDS)
        if done:
            return done[0]
        check_own_node()


def check_own_node() -> None:
    """Asked where nothing has come for a while.

    Raises:
        NodeLostError: the node of this program has left the cluster, and no result can come.
    """
    own = ray.get_runtime_context().get_node_id()
    if not any(node["Alive"] for node in ray.nodes() if node["NodeID"] == own):
        raise NodeLostError(
            "the Ray cluster has lost the node of this program (its raylet ended, often for want of memory); what "
            "was finished is kept, and the same command goes on from there"
        )


def _is_alive(worker: Any) -> bool:  # noqa: ANN401 - Ray's handle
    """Whether an idle actor still answers."""
    try:
        ray.get(_readiness(worker))
    except RayActorError:
        return False
    return True


def _is_of_the_device(error: RayError) -> bool:
    """Whether a job met an error of CUDA, after which every later job of its process would fail."""
    text = f"{error} {getattr(error, 'cause', None)!r}"
    return any(name in text for name in DEVICE_ERRORS)


def _last_error(text: str) -> str:
    """The error at the end of a traceback, of which Ray hands over the text alone: its class and its message."""
    lines = text.rstrip().split("\n")
    frames = [number for number, line in enumerate(lines) if line.startswith("  ")]
    return shorten("\n".join(lines[frames[-1] + 1 :] if frames else lines) or lines[-1].strip(), 1000)
