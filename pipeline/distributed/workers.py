"""Run one training function on N workers: under Ray Train, or right here as a plain process.

Either way the function finds an initialised torch.distributed process group and its `Worker` record.
"""

import signal
import threading
import uuid
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data.errors import ReelflowError
from data.files.publish import publish_text
from pipeline.distributed.collectives import COLLECTIVE_TIMEOUT, from_rank_zero
from pipeline.distributed.config import WorkersConfig, taking_part
from pipeline.distributed.process_group import Worker


class TrainingError(ReelflowError, RuntimeError):
    """A training ended for a reason that starting its workers again would not mend; the message says which."""


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
        TrainingError: the function raised an error that is not retryable, on every worker; nothing was started again.
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
        except ReelflowError as error:
            if error.retryable:
                raise
            # Raised by every rank at the same step: each returns, which Ray does not count as a failure to retry.
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
