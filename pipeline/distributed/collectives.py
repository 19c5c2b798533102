"""Collective operations on Python values: rank 0's value on every rank, all values on every rank, flags.

If one rank alone decides to leave a loop, the others wait for it in their next collective. A decision that depends on a
clock, a file or an error of one process is therefore first made the same on all ranks with these functions.
"""

from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

COLLECTIVE_TIMEOUT = timedelta(seconds=300)  # of every process group: how long ranks wait for one that hangs
T = TypeVar("T")


def from_rank_zero(value: T) -> T:
    """Rank 0's value, on every rank; called by all ranks. The value is pickled."""
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def from_every_rank(value: T | None) -> list[T]:
    """Every rank's value in the order of ranks, without those that are None; called by all ranks."""
    values: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return [value for value in values if value is not None]


def mean_over_ranks(x: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor that every rank has; called by all ranks. It may be changed in place."""
    dist.all_reduce(x)
    return x.div_(dist.get_world_size())


class Flags:
    """Booleans that are true on all ranks as soon as one rank sets them."""

    def __init__(self) -> None:
        # Over gloo even if gradients use NCCL: reading the result must not wait for the GPU.
        gloo = dist.get_backend() == "gloo"
        self._group = None if gloo else dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)

    def any_rank(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether any rank passed true; called by all ranks."""
        raised = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(raised, dist.ReduceOp.MAX, group=self._group)
        return tuple(bool(flag) for flag in raised.tolist())
