"""What the loop needs to know of a network."""

from pathlib import Path
from typing import Any, Protocol

from torch import nn

from data.stream.loader import Sample, Subset
from pipeline.train.monitor.monitor import WatchedTask


class TrainTask(WatchedTask, Protocol):
    """What the loop needs to know of a network; frozen records, pickled to the workers."""

    @property
    def kind(self) -> str:
        """Either "autoencoder" or "dit"."""
        ...

    @property
    def seed(self) -> int:
        """What all randomness of the run starts from."""
        ...

    def build(self) -> nn.Module:
        """The network inside its loss: forward(batch) gives {"total": scalar, ...}."""
        ...

    @property
    def dataset_dir(self) -> Path:
        """Where the shards are."""
        ...

    def subsets(self) -> list[Subset]:
        """What to train on, by shape and dataset."""
        ...

    def prepare(self, samples: list[Sample]) -> Any:  # noqa: ANN401 - the task's own batch type, with .to(device)
        """A batch of tensors, made in the loader's thread."""
        ...

    def trained(self) -> dict[str, Any]:
        """What a reader of the checkpoint has to know."""
        ...

    def attachments(self) -> list[Path]:
        """Files that go into every checkpoint."""
        ...
