"""How ranks come to one mind: a value of rank 0 for all, a value of each for all, flags that any may raise.

A decision that one rank takes alone leaves the others waiting in a collective, so whatever depends on a
clock, a file or an error of one process goes through here before anybody acts on it.
"""

from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

COLLECTIVE_TIMEOUT = timedelta(seconds=300)  # of every group: until then the others wait for a rank that hangs
T = TypeVar("T")


def from_rank_zero(value: T) -> T:
    """Rank 0's value, on every rank; called by all."""
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def from_every_rank(value: T) -> list[T]:
    """Every rank's value in the order of ranks; called by all."""
    values: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return [value for value in values if value is not None]


class Flags:
    """Booleans that hold for all as soon as one rank raises them."""

    def __init__(self) -> None:
        # Over gloo even where gradients go over NCCL: reading the answer must not wait for the GPU.
        gloo = dist.get_backend() == "gloo"
        self._group = None if gloo else dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)

    def any_rank(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag, whether any rank raised it; called by all."""
        raised = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(raised, dist.ReduceOp.MAX, group=self._group)
        return tuple(bool(flag) for flag in raised.tolist())
