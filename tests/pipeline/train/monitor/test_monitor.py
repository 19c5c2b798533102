"""Monitoring does not change what is trained."""

import pytest
import torch

from pipeline.checkpoint.read import load_weights, open_checkpoint
from pipeline.train.monitor.metrics import read_metrics
from pipeline.train.monitor.validation import VALIDATION_NAME
from testing.tiny import WEIGHTS
from testing.watched import STAGES


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_watching_does_not_change_the_training_by_one_bit(watched_runs, stage):
    for which in WEIGHTS:
        plain, watched = (
            load_weights(open_checkpoint(watched_runs / f"{kind}-{stage}"), which) for kind in ("plain", "watched")
        )
        assert all(torch.equal(plain[name], watched[name]) for name in plain)
    losses = [[row["total"] for row in read_metrics(watched_runs / f"{kind}-{stage}")] for kind in ("plain", "watched")]
    assert losses[0] == losses[1]
    assert not (watched_runs / f"plain-{stage}" / VALIDATION_NAME).exists()
