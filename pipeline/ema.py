"""Exponential moving average of the weights, in float32 from the master weights, cut like them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.zero import Fragment, ZeroTrainer


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


@contextmanager
def averaged_weights(trainer: ZeroTrainer, ema: ShardedEma) -> Iterator[None]:
    """While the block runs, the module computes with the averaged weights; entered and left by all ranks.

    The master weights wait in host memory and come back bit for bit, after an error of every rank too. One parameter
    at a time is whole at most, and at stage 0 alone, where ranks hold everything but average only their shares.
    """
    kept = [held.master.to("cpu", copy=True) for held in trainer.holdings]
    try:
        for held in trainer.holdings:
            held.master.copy_(_average(held, trainer, ema))
        trainer.publish_master()
        yield
    finally:
        for held, master in zip(trainer.holdings, kept, strict=True):
            held.master.copy_(master)
        trainer.publish_master()


def _average(held: Fragment, trainer: ZeroTrainer, ema: ShardedEma) -> Tensor:
    """The average of the values that this rank holds; called by all."""
    if trainer.stage > 0:
        return ema.values[held.name]
    num_values = held.master.numel()
    own = held.master.new_zeros(-(-num_values // trainer.world_size))  # as `share` cuts it, the last one padded
    if (average := ema.values.get(held.name)) is not None:
        own[: average.numel()] = average
    everyone = own.new_empty(own.numel() * trainer.world_size)
    dist.all_gather_into_tensor(everyone, own)
    return everyone[:num_values]
