"""One process of a group, and its end."""

import sys
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Worker:
    """Who this process is among the workers, and where it computes."""

    rank: int
    world_size: int
    device: torch.device


def leave_process_group() -> None:
    """Destroy the process group, and DeepSpeed's memory of it, so that another may follow in this process."""
    deepspeed = sys.modules.get("deepspeed")
    if deepspeed is not None and deepspeed.comm.is_initialized():
        deepspeed.comm.destroy_process_group()
    else:
        dist.destroy_process_group()
