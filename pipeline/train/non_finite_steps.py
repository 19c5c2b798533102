"""Steps whose loss or gradient is not finite, or too long: found out, named with their samples, skipped or the end.

Under the rule "stop" nothing is looked at before the next logged step or save, so that a GPU never waits; the step at
fault is then found among those since. Under "skip" each update is decided before it is made (`ZeroTrainer.max_norm`).
"""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from data.errors import ReelflowError
from data.stream.loader import Stream
from pipeline.distributed.collectives import from_every_rank
from pipeline.engine.zero import ZeroTrainer

if TYPE_CHECKING:
    from pipeline.train.config import TrainConfig

BAD_STEPS_NAME = "bad_steps.jsonl"


class NonFiniteError(ReelflowError, FloatingPointError):
    """The loss or the gradient of a step is not finite, or too large; the message names the step."""


class BadSteps:
    """What to do with them; one per rank."""

    def __init__(self, run_dir: Path, stream: Stream, config: "TrainConfig", rank: int) -> None:
        self._path = run_dir / BAD_STEPS_NAME
        self._stream = stream
        self._config = config
        self._rank = rank
        self._noted: list[
            tuple[int, Tensor, float | Tensor]
        ] = []  # step, loss of this rank, norm; since the last check

    def note(self, step: int, loss: Tensor, trainer: ZeroTrainer) -> None:
        """Remember a step (from 0); called by all after it. One that overflowed was none: the scale was too great."""
        if trainer.overflowed:
            return
        self._noted.append((step, loss, trainer.norm))
        if trainer.skipped:
            self._list(step, float(loss), trainer.gradient_norm(), "skipped")

    def check(self, kind: str) -> None:
        """Refuse to go on, and above all to save, once the training has blown up; called by all at the same step.

        Raises:
            NonFiniteError: on every rank; names the first bad step and where its samples are listed.
        """
        noted, self._noted = self._noted, []
        if self._config.bad_steps == "skip":
            return
        limit = self._config.max_norm or math.inf
        bad = {
            step: (float(loss), float(norm))
            for step, loss, norm in noted
            if not (math.isfinite(loss) and math.isfinite(norm) and 0 <= norm <= limit)  # DeepSpeed's invalid is -1
        }
        first = min((step for step in from_every_rank(min(bad, default=-1)) if step >= 0), default=None)
        if first is None:
            return
        loss, norm = next((float(loss), float(norm)) for step, loss, norm in noted if step == first)
        self._list(first, loss, norm, "stopped")
        limits = f", beyond train.max_norm {limit:g}" if norm > limit and math.isfinite(norm) else ""
        raise NonFiniteError(
            f"the {kind} loss is {loss} and its gradient {norm}{limits} at step {first + 1}; its samples are in "
            f"{self._path}. The last checkpoint is intact: set train.bad_steps=skip and start again, or lower "
            f"train.learning_rate (it is {self._config.learning_rate:g}) and go on with --allow-change "
            "train.learning_rate"
        )

    def _list(self, step: int, loss: float, norm: float, outcome: str) -> None:
        """Append the samples that this rank had at a step."""
        keys = [row.key for row in self._stream.rows(step)]
        line = {"step": step + 1, "rank": self._rank, "loss": loss, "gradient_norm": norm, "outcome": outcome}
        with self._path.open("a", encoding="utf-8") as file:  # one short write: lines of several ranks stay whole
            file.write(json.dumps(line | {"keys": keys}) + "\n")
