"""Lines of metrics.jsonl and TensorBoard: losses by time, distances of averages, curves."""

import io
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.stream.loader import Stream
from pipeline.checkpoint.read import load_weights, open_checkpoint
from pipeline.train.monitor.metrics import read_metrics
from pipeline.train.monitor.previews import fixed_prompts
from pipeline.train.monitor.validation import read_validation
from testing.records import SMALL
from testing.watched import STAGES, STILL, task_of


@pytest.mark.slow
def test_losses_by_time_are_means_over_the_samples_of_all_ranks(watched_runs):
    task = task_of(watched_runs / "data")
    stream = Stream(task.subsets(), {SMALL.name: 4, STILL.name: 32}, seed=7, rank=0, world_size=1)
    row, batch = read_metrics(watched_runs / "watched-2")[0], next(stream.batches(0, task.collate, readers=0))
    torch.manual_seed(7)
    module: Any = task.build()
    x_t = module.path.at(batch.t, batch.x_1).point(batch.x_0, batch.x_1)
    error = module.network(x_t, batch.t, batch.caption) - (batch.x_1 - batch.x_0)
    losses, number = error.square().flatten(1).mean(1), (batch.t * 4).long()
    for time_bin in range(4):
        own = losses[number == time_bin]
        if len(own):
            assert row[f"loss_t{time_bin}"] == pytest.approx(own.mean().item(), rel=1e-5)
        else:
            assert f"loss_t{time_bin}" not in row
    assert not [name for name in row if name.startswith("share_")]


@pytest.mark.slow
@pytest.mark.parametrize("run", ["alone", *(f"watched-{stage}" for stage in STAGES)])
def test_distance_of_the_average_is_that_in_the_checkpoint(watched_runs, run):
    master, average = (load_weights(open_checkpoint(watched_runs / run), which) for which in ("master", "ema"))
    difference = sum((average[name] - master[name]).double().square().sum().item() for name in master) ** 0.5
    size = sum(master[name].double().square().sum().item() for name in master) ** 0.5
    assert read_metrics(watched_runs / run)[-1]["ema_distance"] == pytest.approx(difference / size, rel=1e-4)


@pytest.mark.slow
def test_tensorboard_has_the_curves_and_the_clips(watched_runs):
    reader = EventAccumulator(str(watched_runs / "alone" / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    tags = reader.Reload().Tags()
    assert {"total", "tokens_per_second", f"validation_ema/{SMALL.name}/t0"} <= set(tags["scalars"])
    values = [event.value for event in reader.Scalars(f"validation_ema/{SMALL.name}/all")]
    lines = [
        line for line in read_validation(watched_runs / "alone") if (line.weights, line.bucket) == ("ema", SMALL.name)
    ]
    assert values == pytest.approx([line.loss for line in lines if line.time_bin is None])
    expected = [f"samples/{number:02} {prompt}" for number, prompt in enumerate(fixed_prompts(watched_runs / "data"))]
    assert sorted(tags["images"]) == expected
    shown = reader.Images("samples/01 clip 3")
    assert [event.step for event in shown] == [4, 8]
    with Image.open(io.BytesIO(shown[0].encoded_image_string)) as picture:
        assert (picture.format, picture.size) == ("GIF", (32, 32))
