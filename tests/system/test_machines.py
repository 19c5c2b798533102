"""A machine of the cluster that does not see the runs' folder: a node of Ray with another file system mounted there."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import psutil
import pytest

from launch.config import ClusterConfig
from pipeline.distributed.config import WorkersConfig
from pipeline.run.run_files import CONFIG_NAME
from pipeline.run.stored_run import stored_run
from pipeline.sample.outputs import read_samples
from testing.paths import ROOT
from testing.processes import children_of, kill_all

MOUNTED = 'mount -t tmpfs none "$1" && shift && exec "$@"'
can_mount = os.geteuid() == 0 and subprocess.run(["unshare", "--mount", "true"], check=False).returncode == 0
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_mount, reason="mount namespaces are not allowed here"),
]


@dataclass(frozen=True)
class Machines:
    """Two machines with a processor each: this one, and one that does not see what lies in `runs`."""

    address: str
    runs: Path
    seen: Path


@pytest.fixture(scope="module")
def machines(tmp_path_factory) -> Iterator[Machines]:
    """The two machines, and an S3-compatible store that both reach."""
    from moto.server import ThreadedMotoServer
    from ray.cluster_utils import Cluster

    from testing.clusters import leave_cluster
    from testing.store import forget_clients

    leave_cluster()
    forget_clients()
    folder = tmp_path_factory.mktemp("machines")
    runs, seen = folder / "runs", folder / "seen"
    for each in (runs, seen):
        each.mkdir()
    store = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    store.start()
    _, port = store.get_host_and_port()
    environment = {
        "PYTHONPATH": str(ROOT),
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
        "XDG_CACHE_HOME": str(runs / "cache"),
    }
    with pytest.MonkeyPatch.context() as patch, (folder / "log").open("w") as log:
        for name, value in environment.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="shared")
        small = ["--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats", "--block"]
        cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, "num_cpus": 1})
        ray = [str(Path(sys.executable).parent / "ray"), "start", f"--address={cluster.address}", *small]
        command = ["unshare", "--mount", "sh", "-c", MOUNTED, "sh", str(runs), *ray]
        blind = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait_for_both(str(cluster.address), blind, folder / "log")
            yield Machines(str(cluster.address), runs, seen)
        finally:
            processes = children_of(blind.pid)
            blind.kill()
            kill_all(processes)
            psutil.wait_procs(processes, 30)
            cluster.shutdown()
            store.stop()
            forget_clients()


def _wait_for_both(address: str, blind: "subprocess.Popen[bytes]", log: Path) -> None:
    import ray

    from launch.cluster import connected

    with connected(ClusterConfig(address=address, workers=WorkersConfig(num_workers=1))):
        deadline = time.monotonic() + 120
        while sum(node["Alive"] for node in ray.nodes()) < 2:
            assert blind.poll() is None, log.read_text(encoding="utf-8")
            assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
            time.sleep(0.2)


def test_a_folder_that_a_machine_does_not_see_is_refused_before_any_work(machines):
    from launch.cluster import ClusterError, check_folder, connected
    from pipeline.distributed.machines import NotSharedError

    runs, seen = machines.runs, machines.seen
    with connected(ClusterConfig(address=machines.address, workers=WorkersConfig(num_workers=1))):
        check_folder(ClusterConfig(), seen)
        with pytest.raises(NotSharedError, match=rf"^{runs} is not shared: \S+ does not see it\. Set runs_dir to"):
            check_folder(ClusterConfig(), runs)
        check_folder(ClusterConfig(workers=WorkersConfig(cpus_per_worker=2)), runs)  # for which it has no room
        with pytest.raises(ClusterError, match=r"cluster\.shared_folder is false, but .* has to be in a folder"):
            check_folder(ClusterConfig(shared_folder=False), seen)
    assert not list(machines.runs.parent.rglob(".tmp-*"))


def test_machines_that_share_a_store_alone_sample_into_it(machines, model_dir):
    """With the bytes of one machine. Each machine makes some of the clips, as the batches are of one and the work long.

    The other one has an empty folder where the model and the clips are.
    """
    from launch.sample import sample_checkpoint

    model, prompts = machines.runs / "model", machines.seen / "prompts.txt"
    shutil.copytree(model_dir, model)
    prompts.write_text("".join(f"a red dot {number}\n" for number in range(8)), encoding="utf-8")
    settings = ["sample.precision=fp32", "sample.solver=euler", "sample.steps=20", "sample.batch=1"]
    settings += [f"sample.prompts={prompts}", f"cluster.address={machines.address}"]
    output = "s3://shared/out/clips"
    said = list(sample_checkpoint(model, output, [*settings, "cluster.workers.num_workers=2"], dry_run=False))
    assert said[-1].startswith("8 clips in s3://shared/out/clips, shown in ")
    again = list(sample_checkpoint(model, output, settings, dry_run=False))
    assert again[-1] == said[-1]
    alone = (
        machines.runs / "alone"
    )  # on a cluster of its own, which this process does not leave for the other one again
    list(sample_checkpoint(model, alone, [*settings[:-1], "cluster.workers.num_workers=1"], dry_run=False))
    here = machines.runs / "cache" / "reelflow" / "runs" / "s3" / "shared" / "out" / "clips"
    clips = {clip.file: (alone / clip.file).read_bytes() for clip in read_samples(alone)}
    assert {clip.file: (here / clip.file).read_bytes() for clip in read_samples(here)} == clips
    stored = stored_run(output)
    assert stored is not None
    assert {name for name in stored.files if name.endswith(".mp4")} == set(clips)
    assert {CONFIG_NAME, "manifest.jsonl", "index.html"} <= set(stored.files)
    objects = boto3.client("s3").list_objects_v2(Bucket="shared", Prefix="out/clips/objects/")["Contents"]
    assert {each["Key"].rpartition("/")[2] for each in objects} == {file.sha256 for file in stored.files.values()}
