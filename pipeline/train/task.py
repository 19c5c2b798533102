"""The protocol between the training loop and what is trained."""

from pathlib import Path
from typing import Any, Protocol

from torch import nn

from data.stream.loader import Sample, Subset
from pipeline.engine.parameter_groups import ParameterGroup
from pipeline.engine.placement import WHOLE, Placement
from pipeline.train.config import TrainConfig
from pipeline.train.monitor.monitor import MonitoredTask


class ScheduledLoss(nn.Module):
    """A loss that depends on how far the training is."""

    num_steps: int = 0
    """Steps that have finished; the loop sets it before each step, by `set_progress`."""
    num_updates: int = 0
    """Those of them that updated weights: all, where none was skipped."""


def set_progress(module: nn.Module, num_steps: int, num_updates: int) -> None:
    """Tell every `ScheduledLoss` in a module how many steps have finished, and how many of them updated weights."""
    for part in module.modules():
        if isinstance(part, ScheduledLoss):
            part.num_steps, part.num_updates = num_steps, num_updates


def single_group(config: TrainConfig) -> list[ParameterGroup]:
    """All parameters, updated as the configuration says."""
    return [ParameterGroup(weight_decay=config.weight_decay, betas=config.betas)]


class TrainTask(MonitoredTask, Protocol):
    """What is trained, and on which data. Implementations are frozen records, which are pickled to the workers."""

    @property
    def kind(self) -> str:
        """Either "autoencoder", "tokenizer" or "dit"."""
        ...

    @property
    def seed(self) -> int:
        """The seed of all addressed randomness."""
        ...

    def build(self, placement: Placement = WHOLE) -> nn.Module:
        """The network inside its loss: forward(batch) returns {"total": scalar, ...}.

        Args:
            placement: where weights that are read from a file go. New weights are made whole on the CPU.
        """
        ...

    def parameter_groups(self, config: TrainConfig) -> list[ParameterGroup]:
        """How AdamW updates the parameters of the module that `build` makes."""
        ...

    @property
    def dataset_dir(self) -> Path:
        """The folder of the shards."""
        ...

    def subsets(self) -> list[Subset]:
        """The training samples, by bucket and dataset of the mix."""
        ...

    def collate(self, samples: list[Sample]) -> Any:  # noqa: ANN401 - the task's own batch type, with .to(device)
        """A batch of tensors on the CPU, of samples of one bucket; called in a reader thread."""
        ...

    def pack(self, batches: list[Any]) -> Any:  # noqa: ANN401 - the task's own batch types
        """One batch out of those of several buckets, where `train.mixed_buckets` asks for it."""
        ...

    def metadata(self) -> dict[str, Any]:
        """What a reader of the checkpoint needs to build the network again: JSON values, stored as `trained`."""
        ...

    def attachments(self) -> list[Path]:
        """Files that are linked into every checkpoint."""
        ...
