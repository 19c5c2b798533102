"""Connecting to Ray, and programs that are connected already."""

import os
import subprocess
import sys

import pytest
import ray

from launch.cluster import ClusterError, connected
from launch.config import ClusterConfig
from testing.paths import ROOT


def test_a_connected_program_keeps_its_connection(cluster):
    joined = ray.get_runtime_context().gcs_address
    for address in (None, joined):
        with connected(ClusterConfig(address=address)):
            assert ray.get_runtime_context().gcs_address == joined
        assert ray.is_initialized()


def test_a_program_that_is_connected_elsewhere_is_told(cluster):
    joined = ray.get_runtime_context().gcs_address
    with (
        pytest.raises(
            ClusterError, match=rf"connected to the Ray cluster at {joined}, not to 127\.0\.0\.1:1: call ray"
        ),
        connected(ClusterConfig(address="127.0.0.1:1")),
    ):
        pass
    assert ray.is_initialized()


STARTED = """
from launch.cluster import ClusterError, connected
from launch.config import ClusterConfig
try:
    with connected(ClusterConfig(object_store_mib=128)):
        print("connected")
except ClusterError as error:
    print(error)
"""


def test_a_cluster_that_does_not_start_is_told_in_one_message(tmp_path):
    """Ray's sockets have no room for the name of this temporary folder, so Ray does not start."""
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", STARTED],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(folder)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("Ray did not start on this machine (")
    assert f"Ray's own logs are in {folder}/ray/session_latest/logs. Start the command again" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_workers_inherit_their_environment_and_this_process_keeps_its_own(cluster):
    assert "MALLOC_TRIM_THRESHOLD_" not in os.environ
    there = ray.get(ray.remote(lambda: dict(os.environ)).options(num_cpus=0).remote())
    assert there["MALLOC_TRIM_THRESHOLD_"] == str(2**30)
    assert there["OMP_NUM_THREADS"] == "1"
