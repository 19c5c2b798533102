"""The record of a flow's choices, under the names of its fields and those that they are stored by."""

import pytest

from models.flow.spec import FlowSpec
from pipeline.run.fingerprints import stored


@pytest.mark.parametrize("name", ["caption_dropout", "caption_drop"])
def test_the_old_name_of_the_caption_dropout_is_read_too(name):
    assert FlowSpec.model_validate({name: 0.25}) == FlowSpec(caption_dropout=0.25)


def test_both_names_of_the_caption_dropout_are_refused():
    with pytest.raises(ValueError, match="caption_drop is the old name of caption_dropout: give caption_dropout only"):
        FlowSpec.model_validate({"caption_dropout": 0.25, "caption_drop": 0.25})


def test_records_on_disk_keep_the_old_name():
    spec = FlowSpec(caption_dropout=0.25)
    assert list(stored(spec)) == [
        "path",
        "prediction",
        "loss_weight",
        "times",
        "times_per",
        "caption_drop",
        "null_caption",
    ]
    assert stored(spec)["caption_drop"] == spec.model_dump()["caption_dropout"] == 0.25
    assert FlowSpec.model_validate(stored(spec)) == spec == FlowSpec.model_validate(spec.model_dump())
