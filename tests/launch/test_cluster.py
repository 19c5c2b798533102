"""Connecting to Ray, and programs that are connected already."""

import os

import pytest
import ray

from launch.cluster import ClusterError, connected
from launch.config import ClusterConfig


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


def test_workers_inherit_their_environment_and_this_process_keeps_its_own(cluster):
    assert "MALLOC_TRIM_THRESHOLD_" not in os.environ
    there = ray.get(ray.remote(lambda: dict(os.environ)).options(num_cpus=0).remote())
    assert there["MALLOC_TRIM_THRESHOLD_"] == str(2**30)
    assert there["OMP_NUM_THREADS"] == "1"
