"""Dynamic loss scaling, which float16 needs: its smallest number is 6e-8, and gradients lie below (arXiv 1710.03740).

The loss is multiplied by a scale before backward and the gradient divided by it after. A gradient that is not finite
then says that the scale was too great: the step is left out, and the scale goes down. DeepSpeed's scaler decides when.
"""

import importlib
from typing import Any

from data.records import Record
from pipeline.engine.config import SMALLEST_SCALE, LossScaling


class LossScalerState(Record):
    """What the next scale depends on."""

    scale: float
    num_steps: int
    last_overflow: int  # the step, from 0; -1: none yet
    hysteresis: int  # overflows left before the scale is halved


class LossScaler:
    """The scale of the next step. Ranks that tell it the same have the same."""

    def __init__(self, scaling: LossScaling) -> None:
        self._scaler: Any = importlib.import_module("deepspeed.runtime.fp16.loss_scaler").DynamicLossScaler(
            init_scale=scaling.initial,
            scale_window=scaling.window,
            min_scale=SMALLEST_SCALE,
            delayed_shift=scaling.hysteresis,
            consecutive_hysteresis=False,
            raise_error_at_min_scale=False,
        )

    @property
    def scale(self) -> float:
        """What to multiply the loss with."""
        return self._scaler.cur_scale

    def update(self, overflow: bool) -> None:
        """A step was made, or left out because of an overflow."""
        self._scaler.update_scale(overflow)

    @property
    def state(self) -> LossScalerState:
        """All of it."""
        scaler = self._scaler
        return LossScalerState(
            scale=scaler.cur_scale,
            num_steps=scaler.cur_iter,
            last_overflow=scaler.last_overflow_iter,
            hysteresis=scaler.cur_hysteresis,
        )

    @state.setter
    def state(self, state: LossScalerState) -> None:
        self._scaler.cur_scale, self._scaler.cur_iter = state.scale, state.num_steps
        self._scaler.last_overflow_iter, self._scaler.cur_hysteresis = state.last_overflow, state.hysteresis
