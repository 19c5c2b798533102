"""Monitoring between training steps: throughput, validation and previews, none of which changes the training."""

from pathlib import Path
from typing import Protocol

from data.stream.loader import Stream
from pipeline.engine.ema import ShardedEma
from pipeline.engine.zero import ZeroTrainer
from pipeline.train.config import MonitorConfig
from pipeline.train.monitor.metrics import Metrics
from pipeline.train.monitor.previews import PreviewedTask, Previews
from pipeline.train.monitor.throughput import Throughput, ThroughputTask
from pipeline.train.monitor.validation import ValidatedTask, Validation


class MonitoredTask(ValidatedTask, ThroughputTask, PreviewedTask, Protocol):
    """What monitoring needs from a task."""


class Monitor:
    """Runs what is due between steps. Constructed and called by all ranks, at the same steps."""

    def __init__(
        self,
        task: MonitoredTask,
        config: MonitorConfig,
        trainer: ZeroTrainer,
        ema: ShardedEma,
        run_dir: Path,
        metrics: Metrics | None,
        stream: Stream,
        *,
        first_step: int,
        last_step: int,
    ) -> None:
        self._first_step = first_step
        self._throughput = Throughput(task, trainer, ema, stream.plan, stream.buckets, first_step)
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

    @property
    def note(self) -> str:
        """What the user should know before the first step; mostly empty."""
        return self._validation.note

    def start(self) -> None:
        """Call before the first step of this start: validates a new training once."""
        if self._first_step == 0:
            self.after_step(0)
        self._throughput.start()

    def throughput(self, step: int, waited_seconds: float) -> dict[str, float]:
        """The values of `Throughput.measure`."""
        return self._throughput.measure(step, waited_seconds)

    def after_step(self, step: int) -> None:
        """Run the validation and the previews that are due after `step` updates."""
        for part in (self._validation, self._previews):
            if part.due(step):
                with self._throughput.paused():
                    part.run(step)
