"""Steps whose loss or gradient is not finite, or whose gradient is too long: they end the training or are skipped.

With `non_finite_steps: stop`, losses and norms are read only at the next logged step or save, so that the GPU never
waits for the host; the first step at fault since then is named. With `skip`, every update is decided before it is made
(`UpdateGuard`). The samples of each such step are listed in `bad_steps.jsonl`.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from data.errors import ReelflowError
from data.files.jsonl import append_line
from data.stream.loader import Stream
from pipeline.distributed.collectives import from_every_rank
from pipeline.engine.zero import ZeroTrainer

if TYPE_CHECKING:
    from pipeline.train.config import TrainConfig

NON_FINITE_STEPS_NAME = "bad_steps.jsonl"


class NonFiniteError(ReelflowError, FloatingPointError):
    """The loss or the gradient of a step is not finite, or too long; the message names the step."""


class NonFiniteSteps:
    """Detects and lists such steps. Constructed by all ranks.

    Args:
        saved_step: the step of the newest checkpoint, or 0.
    """

    def __init__(
        self, run_dir: Path, stream: Stream, config: "TrainConfig", rank: int, saved_step: Callable[[], int]
    ) -> None:
        self._path = run_dir / NON_FINITE_STEPS_NAME
        self._stream = stream
        self._config = config
        self._rank = rank
        self._saved_step = saved_step
        self._recorded: list[tuple[int, Tensor, float | Tensor]] = []  # step, this rank's loss, gradient norm

    def record(self, step: int, loss: Tensor, trainer: ZeroTrainer) -> None:
        """Record a step (from 0) after it, for the next `check`.

        A step that overflowed in float16 is left out: the loss scale was too large, and the training is sound.
        """
        if trainer.guard.overflowed:
            return
        self._recorded.append((step, loss, trainer.guard.norm))
        if trainer.guard.skipped:
            self._list(step, float(loss), trainer.guard.gradient_norm(), "skipped")

    def check(self, kind: str) -> None:
        """With the setting "stop", refuse to continue, and to save, after a step that is not finite. Collective.

        Args:
            kind: of the task, for the message.

        Raises:
            NonFiniteError: on every rank; names the first such step and the file with its samples.
        """
        recorded, self._recorded = self._recorded, []
        if self._config.non_finite_steps == "skip":
            return
        limit = self._config.max_norm or math.inf
        bad = {
            step
            for step, loss, norm in recorded
            if not (math.isfinite(loss) and math.isfinite(norm) and 0 <= norm <= limit)  # DeepSpeed's invalid is -1
        }
        first = min((step for step in from_every_rank(min(bad, default=-1)) if step >= 0), default=None)
        if first is None:
            return
        loss, norm = next((float(loss), float(norm)) for step, loss, norm in recorded if step == first)
        self._list(first, loss, norm, "stopped")
        limits = f", beyond train.max_norm {limit:g}" if norm > limit and math.isfinite(norm) else ""
        saved = self._saved_step()
        if saved:
            before, again = (
                f"The checkpoint of step {saved} is intact",
                "resume with --allow-change train.learning_rate",
            )
        else:
            before, again = "No checkpoint had been saved", "start again, from the beginning"
        raise NonFiniteError(
            f"the {kind} loss is {loss} and its gradient {norm}{limits} at step {first + 1}; its samples are in "
            f"{self._path}. {before}: set train.non_finite_steps=skip and start again, or lower "
            f"train.learning_rate (it is {self._config.learning_rate:g}) and {again}"
        )

    def _list(self, step: int, loss: float, norm: float, outcome: str) -> None:
        """Append the samples that this rank had at a step."""
        keys = [row.key for row in self._stream.rows(step)]
        line = {"step": step + 1, "rank": self._rank, "loss": loss, "gradient_norm": norm, "outcome": outcome}
        append_line(self._path, line | {"keys": keys})
