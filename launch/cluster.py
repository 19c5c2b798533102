"""The only place that starts or joins a Ray cluster."""

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray

from data.errors import ReelflowError, first_line
from launch.abandoned import end_abandoned_clusters, record_cluster
from launch.config import ClusterConfig
from pipeline.distributed.machines import check_shared, other_machines

PROJECT_DIR = Path(__file__).resolve().parent.parent
HEALTH_CHECK_SECONDS = "0.5"
"""How often Ray Train looks after its workers."""
ELASTIC_START_SECONDS = "25"
"""How long an elastic training waits for all of its workers before it starts with fewer. Ray Train counts a host for up
to 20 s after it was lost, and its own patience is 60 s.
"""
QUIET: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": False}
"""Arguments of `ray.init` that keep Ray's own messages off the console."""


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
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": HEALTH_CHECK_SECONDS,
        "TOKENIZERS_PARALLELISM": "false",
    }
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        environment["DS_ACCELERATOR"] = "cpu"
    return environment


def train_environment(config: ClusterConfig) -> dict[str, str]:
    """Variables that Ray Train reads in the command, and hands on to its own processes."""
    environment = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": HEALTH_CHECK_SECONDS,
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        # It tells training functions that ask for it that their node is to be drained. Ours do not, and start sooner.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    }
    if config.workers.min_workers is not None:
        environment["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = ELASTIC_START_SECONDS
    return environment


@contextmanager
def connected(config: ClusterConfig) -> Iterator[None]:
    """Join the configured cluster, or start one for as long as the block runs.

    A program that has connected to Ray before keeps its connection, and its workers their environment.

    Raises:
        ClusterError: no cluster answers at the address, the program is connected to another one, or the cluster lacks
            what the workers ask for.
    """
    address = config.address or os.environ.get("RAY_ADDRESS")
    if ray.is_initialized():
        _check_address(address)
        _check_resources(config)
        yield
        return
    for name, value in train_environment(config).items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        with _joined(address, config) if address else _started(config):
            _check_resources(config)
            yield
    finally:
        ray.shutdown()


def check_folder(config: ClusterConfig, folder: Path) -> None:
    """Refuse a connected cluster whose machines do not share a folder that a command works in.

    Raises:
        ClusterError: the configuration says that they share none.
        NotSharedError: as `check_shared`.
    """
    if not config.shared_folder and other_machines(config.workers):
        raise ClusterError(
            f"cluster.shared_folder is false, but {folder} has to be in a folder that all machines share: give "
            "--output the URI of a folder in a store, as s3://bucket/clips; or leave cluster.address out, to use this "
            "machine alone"
        )
    check_shared(folder, config.workers)


@contextmanager
def _joined(address: str, config: ClusterConfig) -> Iterator[None]:
    """Join the cluster at `address`."""
    environment = worker_environment(config.workers.cpus_per_worker)
    try:
        ray.init(address=address, runtime_env={"env_vars": environment}, **QUIET)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ClusterError(
            f"no Ray cluster answers at {address}: {error}; start one with `ray start --head`, "
            "or leave cluster.address out to run on this machine"
        ) from error
    yield


@contextmanager
def _started(config: ClusterConfig) -> Iterator[None]:
    """Start a cluster on this machine, after what is left of those whose command was killed has been ended."""
    end_abandoned_clusters()
    environment = worker_environment(config.workers.cpus_per_worker)
    environment["PYTHONPATH"] = os.pathsep.join([str(PROJECT_DIR), os.environ.get("PYTHONPATH", "")])
    needed = config.workers.num_workers * config.workers.cpus_per_worker
    this = psutil.Process()
    before = set(this.children())
    try:
        with _exported(environment):  # what Ray starts here inherits it; workers with a runtime environment start later
            ray.init(
                address="local",
                num_cpus=max(needed, os.cpu_count() or 1),
                include_dashboard=False,
                object_store_memory=config.object_store_mib * 2**20,
                **QUIET,
            )
    except Exception as error:  # Ray raises all kinds, Exception itself among them
        raise ClusterError(
            f"Ray did not start on this machine ({first_line(error)}); is it very busy, or short of memory, or is "
            f"{tempfile.gettempdir()} full? Ray's own logs are in {tempfile.gettempdir()}/ray/session_latest/logs. "
            "Start the command again, which continues"
        ) from error
    record = record_cluster([child for child in this.children() if child not in before])
    try:
        yield
    finally:
        ray.shutdown()
        if record is not None:
            record.unlink(missing_ok=True)


@contextmanager
def _exported(environment: Mapping[str, str]) -> Iterator[None]:
    """Variables of this process's environment while the block runs."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:  # what Ray itself has set stays
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _check_address(address: str | None) -> None:
    joined = ray.get_runtime_context().gcs_address
    if address not in (None, "auto", "local", joined):
        raise ClusterError(
            f"this program is connected to the Ray cluster at {joined}, not to {address}: call ray.shutdown() first, "
            "or leave cluster.address out"
        )


def _check_resources(config: ClusterConfig) -> None:
    workers, there = config.workers, ray.cluster_resources()
    for resource, each in (("CPU", workers.cpus_per_worker), ("GPU", workers.gpus_per_worker)):
        if there.get(resource, 0) < workers.num_required * each:
            field = "num_workers" if workers.min_workers is None else "min_workers"
            raise ClusterError(
                f"{workers.num_required} workers with {each:g} {resource} each need {workers.num_required * each:g}, "
                f"but the cluster has {there.get(resource, 0):g}; lower cluster.workers.{field} or add nodes"
            )
