"""The learning-rate schedule at its corner points."""

import pytest

from pipeline.train.config import TrainConfig
from pipeline.train.schedule import learning_rate


def test_learning_rate_schedule():
    config = TrainConfig(steps=110, warmup_steps=10, learning_rate=1.0)
    assert learning_rate(0, config) == pytest.approx(0.1)
    assert learning_rate(9, config) == learning_rate(10, config) == pytest.approx(1.0)
    assert learning_rate(60, config) == pytest.approx(0.55)
    assert learning_rate(110, config) == pytest.approx(0.1)
    assert learning_rate(60, config.model_copy(update={"schedule": "constant"})) == 1.0
