"""Latents and finished trainings of eight steps, made once for all tests of this folder."""

import shutil
from functools import partial
from pathlib import Path

import pytest

from pipeline.distributed.torchrun import train_here
from pipeline.train.loop import train
from testing.groups import Job, run_jobs
from testing.often_saved import OFTEN
from testing.tiny import CONFIG, make_task, train_tiny, write_latents


@pytest.fixture(scope="session")
def tiny_latents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_latents(folder)
    return folder


@pytest.fixture(scope="session")
def often_saved(tiny_latents, tmp_path_factory):
    """Eight steps that nothing disturbed, on one worker."""
    run_dir = tmp_path_factory.mktemp("straight")
    train_here(partial(train, make_task(tiny_latents), OFTEN, run_dir), 1)
    return run_dir


@pytest.fixture
def run_dir(often_saved, tmp_path):
    """A copy of that run to be spoilt."""
    return Path(shutil.copytree(often_saved, tmp_path / "run"))


@pytest.fixture(scope="session")
def straight(tmp_path_factory):
    """Eight steps on one worker in one go."""
    folder = tmp_path_factory.mktemp("data")
    run_dir = tmp_path_factory.mktemp("straight")
    write_latents(folder)
    task = make_task(folder)
    train_here(partial(train, task, CONFIG, run_dir), 1)
    return task, folder, run_dir


@pytest.fixture(scope="session")
def two_workers(straight, tmp_path_factory):
    """The same eight steps on two workers."""
    _, folder, _ = straight
    run_dir = tmp_path_factory.mktemp("two-workers")
    run_jobs([Job(2, train_tiny, (folder, run_dir))], tmp_path_factory.mktemp("jobs"))
    return run_dir
