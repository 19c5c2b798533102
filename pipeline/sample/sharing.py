"""Processes of one machine that share the tokens of each clip (`sample.sequence_parallel`).

It is for clips that one GPU is too small or too slow for. All of them load the network and compute the same batches;
around self-attention they exchange tokens for heads (`pipeline.engine.sequence_parallel`). The process that starts the
others sends them its batches, and alone writes clips. Each has a GPU of its own, or computes on the CPU.
"""

import multiprocessing
import os
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from threading import Event, Thread

import torch
import torch.distributed as dist

from data.errors import ReelflowError
from pipeline.checkpoint.record import CheckpointError
from pipeline.distributed.collectives import COLLECTIVE_TIMEOUT
from pipeline.run.precision import prepare_to_compute
from pipeline.sample.config import SampleConfig
from pipeline.sample.model import SampledModel, open_model
from pipeline.sample.requests import PromptRequest
from pipeline.sample.samplers import Samplers

LOOK_SECONDS = 1.0  # after an error, for a process that was killed to be seen as ended
GRACE_SECONDS = 20.0
"""After the end of another process, until this one ends too: an error that all of them meet is raised before that."""


class LostProcessError(ReelflowError, RuntimeError):
    """A process that shared the clips was killed; the batch can be made again."""


class Sharing:
    """The other processes, as the first one sees them. It joins their process group, so there is one at a time.

    Raises:
        CheckpointError: there are fewer GPUs than processes.
    """

    def __init__(self, model: SampledModel, config: SampleConfig, device: torch.device, num_threads: int) -> None:
        size = config.sequence_parallel
        if device.type == "cuda" and (num_gpus := torch.cuda.device_count()) < size:
            raise CheckpointError(
                f"sample.sequence_parallel is {size}, but this process has {num_gpus} GPUs: set "
                "cluster.workers.gpus_per_worker=1, which gives it one for each, or lower sample.sequence_parallel"
            )
        self._folder = tempfile.TemporaryDirectory(prefix="reelflow-sharing-")
        self._closing = Event()
        context = multiprocessing.get_context("spawn")
        self._processes, self._batches = list[SpawnProcess](), list[Connection]()
        for rank in range(1, size):
            theirs, ours = context.Pipe(duplex=False)
            arguments = (rank, self._folder.name, theirs, model.folder, config, device.type, num_threads)
            process = context.Process(target=_follow, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._batches.append(ours)
        Thread(target=self._watch, daemon=True).start()
        _join(0, size, Path(self._folder.name), device)

    def send(self, requests: Sequence[PromptRequest]) -> None:
        """Let the others make a batch, as this process does now."""
        for batches in self._batches:
            batches.send(list(requests))

    def check_alive(self) -> None:
        """After an error: whether it came from a process that was killed, often for want of memory.

        Raises:
            LostProcessError: it did.
        """
        if (signal := killed_by(self._processes)) is not None:
            raise LostProcessError(
                f"a process that shared the clips was ended by signal {signal}; if memory ran out, lower "
                "sample.sequence_parallel or ask for a smaller bucket, or make the clip again"
            )

    def close(self) -> None:
        """End the others, and leave their process group."""
        self._closing.set()
        for process in self._processes:
            process.kill()
            process.join()
        for batches in self._batches:
            batches.close()
        dist.destroy_process_group()
        self._folder.cleanup()

    def _watch(self) -> None:
        """End this process some time after another one has ended: it may wait for it for ever."""
        wait([process.sentinel for process in self._processes])
        if not self._closing.wait(GRACE_SECONDS):
            os._exit(1)


def killed_by(processes: Sequence[SpawnProcess]) -> int | None:
    """The signal that ended one of the processes within `LOOK_SECONDS`, if one did."""
    ended = wait([process.sentinel for process in processes], timeout=LOOK_SECONDS)
    for process in processes:
        if process.sentinel in ended:
            process.join()  # its files are closed, which the sentinel tells, a moment before its end can be seen
    return next((-code for code in (process.exitcode or 0 for process in processes) if code < 0), None)


def _join(rank: int, size: int, folder: Path, device: torch.device) -> None:
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed requires it
    store = dist.FileStore(str(folder / "store"), size)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=COLLECTIVE_TIMEOUT)


def _follow(
    rank: int,
    folder: str,
    batches: Connection,
    model_folder: Path,
    config: SampleConfig,
    kind: str,
    num_threads: int,
) -> None:
    """Compute what the first process computes, until it ends."""
    Thread(target=_end_with_parent, daemon=True).start()
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    prepare_to_compute(device, num_threads)
    _join(rank, config.sequence_parallel, Path(folder), device)
    samplers = Samplers(open_model(model_folder, verify=False), config, device, rank)
    while True:
        try:
            requests = batches.recv()
        except EOFError:
            return
        sampler = samplers.of(requests[0])
        for group in sampler.groups(requests):
            for _ in sampler.stream_group(group):
                pass


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
