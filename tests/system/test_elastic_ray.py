"""A training on Ray whose cluster shrinks: it goes on with the workers there are, on the same samples."""

import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest

from data.stream.loader import Sample
from launch.config import ClusterConfig
from pipeline.checkpoint.read import open_checkpoint
from pipeline.distributed.config import WorkersConfig
from pipeline.distributed.torchrun import train_here
from pipeline.distributed.workers import train_on_ray
from pipeline.train.loop import train
from pipeline.train.monitor.events import read_events
from pipeline.train.monitor.metrics import read_metrics
from pipeline.train.tasks.flow_batch import FlowBatch
from pipeline.train.world_size import fitting_worlds
from testing.elastic import WatchedTask, fed_samples
from testing.paths import ROOT
from testing.tiny import CONFIG, make_task, write_latents

STEPS = 30

ELASTIC = CONFIG.model_copy(update={"steps": STEPS, "schedule": "constant", "checkpoint_every_steps": 3})


@dataclass(frozen=True)
class SlowTask(WatchedTask):
    """Slow enough to be struck on its way."""

    def collate(self, samples: list[Sample]) -> FlowBatch:
        time.sleep(0.3)
        return super().collate(samples)


@pytest.mark.slow
def test_a_lost_node_takes_workers_and_no_sample(tmp_path, monkeypatch):
    """Four workers on two nodes; of the three that are left two share the batch of four, and one waits."""
    from ray.cluster_utils import Cluster

    from launch.cluster import connected
    from testing.clusters import leave_cluster

    leave_cluster()
    data, run_dir, straight = tmp_path / "data", tmp_path / "elastic", tmp_path / "straight"
    for folder in (data, run_dir, straight):
        folder.mkdir()
    write_latents(data)
    train_here(partial(train, WatchedTask(**vars(make_task(data)), log_dir=straight), ELASTIC, straight), 1)

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # For up to 20 s Ray Train reckons with the lost node: it tries to start four workers, for a minute by default.
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "5")
    small: dict[str, Any] = {"object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False, **small})
    node = cluster.add_node(num_cpus=1, **small)
    cluster.wait_for_nodes()
    workers = WorkersConfig(num_workers=4, min_workers=2, max_failures=2)
    task = SlowTask(**vars(make_task(data)), log_dir=run_dir)
    fitting = fitting_worlds(ELASTIC, [], workers.num_workers)

    def lose_a_node() -> None:
        while not [row for row in read_metrics(run_dir) if row["step"] >= 8]:
            time.sleep(0.1)
        cluster.remove_node(node, allow_graceful=False)

    try:
        with connected(ClusterConfig(address=cluster.address, workers=workers)):
            strike = threading.Thread(target=lose_a_node, daemon=True)
            strike.start()
            train_on_ray(partial(train, task, ELASTIC, run_dir), workers, run_dir / "ray", fitting)
    finally:
        cluster.shutdown()

    starts = [(event.event, event.step, event.world_size) for event in read_events(run_dir)]
    assert starts[0] == ("started", 0, 4)
    assert starts[1][0] == "started"
    assert starts[1][1] >= 6
    assert starts[1][2] == 2
    assert starts[-1] == ("finished", STEPS, 2)
    num_samples = STEPS * CONFIG.global_batch
    assert open_checkpoint(run_dir).record.cursor == num_samples
    assert len(fed_samples(straight, num_samples)) == num_samples
    assert fed_samples(run_dir, num_samples) == fed_samples(straight, num_samples)
    curves = [[row["total"] for row in read_metrics(folder)] for folder in (run_dir, straight)]
    assert len(curves[0]) == STEPS
    np.testing.assert_allclose(*curves, rtol=1e-4)
