"""Watching a training: what it shows of itself between its steps, without changing what they do."""

from pathlib import Path
from typing import Protocol

from data.stream.loader import Stream
from pipeline.engine.ema import ShardedEma
from pipeline.engine.zero import ZeroTrainer
from pipeline.train.config import WatchConfig
from pipeline.train.monitor.metrics import MetricsWriter
from pipeline.train.monitor.previews import PreviewedTask, Previews
from pipeline.train.monitor.throughput import Pace, PacedTask
from pipeline.train.monitor.validation import ValidatedTask, Validation


class WatchedTask(ValidatedTask, PacedTask, PreviewedTask, Protocol):
    """What watching needs to know of a network."""


class Watch:
    """Looks on between the steps. Made and called by all ranks at the same steps."""

    def __init__(
        self,
        task: WatchedTask,
        config: WatchConfig,
        trainer: ZeroTrainer,
        ema: ShardedEma,
        run_dir: Path,
        metrics: MetricsWriter | None,
        stream: Stream,
        *,
        first_step: int,
        last_step: int,
    ) -> None:
        self._first_step = first_step
        self._pace = Pace(task, trainer, ema, stream.plan, stream.buckets, first_step)
        self._previews = Previews(
            task, trainer, ema, run_dir, metrics, config.sample_every_steps, config.sample_weights
        )
        self._validation = Validation(
            task,
            trainer,
            ema,
            run_dir,
            metrics,
            first_step=first_step,
            last_step=last_step,
            every_steps=config.validate_every_steps,
            weights=config.validate_weights,
            max_clips=config.validation_clips,
        )

    def begin(self) -> None:
        """Before the first step."""
        if self._first_step == 0:
            self.after(0)
        self._pace.begin()

    def pace(self, step: int, waited_seconds: float) -> dict[str, float]:
        """See `Pace.look`."""
        return self._pace.look(step, waited_seconds)

    def after(self, step: int) -> None:
        """What is due after `step` updates."""
        for show in (self._validation, self._previews):
            if show.due(step):
                with self._pace.paused():
                    show.run(step)
