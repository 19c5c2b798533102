"""The values of a logged step: losses, learning rate, throughput, waiting times, and samples that could not be read."""

import time
from itertools import chain

from torch import Tensor

from data.stream.loader import SkippedSample, Stream
from pipeline.distributed.collectives import from_every_rank
from pipeline.engine.zero import ZeroTrainer
from pipeline.train.monitor.metrics import DataWait, Metrics, mean_over_ranks
from pipeline.train.monitor.monitor import Monitor


class StepLog:
    """Collects the values of logged steps. Constructed by all ranks immediately before their first step.

    Args:
        metrics: of rank 0; None on the other ranks.
        cursor: number of samples that were consumed before.
    """

    def __init__(
        self, trainer: ZeroTrainer, stream: Stream, monitor: Monitor, metrics: Metrics | None, cursor: int
    ) -> None:
        self._trainer, self._stream, self._monitor, self._metrics = trainer, stream, monitor, metrics
        self._started, self._first_cursor, self._num_skipped = time.monotonic(), cursor, 0
        self.wait = DataWait()

    def collect(self, step: int, cursor: int, losses: dict[str, Tensor], learning_rate: float, *, write: bool) -> None:
        """Collect the values after `step` updates. Collective.

        Args:
            losses: this rank's losses of the last step.
            learning_rate: of the last step.
            write: add a line to metrics.jsonl; otherwise only samples that could not be read are listed.
        """
        values = mean_over_ranks(losses, self._trainer.world_size)
        skipped = list(chain.from_iterable(from_every_rank(self._take_skipped())))
        throughput = self._monitor.throughput(step, self.wait.total_seconds) if write else {}
        if self._metrics is None:
            return
        self._num_skipped += len(skipped)
        self._metrics.list_skipped(skipped)
        if write:
            self._metrics.log_step(step, values | self._state(cursor, learning_rate) | throughput)

    def _take_skipped(self) -> list[SkippedSample]:
        """The samples that this rank could not read; the ranks of a sequence group share them, so its first tells."""
        group_size = self._trainer.world_size // self._trainer.data_world_size
        return self._stream.take_skipped() if self._trainer.rank % group_size == 0 else []

    def _state(self, cursor: int, learning_rate: float) -> dict[str, float]:
        trainer = self._trainer
        values = {
            "learning_rate": learning_rate,
            "gradient_norm": trainer.guard.gradient_norm(),
            "samples_per_second": (cursor - self._first_cursor) / (time.monotonic() - self._started),
            "data_wait": self.wait.share(),
            "skipped_samples": self._num_skipped,
            "skipped_updates": trainer.guard.num_skipped,
        }
        if trainer.guard.loss_scaler is not None:
            values |= {"loss_scale": trainer.guard.loss_scaler.scale, "overflows": trainer.guard.num_overflows}
        return values
