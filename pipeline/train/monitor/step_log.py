"""What a training tells of its steps: losses, rates and waits, and which samples could not be read."""

import time
from itertools import chain

from torch import Tensor

from data.stream.loader import SkippedSample, Stream
from pipeline.distributed.collectives import from_every_rank
from pipeline.engine.zero import ZeroTrainer
from pipeline.train.monitor.metrics import DataWait, MetricsWriter, mean_over_ranks
from pipeline.train.monitor.monitor import Watch


class StepLog:
    """Made by all ranks when the steps begin.

    Args:
        metrics: of rank 0; None on others.
        cursor: how many samples were consumed before.
    """

    def __init__(
        self, trainer: ZeroTrainer, stream: Stream, watch: Watch, metrics: MetricsWriter | None, cursor: int
    ) -> None:
        self._trainer, self._stream, self._watch, self._metrics = trainer, stream, watch, metrics
        self._begun, self._first, self._num_skipped = time.monotonic(), cursor, 0
        self.wait = DataWait()

    def look(self, step: int, cursor: int, losses: dict[str, Tensor], rate: float, *, write: bool) -> None:
        """What there is to tell after `step` updates; called by all at the same steps.

        Args:
            losses: this rank's, of the last step.
            rate: its learning rate.
            write: a line of metrics.jsonl; else only the samples that were skipped are listed.
        """
        values = mean_over_ranks(losses, self._trainer.world_size)
        skipped = list(chain.from_iterable(from_every_rank(self._take_skipped())))
        told = self._watch.pace(step, self.wait.total_seconds) if write else {}
        if self._metrics is None:
            return
        self._num_skipped += len(skipped)
        self._metrics.skip(skipped)
        if write:
            self._metrics.write(step, values | self._numbers(cursor, rate) | told)

    def _take_skipped(self) -> list[SkippedSample]:
        """Each sample once, of those that the ranks of a sequence group have in common."""
        shared_by = self._trainer.world_size // self._trainer.data_world_size
        return self._stream.take_skipped() if self._trainer.rank % shared_by == 0 else []

    def _numbers(self, cursor: int, rate: float) -> dict[str, float]:
        trainer = self._trainer
        numbers = {
            "learning_rate": rate,
            "gradient_norm": trainer.gradient_norm(),
            "samples_per_second": (cursor - self._first) / (time.monotonic() - self._begun),
            "data_wait": self.wait.share(),
            "skipped_samples": self._num_skipped,
            "skipped_updates": trainer.num_skipped,
        }
        if trainer.loss_scaler is not None:
            numbers |= {"loss_scale": trainer.loss_scaler.scale, "overflows": trainer.num_overflows}
        return numbers
