"""Whether a step may update the weights: the norm of its gradient, the scale of its loss, and the counts of both."""

import math

from torch import Tensor

from pipeline.engine.config import SMALLEST_SCALE
from pipeline.engine.loss_scale import LossScaler


class UpdateGuard:
    """Decides whether a step updates the weights, and counts the steps that do not.

    A step is skipped if its gradient is not finite or longer than `max_norm`; with None nothing is skipped. A step
    overflows if there is a `loss_scaler`, its gradient is not finite, and a smaller scale is left.
    """

    def __init__(self, max_norm: float | None, loss_scaler: LossScaler | None) -> None:
        self.max_norm = max_norm
        self.loss_scaler = loss_scaler
        self.num_skipped = 0
        self.num_overflows = 0
        self.overflowed = False  # the last step
        self.norm: float | Tensor = float("nan")
        """Norm of the last step's gradient before clipping, over all ranks; a tensor if it was not yet needed."""

    @property
    def scale(self) -> float:
        """Factor of the loss in the next step."""
        return 1.0 if self.loss_scaler is None else self.loss_scaler.scale

    @property
    def skipped(self) -> bool:
        """Whether the last step made no update because of `max_norm`."""
        return not self.overflowed and not self._within_limit()

    def gradient_norm(self) -> float:
        """`norm` as a number; waits for the GPU where it is a tensor there."""
        return float(self.norm)

    def num_updates(self, num_steps: int) -> int:
        """Number of updates among the first `num_steps` steps."""
        return num_steps - self.num_skipped - self.num_overflows

    def allows_update(self) -> bool:
        """Whether the gradient of this `norm` may update the weights."""
        return self._within_limit() and (self.loss_scaler is None or math.isfinite(self.norm))

    def finish_step(self, scale: float) -> None:
        """Count a step whose loss was multiplied by `scale` if it made no update, and move the scale."""
        if self.loss_scaler is not None:
            finite = math.isfinite(self.norm) and self.norm >= 0  # DeepSpeed marks an invalid norm with -1
            self.overflowed = not finite and scale > SMALLEST_SCALE
            self.num_overflows += self.overflowed
            self.loss_scaler.update(not finite)
        self.num_skipped += self.skipped

    def _within_limit(self) -> bool:
        return self.max_norm is None or (math.isfinite(self.norm) and bool(self.norm <= self.max_norm))
