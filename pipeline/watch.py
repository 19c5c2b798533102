"""Watching a training: what it shows of itself between its steps, without changing what they do."""

from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from data.loader import Stream
from pipeline.ema import FIRST, ShardedEma
from pipeline.metrics import MetricsWriter
from pipeline.pace import Pace, PacedTask
from pipeline.preview import PreviewedTask, Previews
from pipeline.validation import RAW, ValidatedTask, Validation
from pipeline.zero import ZeroTrainer


class WatchConfig(BaseModel):
    """What to watch. May change from one start to the next."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    validate_every_steps: int | None = Field(default=None, ge=1)  # None: before the first step and after the last
    validate_weights: tuple[str, ...] = (RAW, FIRST)  # as trained, the first average, or an average by name
    validation_clips: int = Field(default=64, ge=0)  # at most; 0 turns validation off
    sample_every_steps: int | None = Field(default=None, ge=1)  # of the DiT; None: never
    sample_weights: str = FIRST  # the first average, or one by name
    wandb_project: str | None = Field(default=None, min_length=1)  # None: nothing goes to Weights & Biases


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
