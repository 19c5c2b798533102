"""A model that tests of this folder sample."""

from pathlib import Path

import pytest

from models.flow.spec import FlowSpec, GivenFrames
from testing.sample_faults import write_model


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory) -> Path:
    """A training of eight steps, with given frames, several averages of its weights and two checkpoints."""
    flow = FlowSpec(caption_dropout=0.3, first_frame_share=0.3, given=GivenFrames(prefix=0.3, ends=0.3))
    return write_model(tmp_path_factory.mktemp("model"), flow)
