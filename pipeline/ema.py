"""Exponential moving average of the weights, in float32 from the master weights, cut like them."""

import torch
from torch import Tensor

from pipeline.zero import Fragment


def ema_decay(decay: float, num_steps: int) -> float:
    """The decay at a step: small at first, so that the random start is forgotten, then `decay`."""
    return min(decay, (1 + num_steps) / (10 + num_steps))


class ShardedEma:
    """This rank's part of the average: one tensor per fragment."""

    def __init__(self, fragments: list[Fragment], decay: float) -> None:
        self._fragments = fragments
        self._decay = decay
        self.values: dict[str, Tensor] = {fragment.name: fragment.master.clone() for fragment in fragments}

    @torch.no_grad()
    def update(self, num_steps: int) -> None:
        """Move towards the weights after step number `num_steps`: ema += (1 - decay) (weight - ema)."""
        weight = 1 - ema_decay(self._decay, num_steps)
        for fragment in self._fragments:
            self.values[fragment.name].lerp_(fragment.master, weight)
