"""Dynamic loss scaling for float16, whose smallest positive number is 6e-8 (Micikevicius et al., arXiv 1710.03740).

The loss is multiplied by a scale before the backward pass and the gradient is divided by it after, so that small
gradients do not become 0. A gradient that is not finite means that the scale was too large: the step makes no update
and the scale is lowered. The rule is that of DeepSpeed's `DynamicLossScaler`.
"""

from data.records import Record
from pipeline.engine.config import SMALLEST_SCALE, LossScaling


class LossScalerState(Record):
    """What the next scale depends on."""

    scale: float
    num_steps: int
    last_overflow: int  # the step, from 0; -1: none yet
    hysteresis: int  # overflows left before the scale is halved


class LossScaler:
    """The scale of the next step; the same on all ranks, because all pass the same values to `update`."""

    def __init__(self, scaling: LossScaling) -> None:
        self._scaling = scaling
        self.state = LossScalerState(
            scale=scaling.initial, num_steps=0, last_overflow=-1, hysteresis=scaling.hysteresis
        )

    @property
    def scale(self) -> float:
        """Factor of the loss, at least `SMALLEST_SCALE`."""
        return self.state.scale

    def update(self, overflow: bool) -> None:
        """Move the scale after a step; `overflow` says that its gradient was not finite."""
        self.state = next_state(self.state, self._scaling, overflow=overflow)


def next_state(state: LossScalerState, scaling: LossScaling, *, overflow: bool) -> LossScalerState:
    """Halve the scale once `hysteresis` overflows have happened; double it after `window` steps without overflow."""
    scale, last_overflow, hysteresis = state.scale, state.last_overflow, state.hysteresis
    if overflow:
        if scaling.hysteresis == 1 or hysteresis == 1:
            scale = max(scale / 2, SMALLEST_SCALE)
        else:
            hysteresis -= 1
        last_overflow = state.num_steps
    elif (num_good := state.num_steps - last_overflow - 1) > 0 and num_good % scaling.window == 0:
        scale, hysteresis = scale * 2, scaling.hysteresis
    return LossScalerState(
        scale=scale, num_steps=state.num_steps + 1, last_overflow=last_overflow, hysteresis=hysteresis
    )
