"""The values of a logged step: losses, learning rate, throughput, waiting times, and replaced samples."""

import time

from torch import Tensor

from pipeline.engine.zero import ZeroTrainer
from pipeline.train.monitor.metrics import DataWait, Metrics, mean_over_ranks
from pipeline.train.monitor.monitor import Monitor
from pipeline.train.unreadable import UnreadableSamples


class StepLog:
    """Collects the values of logged steps. Constructed by all ranks immediately before their first step.

    Args:
        metrics: of rank 0; None on the other ranks.
        cursor: number of samples that were consumed before.
    """

    def __init__(
        self,
        trainer: ZeroTrainer,
        unreadable: UnreadableSamples,
        monitor: Monitor,
        metrics: Metrics | None,
        cursor: int,
    ) -> None:
        self._trainer, self._unreadable, self._monitor, self._metrics = trainer, unreadable, monitor, metrics
        self._started, self._first_cursor = time.monotonic(), cursor
        self.wait = DataWait()

    def collect(self, step: int, cursor: int, losses: dict[str, Tensor], learning_rate: float) -> None:
        """Add a line with the values after `step` updates to metrics.jsonl. Collective.

        Args:
            losses: this rank's losses of the last step.
            learning_rate: of the last step.
        """
        values = mean_over_ranks(losses, self._trainer.world_size)
        throughput = self._monitor.throughput(step, self.wait.total_seconds)
        if self._metrics is not None:
            self._metrics.log_step(step, values | self._state(cursor, learning_rate) | throughput)

    def _state(self, cursor: int, learning_rate: float) -> dict[str, float]:
        trainer = self._trainer
        values = {
            "learning_rate": learning_rate,
            "gradient_norm": trainer.guard.gradient_norm(),
            "samples_per_second": (cursor - self._first_cursor) / (time.monotonic() - self._started),
            "data_wait": self.wait.share(),
            "skipped_samples": self._unreadable.num_replaced,
            "skipped_updates": trainer.guard.num_skipped,
        }
        if trainer.guard.loss_scaler is not None:
            values |= {"loss_scale": trainer.guard.loss_scaler.scale, "overflows": trainer.guard.num_overflows}
        return values
