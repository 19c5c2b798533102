"""The only place that starts or joins a Ray cluster."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from data.errors import ReelflowError
from launch.config import ClusterConfig

PROJECT_DIR = Path(__file__).resolve().parent.parent


class ClusterError(ReelflowError, RuntimeError):
    """The cluster cannot be reached or is too small; the message says what is missing."""


def worker_environment(threads: int) -> dict[str, str]:
    """Environment of every worker: one set of threads each, and threads that sleep while they wait."""
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads starve the other workers of a small machine
        # Freed activations go back to malloc, not to the kernel: otherwise every step faults its pages in again.
        "MALLOC_MMAP_THRESHOLD_": str(2**30),
        "MALLOC_TRIM_THRESHOLD_": str(2**30),
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        environment["DS_ACCELERATOR"] = "cpu"
    return environment


@contextmanager
def connected(config: ClusterConfig) -> Iterator[None]:
    """Join the configured cluster, or start one for as long as the block runs.

    Raises:
        ClusterError: no cluster answers at the address, or it lacks what the workers ask for.
    """
    environment = worker_environment(config.workers.cpus_per_worker)
    address = config.address or os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", environment["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"])
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    # It tells training functions that ask for it that their node is to be drained. Ours do not ask, and start sooner.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    common = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": False}
    try:
        if address:
            ray.init(address=address, runtime_env={"env_vars": environment}, **common)
        else:
            needed = config.workers.num_workers * config.workers.cpus_per_worker
            environment["PYTHONPATH"] = os.pathsep.join([str(PROJECT_DIR), os.environ.get("PYTHONPATH", "")])
            ray.init(
                address="local",
                num_cpus=max(needed, os.cpu_count() or 1),
                include_dashboard=False,
                object_store_memory=config.object_store_mib * 2**20,
                runtime_env={"env_vars": environment},
                **common,
            )
    except (ConnectionError, ValueError) as error:
        raise ClusterError(
            f"no Ray cluster answers at {address}: {error}; start one with `ray start --head`, "
            "or leave cluster.address out to run on this machine"
        ) from error
    try:
        _check_resources(config)
        yield
    finally:
        ray.shutdown()


def _check_resources(config: ClusterConfig) -> None:
    workers, there = config.workers, ray.cluster_resources()
    for resource, each in (("CPU", workers.cpus_per_worker), ("GPU", workers.gpus_per_worker)):
        if there.get(resource, 0) < workers.num_required * each:
            field = "num_workers" if workers.min_workers is None else "min_workers"
            raise ClusterError(
                f"{workers.num_required} workers with {each:g} {resource} each need {workers.num_required * each:g}, "
                f"but the cluster has {there.get(resource, 0):g}; lower cluster.workers.{field} or add nodes"
            )
