"""A model to sample, of a checkpoint that says so, with random weights; nothing is trained or read from disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from data.dataset.buckets import Bucket
from data.dataset.compression import COMPRESSION, Compression
from models.autoencoder.config import AutoencoderConfig
from models.autoencoder.model import Autoencoder
from models.flow.spec import FlowSpec
from models.networks.build import build_network
from models.networks.config import DiTConfig
from models.text.config import TextConfig
from pipeline.checkpoint.record import Checkpoint, CheckpointRecord, FileRecord
from pipeline.sample.model import TrainedModel, trained_model
from testing.networks import with_open_gates

NETWORK = DiTConfig(width=32, depth=1, heads=2, text=TextConfig(width=16, depth=1, heads=2, max_bytes=8))
TRAINED: dict[str, Any] = {
    "model": NETWORK.model_dump(),
    "flow": FlowSpec().model_dump(),
    "latent_stats": {"mean": [0.0], "std": [1.0]},
    "buckets": [Bucket().model_dump()],
}


GIVEN_FIRST: dict[str, Any] = FlowSpec(first_frame_share=0.5).model_dump()
"""Trained with first frames that are given."""


def model_of(**trained: Any) -> TrainedModel:  # noqa: ANN401 - whatever a checkpoint may hold
    """The model of a checkpoint that says so; what is None, it does not say."""
    said = {name: value for name, value in (TRAINED | trained).items() if value is not None}
    file = FileRecord(num_bytes=1, sha256="0" * 64)
    record = CheckpointRecord.model_construct(kind="dit", step=1, trained=said, files={"rank_00000.safetensors": file})
    return trained_model(Checkpoint(Path("checkpoint"), record))


class Untrained(TrainedModel):
    """A model with random weights."""

    def weights(self, which: str) -> Iterator[tuple[str, torch.Tensor]]:  # noqa: ARG002 - there is one set
        """As `SampledModel.weights`."""
        torch.manual_seed(0)
        network = build_network(self.network, self.stats.num_channels)
        return iter([(name, parameter.detach()) for name, parameter in with_open_gates(network).named_parameters()])

    @property
    def compression(self) -> Compression:
        """As `SampledModel.compression`."""
        return COMPRESSION

    def load_autoencoder(self) -> Autoencoder:
        """As `SampledModel.load_autoencoder`."""
        torch.manual_seed(0)
        return Autoencoder(AutoencoderConfig(latent_channels=1, width=8, deep_width=8, num_blocks=1)).eval()
