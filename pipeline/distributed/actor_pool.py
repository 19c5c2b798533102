"""Many jobs on Ray actors or tasks: the next job goes to whichever worker is idle.

For jobs that are trusted to return. Jobs that may hang or crash their process run in `isolated_pool`.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import ray

Job = TypeVar("Job")


@contextmanager
def results_of_actors(
    start_actor: Callable[[], Any], submit: Callable[[Any, Job], Any], jobs: Sequence[Job], max_actors: int
) -> Iterator[Iterator[tuple[Job, Any]]]:
    """Yield an iterator over (job, result), in the order in which jobs finish; the actors end with the block.

    Jobs are started in their order, one at a time per actor.

    Args:
        start_actor: returns the handle of a new actor. It is called at most once per job.
        submit: gives a job to an actor; returns the reference to its result, such as `actor.encode.remote(job)`.

    Raises:
        RayTaskError: a job raised; it is also an instance of the class of the job's error. Raised by the iterator.
        RayActorError: an actor died. Raised by the iterator.
    """
    actors = []
    try:
        for _ in range(min(max_actors, len(jobs))):
            actors.append(start_actor())  # noqa: PERF401 - those that have started must end if the next one cannot
        yield _results(actors, submit, jobs)
    finally:
        for actor in actors:
            ray.kill(actor)


def results_of_tasks(submit: Callable[[Job], Any], jobs: Sequence[Job]) -> Iterator[tuple[Job, Any]]:
    """Yield (job, result) in the order in which jobs finish. All jobs are submitted at once; Ray schedules them.

    Args:
        submit: starts the task of a job; returns the reference to its result.

    Raises:
        RayTaskError: a job raised; it is also an instance of the class of the job's error.
    """
    return _results([None] * len(jobs), lambda _, job: submit(job), jobs)


def _results(
    workers: Sequence[Any], submit: Callable[[Any, Job], Any], jobs: Sequence[Job]
) -> Iterator[tuple[Job, Any]]:
    waiting, idle = deque(jobs), list(reversed(workers))
    running: dict[Any, tuple[Job, Any]] = {}  # reference -> job and worker
    while waiting or running:
        while waiting and idle:
            job, worker = waiting.popleft(), idle.pop()
            running[submit(worker, job)] = job, worker
        (reference,), _ = ray.wait(list(running), num_returns=1)
        job, worker = running.pop(reference)
        result = ray.get(reference)
        idle.append(worker)
        yield job, result
