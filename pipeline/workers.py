"""Run one training function on N workers: under Ray Train, or right here as a plain process.

Either way the function finds an initialised torch.distributed process group and its `Worker` record.
"""

import os
import signal
import threading
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, Field, model_validator

from data.cache import CacheError
from data.publish import publish_text
from pipeline.agree import COLLECTIVE_TIMEOUT, from_rank_zero
from pipeline.checkpoint import CheckpointError
from pipeline.lock import LockedError
from pipeline.lora import LoraError
from pipeline.sequence import SplitError
from pipeline.wandb_run import WandbError
from pipeline.zero import leave_process_group


class WorldSizeError(ValueError):
    """A global batch cannot be shared out evenly; the message names the nearest one that can."""


# What every rank raises at the same step for a reason that a restart would meet again.
FINAL = (
    CacheError,
    CheckpointError,
    FloatingPointError,
    LockedError,
    LoraError,
    SplitError,
    WandbError,
    WorldSizeError,
)


class TrainingError(RuntimeError):
    """A training ended for a reason that starting its workers again would not mend; the message says which."""


class WorkersConfig(BaseModel):
    """How many workers run, and what each may use."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_workers: int = Field(default=2, ge=1)
    min_workers: int | None = Field(default=None, ge=1)  # a training goes on with so few while the cluster has no more
    cpus_per_worker: int = Field(default=1, ge=1)
    gpus_per_worker: float = Field(default=0, ge=0)
    max_failures: int = Field(default=2, ge=0)  # restarts of a training whose worker died

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(
                f"min_workers is {self.min_workers}, but num_workers is {self.num_workers}: use at most that"
            )
        return self

    @property
    def fewest(self) -> int:
        """Workers that a training needs at least."""
        return self.num_workers if self.min_workers is None else self.min_workers

    def startable(self) -> int:
        """Workers that the connected cluster has room for, one at least."""
        import ray

        there = ray.cluster_resources()
        room = [there.get("CPU", 0) // self.cpus_per_worker]
        room += [there.get("GPU", 0) // self.gpus_per_worker] if self.gpus_per_worker else []
        return max(1, min(self.num_workers, *map(int, room)))


@dataclass(frozen=True)
class Worker:
    """Who this process is among the workers, and where it computes."""

    rank: int
    world_size: int
    device: torch.device


def taking_part(num_workers: int, fitting: Collection[int]) -> int:
    """How many of the workers there are take part: the largest number that shares every batch evenly."""
    return max(number for number in fitting if number <= num_workers)


def train_on_ray(
    function: Callable[[Worker], None], config: WorkersConfig, storage_dir: Path, fitting: Collection[int] = ()
) -> None:
    """Run `function` on every worker of a Ray Train group; a worker that dies restarts the group.

    With `min_workers` the group is restarted with fewer where the cluster has no room for all, and again with more
    once it has.

    Args:
        fitting: with `min_workers`, the numbers of workers that share every batch evenly, `min_workers` among them; of
            a group of another size the last ones wait.

    Raises:
        TrainingError: the function raised one of `FINAL`, on every worker; nothing was started again.
        ray.train.TrainingFailedError: it raised something else, or workers died, more than `max_failures` times.
        KeyboardInterrupt: Ctrl-C; the workers have ended.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    def worker_function(settings: dict[str, Any]) -> None:
        import ray.train
        from ray.train.torch import get_device

        context = ray.train.get_context()
        torch.set_num_threads(settings["threads"])
        worker = Worker(context.get_world_rank(), context.get_world_size(), get_device())
        try:
            if settings["fitting"]:
                worker = _join(worker, taking_part(worker.world_size, settings["fitting"]))
            if worker is not None:
                settings["function"](worker)
        except FINAL as error:  # every worker returns, which Ray does not count as a failure to be tried again
            if context.get_world_rank() == 0:
                publish_text(settings["final_error_path"], str(error))

    # Our checkpoints are our own; Ray keeps only its bookkeeping here, under a name that is never used twice.
    name = uuid.uuid4().hex[:12]
    final_error_path = storage_dir.resolve() / f"{name}.error"

    trainer = TorchTrainer(
        worker_function,
        train_loop_config={
            "function": function,
            "threads": config.cpus_per_worker,
            "final_error_path": final_error_path,
            "fitting": tuple(fitting) if config.min_workers is not None else (),
        },
        torch_config=TorchConfig(
            backend="nccl" if config.gpus_per_worker else "gloo", timeout_s=int(COLLECTIVE_TIMEOUT.total_seconds())
        ),
        scaling_config=ScalingConfig(
            num_workers=config.num_workers if config.min_workers is None else (config.min_workers, config.num_workers),
            use_gpu=config.gpus_per_worker > 0,
            resources_per_worker={"CPU": config.cpus_per_worker, **_gpu(config.gpus_per_worker)},
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(storage_dir.resolve()),
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
    )
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit()
    except SystemExit:  # Ray Train takes SIGINT over, and leaves so once it has ended the workers
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
        if final_error_path.is_file():
            message = final_error_path.read_text(encoding="utf-8")
            final_error_path.unlink()
            raise TrainingError(message)


def _join(worker: Worker, world_size: int) -> Worker | None:
    """This worker in a process group of the first `world_size` ones, or None if it is not among them; called by all."""
    if world_size == worker.world_size:
        return worker
    import ray.util

    backend, timeout = dist.get_backend(), COLLECTIVE_TIMEOUT
    store = None
    if worker.rank == 0:
        store = dist.TCPStore(ray.util.get_node_ip_address(), 0, is_master=True, wait_for_workers=False)
    place = from_rank_zero(None if store is None else (store.host, store.port))
    assert place is not None
    dist.barrier()
    dist.destroy_process_group()
    if worker.rank >= world_size:
        return None
    store = store or dist.TCPStore(*place, is_master=False)
    dist.init_process_group(backend, store=store, rank=worker.rank, world_size=world_size, timeout=timeout)
    return Worker(worker.rank, world_size, worker.device)


def _gpu(gpus: float) -> dict[str, float]:
    return {"GPU": gpus} if gpus else {}


def train_here(function: Callable[[Worker], None], num_threads: int) -> None:
    """Run `function` in this process: one worker alone, or one of several started by torchrun."""
    with local_worker(num_threads) as worker:
        function(worker)


@contextmanager
def local_worker(num_threads: int) -> Iterator[Worker]:
    """This process as a worker, alone or one of several started by torchrun, for as long as the block runs."""
    rank, world_size = torchrun_rank(), int(os.environ.get("WORLD_SIZE", "1"))
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    torch.set_num_threads(num_threads)
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
    """Yield what runs a function on this worker once rank 0 runs it, and not at all if rank 0 never comes to that.

    Until then rank 0 may prepare what the others rely on; where it finds nothing to do, or an error, they end too.
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
    """Which of the processes of one start this is: 0 but under torchrun."""
    return int(os.environ.get("RANK", "0"))
