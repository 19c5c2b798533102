"""Steps whose loss or gradient is not finite, or too long: found out, named with their samples, skipped or the end.

Under the rule "stop" nothing is looked at before the next logged step or save, so that a GPU never waits; the step at
fault is then found among those since. Under "skip" each update is decided before it is made (`ZeroTrainer.max_norm`).
"""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from data.loader import Stream
from pipeline.agree import from_every_rank
from pipeline.zero import ZeroTrainer

if TYPE_CHECKING:
    from pipeline.train import TrainConfig

BAD_STEPS_NAME = "bad_steps.jsonl"


class BadSteps:
    """What to do with them; one per rank."""

    def __init__(self, run_dir: Path, stream: Stream, config: "TrainConfig", rank: int) -> None:
        self._path = run_dir / BAD_STEPS_NAME
        self._stream = stream
        self._config = config
        self._rank = rank
        self._losses: list[tuple[int, Tensor]] = []  # of this rank, since the last check

    def note(self, step: int, loss: Tensor, trainer: ZeroTrainer) -> None:
        """Remember a step (from 0); called by all after it."""
        self._losses.append((step, loss))
        if trainer.skipped:
            self._list(step, loss, trainer.gradient_norm(), "skipped")

    def check(self, kind: str, loss: float, norm: float) -> None:
        """Refuse to go on, and above all to save, once the training has blown up; called by all at the same step.

        Args:
            loss, norm: of the last step, over all ranks.

        Raises:
            FloatingPointError: on every rank; names the step and where its samples are listed.
        """
        noted, self._losses = self._losses, []
        if self._config.bad_steps == "skip":
            return
        own = next((step for step, value in noted if not math.isfinite(value)), None)
        first = min((step for step in from_every_rank(-1 if own is None else own) if step >= 0), default=None)
        last = noted[-1][0]
        limit = self._config.max_norm or math.inf
        if first is None and math.isfinite(loss) and 0 <= norm <= limit:  # DeepSpeed's invalid norm is -1
            return
        first = last if first is None else first
        own_loss = next(value for step, value in noted if step == first)
        self._list(first, own_loss, norm, "stopped")
        limits = f", beyond train.max_norm {limit:g}" if norm > limit and math.isfinite(norm) else ""
        raise FloatingPointError(
            f"the {kind} loss is {loss} and its gradient {norm}{limits} at step {last + 1}, first at step {first + 1}; "
            f"its samples are in {self._path}. Lower train.learning_rate (it is {self._config.learning_rate:g}), or "
            "set train.bad_steps=skip, and start again: the last checkpoint is intact"
        )

    def _list(self, step: int, loss: Tensor, norm: float, outcome: str) -> None:
        """Append the samples that this rank had at a step."""
        keys = [row.key for row in self._stream.rows(step)]
        line = {"step": step + 1, "rank": self._rank, "loss": float(loss), "gradient_norm": norm, "outcome": outcome}
        with self._path.open("a", encoding="utf-8") as file:  # one short write: lines of several ranks stay whole
            file.write(json.dumps(line | {"keys": keys}) + "\n")
