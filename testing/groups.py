"""Worker processes over gloo without Ray, started once for many jobs."""

import gc
import multiprocessing
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pipeline.distributed.process_group import Worker, leave_process_group
from pipeline.run.precision import prepare_to_compute
from testing.operations import count_operations_once

IMPORTED_ONCE = ["pipeline.train.loop", "deepspeed", "pandas", "torch._dynamo", "torch.utils.tensorboard"]


class Job(NamedTuple):
    """`function(worker, *arguments)` on each of `world_size` workers."""

    world_size: int
    function: Callable[..., None]
    arguments: tuple[Any, ...]


def run_jobs(jobs: list[Job], folder: Path) -> None:
    """Run the jobs in order of falling world size; processes that a job does not need have ended before it.

    All processes of a group must have run the same jobs: DeepSpeed numbers modules by a counter that it never resets.
    """
    ordered = sorted(jobs, key=lambda job: -job.world_size)
    # Forked from a process that has imported what takes seconds: the result is that of new processes, sooner.
    multiprocessing.set_forkserver_preload(IMPORTED_ONCE)
    mp.start_processes(_member, (ordered, folder), nprocs=ordered[0].world_size, start_method="forkserver")


def _member(rank: int, jobs: list[Job], folder: Path) -> None:
    prepare_to_compute(torch.device("cpu"), 1)
    count_operations_once()
    gc.freeze()  # DeepSpeed collects garbage in every start of ZeRO-3; nothing that was imported is garbage
    warnings.simplefilter("ignore", FutureWarning)  # of torch, about names that DeepSpeed calls
    os.environ["LOCAL_RANK"] = "0"  # DeepSpeed requires it
    for number, job in enumerate(jobs):
        if rank < job.world_size:
            store = dist.FileStore(str(folder / f"store-{number}"), job.world_size)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=job.world_size)
            job.function(Worker(rank, job.world_size, torch.device("cpu")), *job.arguments)
            leave_process_group()
