"""Weights that a training starts from."""

from functools import partial

import pytest
import torch

from data.files.checksums import file_sha256
from pipeline.checkpoint.read import open_checkpoint
from pipeline.distributed.torchrun import train_here
from pipeline.train.loop import train
from testing.steps import STEPS
from testing.tiny import make_task


@pytest.mark.slow
def test_where_the_weights_come_from(step_runs, tmp_path):
    data, _ = step_runs
    origins = []
    for steps in (4, 8):
        train_here(partial(train, make_task(data), STEPS.model_copy(update={"steps": steps}), tmp_path), 1)
        origins.append(open_checkpoint(tmp_path))
    first, second = (checkpoint.record.provenance for checkpoint in origins)
    assert first.dataset == second.dataset == file_sha256(data / "index.parquet")
    assert first.lineage == []
    assert second.lineage == [origins[0].fingerprint]
    assert first.code == second.code
    assert first.versions["torch"] == torch.__version__
