"""A worker process of a process group."""

import sys
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Worker:
    """The rank of this process among the workers, and the device it computes on."""

    rank: int
    world_size: int
    device: torch.device
    local_rank: int = 0
    """Among the workers on its machine."""


def leave_process_group() -> None:
    """Destroy the process group, also inside DeepSpeed, so that this process can join another one."""
    deepspeed = sys.modules.get("deepspeed")
    if deepspeed is not None and deepspeed.comm.is_initialized():
        deepspeed.comm.destroy_process_group()
    else:
        dist.destroy_process_group()
