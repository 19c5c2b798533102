"""A training on Ray whose cluster shrinks: it goes on with the workers there are, on the same samples."""

import json
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from benchmarks.elastic import WatchedTask
from data.stream.loader import Sample
from launch.config import ClusterConfig, ConfigError, load_config
from launch.plan import describe_elastic
from pipeline.checkpoint.read import open_checkpoint
from pipeline.distributed.config import WorkersConfig, taking_part
from pipeline.distributed.torchrun import train_here
from pipeline.distributed.workers import train_on_ray
from pipeline.train.loop import train
from pipeline.train.monitor.events import read_events
from pipeline.train.monitor.metrics import read_metrics
from pipeline.train.tasks.flow import FlowBatch
from pipeline.train.world_size import fitting_worlds
from testing.tiny import CONFIG, make_task, write_latents

ROOT = Path(__file__).resolve().parent.parent
STEPS = 30
ELASTIC = CONFIG.model_copy(update={"steps": STEPS, "schedule": "constant", "checkpoint_every_steps": 3})


@dataclass(frozen=True)
class SlowTask(WatchedTask):
    """Slow enough to be struck on its way."""

    def prepare(self, samples: list[Sample]) -> FlowBatch:
        time.sleep(0.3)
        return super().prepare(samples)


def keys_of(folder: Path) -> set[tuple[int, str]]:
    """Every sample that any attempt was fed, at its place."""
    lines = [json.loads(line) for path in folder.glob("keys-*.jsonl") for line in path.read_text().splitlines()]
    return {(position, key) for position, key in lines if position < STEPS * CONFIG.global_batch}


@pytest.mark.slow
def test_a_lost_node_takes_workers_and_no_sample(tmp_path, monkeypatch):
    """Four workers on two nodes; of the three that are left two share the batch of four, and one waits."""
    from ray.cluster_utils import Cluster

    from launch.cluster import connected

    data, run_dir, straight = tmp_path / "data", tmp_path / "elastic", tmp_path / "straight"
    for folder in (data, run_dir, straight):
        folder.mkdir()
    write_latents(data)
    train_here(partial(train, WatchedTask(**vars(make_task(data)), log_dir=straight), ELASTIC, straight), 1)

    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    small = {"object_store_memory": 100 * 2**20}
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
    assert open_checkpoint(run_dir).record.cursor == STEPS * CONFIG.global_batch
    assert len(keys_of(straight)) == STEPS * CONFIG.global_batch
    assert keys_of(run_dir) == keys_of(straight)
    curves = [[row["total"] for row in read_metrics(folder)] for folder in (run_dir, straight)]
    assert len(curves[0]) == STEPS
    np.testing.assert_allclose(*curves, rtol=1e-4)


# ------------------------------------------------------------------ how many take part


def test_the_largest_number_that_divides_every_batch_takes_part():
    fitting = fitting_worlds(CONFIG.model_copy(update={"global_batch": 12}), [], 8)
    assert fitting == [1, 2, 3, 4, 6]
    assert [taking_part(number, fitting) for number in (1, 2, 3, 4, 5, 6, 7, 8)] == [1, 2, 3, 4, 4, 6, 6, 6]
    in_pieces = CONFIG.model_copy(update={"global_batch": 12, "accumulate": 2})
    assert fitting_worlds(in_pieces, [], 8) == [1, 2, 3, 6]
    in_groups = CONFIG.model_copy(update={"global_batch": 3, "sequence_parallel": 2})
    assert fitting_worlds(in_groups, [], 8) == [2, 6]


def test_it_is_said_before_the_start():
    said = describe_elastic("train dit", 2, 4, [1, 2, 4])
    assert said == (
        "  elastic: train dit goes on with 2, 3 (2 work, 1 wait), 4 workers, whatever the cluster has room for"
    )
    with pytest.raises(ConfigError, match=r"min_workers is 3, but the batches of train dit do not .* use 2"):
        describe_elastic("train dit", 3, 4, [1, 2, 4])


def test_a_smallest_number_that_cannot_be_is_refused():
    many = ["cluster.workers.num_workers=4"]
    with pytest.raises(ConfigError, match=r"min_workers is 3, but .*global_batch \d+ does not divide .* use 2"):
        load_config(Path("demo"), [*many, "cluster.workers.min_workers=3"])
    with pytest.raises(ConfigError, match="min_workers is 9, but num_workers is 4"):
        load_config(Path("demo"), [*many, "cluster.workers.min_workers=9"])
    assert load_config(Path("demo"), [*many, "cluster.workers.min_workers=2"]).cluster.workers.fewest == 2
