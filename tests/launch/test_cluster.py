"""Connecting to Ray, and programs that are connected already."""

import contextlib
import http.client
import os
import subprocess
import sys

import grpc
import psutil
import pytest
import ray

from launch.abandoned import ClusterRecord, records_dir
from launch.cluster import ClusterError, connected, train_environment
from launch.config import ClusterConfig
from pipeline.distributed.config import WorkersConfig
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


def test_ray_train_is_told_how_long_an_elastic_group_waits():
    """Longer than Ray Train counts a lost host, and less than its own patience."""
    from ray.train.v2._internal import constants
    from ray.train.v2._internal.execution.scaling_policy import autoscaling_coordinator_client

    fixed, elastic = (
        train_environment(ClusterConfig(workers=WorkersConfig(num_workers=2, min_workers=fewest)))
        for fewest in (None, 1)
    )
    name = constants.WORKER_GROUP_START_TIMEOUT_S_ENV_VAR
    assert elastic == fixed | {name: "25"}
    assert set(elastic) <= constants.ENV_VARS_TO_PROPAGATE
    counted = autoscaling_coordinator_client.AUTOSCALING_REQUESTS_INTERVAL_S
    assert counted < float(elastic[name]) < constants.DEFAULT_WORKER_GROUP_START_TIMEOUT_S


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


CALLS = (  # one of each of Ray's services
    "NodeInfoGcsService/GetAllNodeInfo",
    "NodeManagerService/RequestWorkerLease",
    "ObjectManagerService/Pull",
    "CoreWorkerService/PushTask",
    "ReporterService/GetTraceback",
)


def open_ports() -> dict[tuple[str, int], psutil.Process]:
    """Where the processes of the cluster that this process has started listen.

    This process is not among them: other tests may have left ports of torch.distributed open in it.
    """
    record = ClusterRecord.model_validate_json((records_dir() / f"{os.getpid()}.json").read_bytes())
    started = [found for process in record.processes if (found := process.find()) is not None]
    ports = {}
    for process in [*started, *(child for each in started for child in each.children(recursive=True))]:
        with contextlib.suppress(psutil.NoSuchProcess):
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    every = connection.laddr.ip in ("::", "0.0.0.0")
                    ports["127.0.0.1" if every else connection.laddr.ip, connection.laddr.port] = process
    return ports


def answer_without_token(host: str, port: int) -> str:
    """What a port says to one who has no token: what refuses him, or what it shows."""
    page = http.client.HTTPConnection(host, port, timeout=20)
    try:
        page.request("GET", "/")
        response = page.getresponse()
    except http.client.BadStatusLine:  # it speaks HTTP/2: gRPC
        with grpc.insecure_channel(f"{host}:{port}") as channel:
            codes = set()
            for call in CALLS:
                with pytest.raises(grpc.RpcError) as caught:
                    channel.unary_unary(f"/ray.rpc.{call}")(b"", timeout=20)
                codes.add(caught.value.code().name)
            return " ".join(codes - {"UNIMPLEMENTED"})
    except TimeoutError:
        return "nothing"
    finally:
        page.close()
    text = response.read().decode()
    return "metrics" if response.status == 200 and text.startswith("# HELP ") else str(response.status)


def test_every_port_of_a_cluster_that_a_run_starts_asks_for_a_token(cluster):
    """But for the counters that are shown to Prometheus."""
    ray.get(ray.remote(lambda: None).options(num_cpus=0).remote())  # a worker is there
    said: dict[str, list[str]] = {}
    for (host, port), process in open_ports().items():
        with contextlib.suppress(ConnectionRefusedError, psutil.NoSuchProcess):  # an idle worker that has just ended
            said.setdefault(answer_without_token(host, port), []).append(process.name())
    assert set(said) - {"metrics"} == {"UNAUTHENTICATED", "401"}, said
    assert {"gcs_server", "raylet"} <= set(said["UNAUTHENTICATED"])
    assert sum(name.startswith("ray::") for name in said["UNAUTHENTICATED"]) >= 2  # a worker and the agent
    assert not {"gcs_server", "raylet"} & set(said.get("metrics", ()))
