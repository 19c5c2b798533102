"""Ray clusters on this machine: one for all tests of a process, and one with a dashboard, which jobs go to."""

import atexit
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import ray

from launch.cluster import connected
from launch.config import ClusterConfig
from testing.processes import children_of, free_port, kill_all

SECRET = "no-file-may-hold-this-86a1f0"
"""Of a store, as far as the processes of the cluster know: it is in their environment and in that of the commands."""
_open = ExitStack()
atexit.register(_open.close)


def share_cluster() -> None:
    """Connect this process to a local cluster with two workers, the default of every run, if it is not connected."""
    if not ray.is_initialized():
        os.environ["REELFLOW_TEST_STORE_KEY"] = SECRET
        _open.enter_context(connected(ClusterConfig(object_store_mib=128)))


def leave_cluster() -> None:
    """Disconnect, for a test that needs a cluster of its own; the next `share_cluster` starts another."""
    _open.close()


@contextmanager
def ray_head(python: str, environment: Mapping[str, str], num_cpus: int = 2) -> Iterator[str]:
    """The dashboard's address of a cluster of one node, as `ray start --head` makes it.

    Args:
        python: of the environment that Ray runs in.
        environment: variables of its processes, beside those of this one.
    """
    port, dashboard, agent = free_port(), free_port(), free_port()
    path = f"{Path(python).parent}:{os.environ['PATH']}"
    command = [python, "-c", "from ray.scripts.scripts import main; main()", "start", "--head", "--block"]
    command += [f"--port={port}", f"--dashboard-port={dashboard}", f"--num-cpus={num_cpus}"]
    # Other clusters of this machine, and for a minute those that were killed, hold the port that is the default.
    command += [f"--dashboard-agent-listen-port={agent}", "--include-dashboard=true", "--disable-usage-stats"]
    command += ["--object-store-memory=134217728"]
    with (
        tempfile.TemporaryDirectory(prefix="ray-") as folder,  # a short name: a socket's path has 107 bytes
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(
            [*command, f"--temp-dir={folder}"],
            env=os.environ | {"PATH": path} | dict(environment),
            stdout=said,
            stderr=said,
        ) as head,
    ):

        def log() -> str:
            return os.pread(said.fileno(), 2**20, 0).decode()

        try:
            deadline = time.monotonic() + 400
            while "Ray runtime started" not in log():
                assert head.poll() is None, log()
                assert time.monotonic() < deadline, log()
                time.sleep(0.2)
            yield f"http://127.0.0.1:{dashboard}"
        finally:  # `ray stop` would end clusters of others; asked to end, it may wait for the workers of stopped jobs
            processes = children_of(head.pid)
            head.kill()
            kill_all(processes)
            psutil.wait_procs(processes, 30)
