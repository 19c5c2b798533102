"""One local Ray cluster for all tests of a process."""

import atexit
import os
from contextlib import ExitStack

import ray

from launch.cluster import connected
from launch.config import ClusterConfig

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
