"""Trainings of a few steps with every setting, made once for all tests of this folder."""

import pytest

from testing.groups import Job, run_jobs
from testing.steps import SETTINGS, STAGES, nothing_moves, train_with
from testing.tiny import write_latents


@pytest.fixture(scope="session")
def step_runs(tmp_path_factory):
    folder, data = tmp_path_factory.mktemp("steps"), tmp_path_factory.mktemp("data")
    write_latents(data)
    cells = [(name, stage) for name in SETTINGS for stage in STAGES]
    jobs = [Job(2, train_with, (data, folder / f"{name}-{stage}", name, stage)) for name, stage in cells]
    jobs += [Job(2, nothing_moves, (data, stage)) for stage in STAGES]
    run_jobs(jobs, folder)
    return data, {cell: folder / f"{cell[0]}-{cell[1]}" for cell in cells}
