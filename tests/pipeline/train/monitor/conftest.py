"""Trainings with and without monitoring, made once for all tests of this folder."""

import pytest

from testing.groups import Job, run_jobs
from testing.tiny import CONFIG
from testing.watched import STAGES, WATCHED, compare_average, train_watched, write_two_splits


@pytest.fixture(scope="session")
def watched_runs(tmp_path_factory):
    """Trainings at every stage on two workers, watched and not, and watched ones on one worker."""
    folder = tmp_path_factory.mktemp("watching")
    data = folder / "data"
    write_two_splits(data)
    unwatched = CONFIG.model_copy(update={"validation_clips": 0, "checkpoint_every_steps": 8})
    jobs = [Job(2, train_watched, (data, folder / f"watched-{s}", s, WATCHED)) for s in STAGES]
    jobs += [Job(2, train_watched, (data, folder / f"plain-{s}", s, unwatched)) for s in STAGES]
    jobs += [Job(w, compare_average, (data, s)) for w in (1, 2) for s in STAGES]
    jobs += [Job(1, train_watched, (data, folder / "alone", 2, WATCHED))]
    together = WATCHED.model_copy(update={"sequence_parallel": 2})
    jobs += [Job(2, train_watched, (data, folder / "together", 3, together))]
    run_jobs(jobs, folder)
    return folder
