"""Run one training function on the workers of a Ray Train group.

The function finds an initialised torch.distributed process group and gets its `Worker` record, as under `torchrun.py`.
"""

import signal
import threading
import uuid
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from data.errors import ReelflowError
from data.files.publish import publish_text
from pipeline.distributed.collectives import COLLECTIVE_TIMEOUT, from_rank_zero
from pipeline.distributed.config import WorkersConfig, num_participating
from pipeline.distributed.process_group import Worker
from pipeline.run.precision import prepare_to_compute
from pipeline.run.shared_files import SHARED, RunFiles


class TrainingError(ReelflowError, RuntimeError):
    """A training ended for a reason that a restart of its workers would not remove; the message names it."""


def train_on_ray(
    function: Callable[[Worker], None],
    config: WorkersConfig,
    storage_dir: Path,
    fitting: Collection[int] = (),
    files: RunFiles = SHARED,
) -> None:
    """Run `function` on every worker of a Ray Train group; a worker that dies restarts the group.

    With `min_workers` the group is restarted with fewer workers if the cluster has no room for all, and again with more
    once it has.

    Args:
        fitting: used with `min_workers`: numbers of workers that divide every batch evenly, `min_workers` among them.
            In a group of another size the last workers wait.
        files: of the run that `storage_dir` belongs to.

    Raises:
        TrainingError: every worker raised an error that is not retryable; nothing was restarted.
        ray.train.TrainingFailedError: workers raised another error, or died, more than `max_failures` times.
        KeyboardInterrupt: Ctrl-C; the workers have ended.
    """
    from ray.train.torch import TorchTrainer

    name = uuid.uuid4().hex[:12]  # of Ray's own files in `storage_dir`; never used twice
    final_error_path = storage_dir.resolve() / f"{name}.error"
    trainer = TorchTrainer(
        _run_on_worker,
        train_loop_config={
            "function": function,
            "threads": config.cpus_per_worker,
            "final_error_path": final_error_path,
            "files": files,
            "fitting": tuple(fitting) if config.min_workers is not None else (),
        },
        **_group_settings(config, name, storage_dir.resolve()),
    )
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit()
    except SystemExit:  # Ray Train handles SIGINT itself, and exits once the workers have ended
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
        if final_error_path.is_file():
            message = final_error_path.read_text(encoding="utf-8")
            final_error_path.unlink()
            raise TrainingError(message)


def _group_settings(config: WorkersConfig, name: str, storage_dir: Path) -> dict[str, Any]:
    """Settings of Ray Train: backend, resources and restarts."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    gpu = {"GPU": config.gpus_per_worker} if config.gpus_per_worker else {}
    return {
        "torch_config": TorchConfig(
            backend="nccl" if config.gpus_per_worker else "gloo", timeout_s=int(COLLECTIVE_TIMEOUT.total_seconds())
        ),
        "scaling_config": ScalingConfig(
            num_workers=config.num_workers if config.min_workers is None else (config.min_workers, config.num_workers),
            use_gpu=config.gpus_per_worker > 0,
            resources_per_worker={"CPU": config.cpus_per_worker, **gpu},
        ),
        "run_config": RunConfig(
            name=name, storage_path=str(storage_dir), failure_config=FailureConfig(max_failures=config.max_failures)
        ),
    }


def _run_on_worker(settings: dict[str, Any]) -> None:
    """What Ray Train calls on every worker. Ray would retry any error, so one that is not retryable goes to a file."""
    import ray.train
    from ray.train.torch import get_device

    context = ray.train.get_context()
    worker = Worker(context.get_world_rank(), context.get_world_size(), get_device(), context.get_local_rank())
    prepare_to_compute(worker.device, settings["threads"])
    try:
        if settings["fitting"]:
            worker = _join(worker, num_participating(worker.world_size, settings["fitting"]))
        if worker is not None:
            settings["function"](worker)
    except ReelflowError as error:
        if error.retryable:
            raise
        # Every rank raises it at the same step and returns, which Ray does not count as a failure.
        if context.get_world_rank() == 0:
            publish_text(settings["final_error_path"], str(error))
            settings["files"].publish(settings["final_error_path"])


def _join(worker: Worker, world_size: int) -> Worker | None:
    """This worker in a process group of the first `world_size` ones; None if it is not one of them. Called by all."""
    if world_size == worker.world_size:
        return worker
    import ray.util

    backend, timeout = dist.get_backend(), COLLECTIVE_TIMEOUT
    store = None
    if worker.rank == 0:
        store = dist.TCPStore(ray.util.get_node_ip_address(), 0, is_master=True, wait_for_workers=False)
    address = from_rank_zero(None if store is None else (store.host, store.port))
    assert address is not None
    dist.barrier()
    dist.destroy_process_group()
    if worker.rank >= world_size:
        return None
    store = store or dist.TCPStore(*address, is_master=False)
    dist.init_process_group(backend, store=store, rank=worker.rank, world_size=world_size, timeout=timeout)
    return replace(worker, world_size=world_size)
