"""Master weights: one word, and the older one that files hold."""

from pipeline.run.weight_names import FIRST_AVERAGE, MASTER, MASTER_IN_VALIDATION
from pipeline.train.config import TrainConfig


def test_master_weights_may_be_called_so_in_a_configuration_and_are_stored_as_before():
    assert TrainConfig(validate_weights=(MASTER, FIRST_AVERAGE)) == TrainConfig()
    assert TrainConfig().validate_weights == (MASTER_IN_VALIDATION, FIRST_AVERAGE)
    assert TrainConfig().model_dump(mode="json")["validate_weights"] == ["raw", "ema"]
