"""A checkpoint of another architecture is refused."""

import shutil
from dataclasses import replace
from functools import partial

import pytest

from pipeline.checkpoint.record import CheckpointError
from pipeline.distributed.torchrun import train_here
from pipeline.train.loop import train
from testing.tiny import CONFIG


def test_another_architecture_is_refused_by_name(straight, tmp_path):
    task, _, run_dir = straight
    shutil.copytree(run_dir, tmp_path / "run")
    wider = replace(task, model=task.model.model_copy(update={"depth": 2}))
    with pytest.raises(CheckpointError, match=r"another architecture: network\.blocks\.1\."):
        train_here(partial(train, wider, CONFIG, tmp_path / "run"), 1)
