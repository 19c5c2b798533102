"""Training in this process alone, or as one of the processes that torchrun started."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from pipeline.distributed.collectives import COLLECTIVE_TIMEOUT, from_rank_zero
from pipeline.distributed.process_group import Worker, leave_process_group
from pipeline.run.precision import prepare_to_compute


def train_here(function: Callable[[Worker], None], num_threads: int) -> None:
    """Run `function` in this process: one worker alone, or one of several started by torchrun."""
    with local_worker(num_threads) as worker:
        function(worker)


@contextmanager
def local_worker(num_threads: int) -> Iterator[Worker]:
    """This process as a worker while the block runs, alone or as one of several started by torchrun."""
    rank, world_size = torchrun_rank(), int(os.environ.get("WORLD_SIZE", "1"))
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed requires it
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    prepare_to_compute(device, num_threads)
    backend = "nccl" if cuda else "gloo"
    if "MASTER_ADDR" in os.environ:
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    else:
        store = dist.HashStore()
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=COLLECTIVE_TIMEOUT)
    try:
        yield Worker(rank, world_size, device)
    finally:
        leave_process_group()


@contextmanager
def starting_together(worker: Worker) -> Iterator[Callable[[Callable[[Worker], None]], None]]:
    """Yield a function that runs its argument on this worker once rank 0 has called it too, or not at all.

    Before that call rank 0 can prepare what the others read. If rank 0 leaves the block without the call, because there
    is nothing to do or because of an error, the others return without running their argument.
    """
    begun = False

    def start(function: Callable[[Worker], None]) -> None:
        nonlocal begun
        begun = True
        if from_rank_zero(True):
            function(worker)

    try:
        yield start
    finally:
        if worker.rank == 0 and not begun:
            from_rank_zero(False)


def torchrun_rank() -> int:
    """Rank of this process under torchrun, otherwise 0."""
    return int(os.environ.get("RANK", "0"))
