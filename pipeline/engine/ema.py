"""Exponential moving averages of the master weights, in float32, partitioned over the ranks as these are."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.engine.ema_profile import EmaProfile
from pipeline.engine.fragment import Fragment
from pipeline.engine.zero import ZeroTrainer
from pipeline.run.weight_names import FIRST_AVERAGE


class ShardedEma:
    """This rank's part of every average: one tensor per profile and fragment, by profile name and parameter name."""

    def __init__(self, fragments: list[Fragment], profiles: Sequence[EmaProfile]) -> None:
        self._fragments = fragments
        self._profiles = profiles
        self.averages: dict[str, dict[str, Tensor]] = {}
        for profile in profiles:
            self.begin(profile.name)

    def begin(self, name: str) -> None:
        """Set an average to the current weights."""
        self.averages[name] = {fragment.name: fragment.master.clone() for fragment in self._fragments}

    def of(self, which: str = FIRST_AVERAGE) -> dict[str, Tensor]:
        """The average of that name; "ema" is the first one."""
        return self.averages[self._profiles[0].name if which == FIRST_AVERAGE else which]

    @torch.no_grad()
    def update(self, num_updates: int) -> None:
        """Move every average towards the weights after update `num_updates` (from 1)."""
        for profile in self._profiles:
            average, weight = self.averages[profile.name], profile.weight(num_updates)
            for fragment in self._fragments:
                average[fragment.name].lerp_(fragment.master, weight)


@contextmanager
def averaged_weights(trainer: ZeroTrainer, ema: ShardedEma, which: str = FIRST_AVERAGE) -> Iterator[None]:
    """The module computes with averaged weights while the block runs; entered and left by all ranks.

    The master weights are kept in host memory and restored bit for bit, also after an error that every rank raises.
    Averages are gathered at stage 0 only, where ranks hold all weights but average only their shares, and one parameter
    at a time.
    """
    average = ema.of(which)
    kept = [held.master.to("cpu", copy=True) for held in trainer.local_fragments]
    try:
        for held in trainer.local_fragments:
            held.master.copy_(_average(held, trainer, average))
        trainer.publish_master()
        yield
    finally:
        for held, master in zip(trainer.local_fragments, kept, strict=True):
            held.master.copy_(master)
        trainer.publish_master()


def _average(held: Fragment, trainer: ZeroTrainer, average: dict[str, Tensor]) -> Tensor:
    """The average of the values that this rank holds; called by all ranks."""
    if trainer.stage > 0:
        return average[held.name]
    num_values = held.master.numel()
    own = held.master.new_zeros(-(-num_values // trainer.world_size))  # split as by `share`, the last part padded
    if (part := average.get(held.name)) is not None:
        own[: part.numel()] = part
    everyone = own.new_empty(own.numel() * trainer.world_size)
    dist.all_gather_into_tensor(everyone, own)
    return everyone[:num_values]
