"""A machine of the cluster that does not see the run's folder: a node of Ray with another file system mounted there."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from launch.config import ClusterConfig
from pipeline.distributed.config import WorkersConfig
from testing.paths import ROOT
from testing.processes import children_of, kill_all

MOUNTED = 'mount -t tmpfs none "$1" && shift && exec "$@"'
can_mount = os.geteuid() == 0 and subprocess.run(["unshare", "--mount", "true"], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not can_mount, reason="mount namespaces are not allowed here")
def test_a_folder_that_a_machine_does_not_see_is_refused_before_any_work(tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    from launch.cluster import ClusterError, check_folder, connected
    from pipeline.distributed.machines import NotSharedError
    from testing.clusters import leave_cluster

    leave_cluster()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    runs, seen = tmp_path / "runs", tmp_path / "seen"
    for folder in (runs, seen):
        folder.mkdir()
    small = ["--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats", "--block"]
    cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, "num_cpus": 1})
    ray = [str(Path(sys.executable).parent / "ray"), "start", f"--address={cluster.address}", *small]
    with (tmp_path / "log").open("w") as log:
        command = ["unshare", "--mount", "sh", "-c", MOUNTED, "sh", str(runs), *ray]
        blind = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with connected(ClusterConfig(address=cluster.address, workers=WorkersConfig(num_workers=1))):
            import ray as connection

            deadline = time.monotonic() + 120
            while sum(node["Alive"] for node in connection.nodes()) < 2:
                assert blind.poll() is None, (tmp_path / "log").read_text(encoding="utf-8")
                assert time.monotonic() < deadline, (tmp_path / "log").read_text(encoding="utf-8")
                time.sleep(0.2)
            check_folder(ClusterConfig(), seen)
            with pytest.raises(NotSharedError, match=rf"^{runs} is not shared: \S+ does not see it\. Set runs_dir to"):
                check_folder(ClusterConfig(), runs)
            check_folder(ClusterConfig(workers=WorkersConfig(cpus_per_worker=2)), runs)  # for which it has no room
            with pytest.raises(ClusterError, match=r"cluster\.shared_folder is false, but .* has to be in a folder"):
                check_folder(ClusterConfig(shared_folder=False), seen)
        assert not list(tmp_path.rglob(".tmp-*"))
    finally:
        processes = children_of(blind.pid)
        blind.kill()
        kill_all(processes)
        psutil.wait_procs(processes, 30)
        cluster.shutdown()
