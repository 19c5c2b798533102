"""A host that is lost while sources are cut: the others go on, and the clips that it held are cut again."""

from typing import Any

import numpy as np
import pytest

from data.curation.config import ModelsConfig
from data.curation.source_folders import list_folder
from data.dataset.buckets import Bucket
from data.files.checksums import file_sha256
from data.video.codec import encode_clip
from launch.config import ClusterConfig
from pipeline.distributed.isolated_pool import Done
from pipeline.ingest import shard
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.shard import make_shards
from testing.curation_models import write_brightness_score
from testing.paths import ROOT

NUM_VIDEOS, STRUCK_AFTER = 12, 8
BUCKET = Bucket(num_frames=17, height=112, width=112, fps=8)


@pytest.mark.slow
def test_a_lost_host_costs_only_time(tmp_path, monkeypatch):
    """No host has room for a worker in place of the lost one, nor for its models; clips are lost with its memory."""
    import ray
    import ray.experimental
    from ray.cluster_utils import Cluster

    from launch.cluster import connected
    from testing.clusters import leave_cluster

    leave_cluster()
    videos = tmp_path / "videos"
    videos.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (NUM_VIDEOS, 17, 112, 112, 3), np.uint8)
    for number, frames in enumerate(noise):  # their clips are too large for Ray to keep them in this process
        (videos / f"{number:02d}.mp4").write_bytes(encode_clip(frames, 8))
    models = ModelsConfig(aesthetic=write_brightness_score(tmp_path / "score.pt"), aesthetic_pixels=40)
    config = ShardConfig(buckets=(BUCKET,), max_clips_per_video=1, models=models)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    small: dict[str, Any] = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **small})
    node = cluster.add_node(**small)
    cluster.wait_for_nodes()
    outcomes, done = shard.IsolatedPool.outcomes, []

    held = []  # whether the clips of an outcome are in the memory of the host that is lost

    def struck(pool):
        if not held:  # in the first round, in which both hosts are there
            start_a_process_on_every_host()  # so that neither has done all before the other one begins
        for outcome in outcomes(pool):
            done.append(outcome.job.name)
            if len(held) < STRUCK_AFTER:
                assert isinstance(outcome, Done)
                (where,) = ray.experimental.get_object_locations([outcome.payload.batch]).values()
                held.append(node.node_id in where["node_ids"])
                if len(held) == STRUCK_AFTER:
                    cluster.remove_node(node, allow_graceful=False)
            yield outcome

    try:
        with connected(ClusterConfig(address=cluster.address)):
            whole = make_shards(list_folder(videos), tmp_path / "whole", config, 2)
            monkeypatch.setattr(shard.IsolatedPool, "outcomes", struck)
            manifest = make_shards(list_folder(videos), tmp_path / "struck", config, 2)
    finally:
        cluster.shutdown()
    assert any(held)
    assert sorted(set(done)) == [f"{number:02d}.mp4" for number in range(NUM_VIDEOS)]
    assert len(done) == 2 * NUM_VIDEOS  # all are of one shard, which missed some
    assert manifest == whole
    made, wanted = ({p.name: file_sha256(p) for p in (tmp_path / n).glob("*.tar")} for n in ("struck", "whole"))
    assert made == wanted


def start_a_process_on_every_host():
    """Idle ones, which Ray takes for actors."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    start: Any = ray.remote(lambda: None)
    hosts = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in ray.nodes() if node["Alive"]]
    ray.get([start.options(scheduling_strategy=host).remote() for host in hosts])
