"""Training on mixed buckets: every step holds clips of each, packed, alike on any number of workers."""

import shutil
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import pipeline.engine.zero
from data.stream.loader import Sample, Stream
from models.flow.spec import GivenFrames
from pipeline.checkpoint.read import load_weights, open_checkpoint
from pipeline.distributed.config import WorldSizeError
from pipeline.distributed.process_group import Worker
from pipeline.distributed.torchrun import train_here
from pipeline.train.batches import check_mixed, token_budget, turn_sizes
from pipeline.train.config import FlowTrainConfig, TrainConfig
from pipeline.train.loop import train
from pipeline.train.stream import micro_batches
from pipeline.train.tasks.flow import FlowTask
from pipeline.train.tasks.flow_batch import PackedFlowBatch
from pipeline.train.time_bins import NUM_TIME_BINS
from pipeline.train.world_size import check_world, fitting_worlds
from testing.groups import Job, run_jobs
from testing.networks import with_open_gates
from testing.tiny import MIXED, MIXED_BUCKETS, WEIGHTS, column, losses, make_task, write_mixed_latents

ACCUMULATED = MIXED.model_copy(update={"gradient_accumulation_steps": 2})


def train_mixed(worker: Worker, data: Path, run_dir: Path, config: TrainConfig) -> None:
    pipeline.engine.zero.PERSISTENT_PARAMETERS = 0  # ZeRO-3 partitions every parameter, however small
    train(make_task(data), config, run_dir, worker)


@pytest.fixture(scope="module")
def mixed_runs(tmp_path_factory):
    """Eight steps on mixed buckets: on one worker and on two, in one micro-batch and in two, at ZeRO stages 2 and 3."""
    folder, data = tmp_path_factory.mktemp("mixed"), tmp_path_factory.mktemp("data")
    write_mixed_latents(data)
    jobs = [
        Job(2, train_mixed, (data, folder / "two", MIXED)),
        Job(2, train_mixed, (data, folder / "two-sharded", MIXED.model_copy(update={"zero_stage": 3}))),
        Job(2, train_mixed, (data, folder / "two-accumulated", ACCUMULATED)),
        Job(1, train_mixed, (data, folder / "one", MIXED)),
        Job(1, train_mixed, (data, folder / "one-accumulated", ACCUMULATED)),
    ]
    run_jobs(jobs, folder)
    return data, folder


def stream_of(task: FlowTask, rank: int = 0, world_size: int = 1) -> Stream:
    buckets = [subset.bucket for subset in task.subsets()]
    sizes, budget = turn_sizes(MIXED, buckets), token_budget(MIXED, buckets)
    return Stream(task.subsets(), sizes, seed=task.seed, rank=rank, world_size=world_size, budget=budget)


def batch_of(task: FlowTask, step: int = 0) -> PackedFlowBatch:
    """The global batch of a step, packed."""
    stream = stream_of(task)
    (batch,) = next(stream.batches(stream.plan.cursor(step), partial(micro_batches, task, 1), readers=0))
    assert isinstance(batch, PackedFlowBatch)
    return batch


@pytest.mark.parametrize("other", ["two", "two-sharded", "two-accumulated", "one-accumulated"])
def test_the_loss_curve_does_not_depend_on_workers_or_micro_batches(mixed_runs, other):
    _, folder = mixed_runs
    for name in ("total", "gradient_norm"):
        np.testing.assert_allclose(column(folder / other, name), column(folder / "one", name), rtol=2e-5)
    assert open_checkpoint(folder / other).record.cursor == open_checkpoint(folder / "one").record.cursor
    assert column(folder / other, "loss_t1") == pytest.approx(column(folder / "one", "loss_t1"), rel=1e-4)
    one, two = load_weights(open_checkpoint(folder / "one")), load_weights(open_checkpoint(folder / other))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-4)


def test_stop_and_resume_is_bit_identical_and_other_workers_go_on_alike(mixed_runs, tmp_path):
    data, folder = mixed_runs
    for source, is_same in (("one", True), ("two", False)):
        resumed = tmp_path / source  # as if it had stopped after step 4
        saved = folder / source / "checkpoints" / "step_0000004"
        shutil.copytree(saved, resumed / "checkpoints" / "step_0000004")
        (resumed / "latest").write_text("step_0000004\n")
        shutil.copy(folder / source / "metrics.jsonl", resumed / "metrics.jsonl")
        train_here(partial(train, make_task(data), MIXED, resumed), 1)
        if is_same:
            assert losses(resumed) == losses(folder / "one")
            for which in WEIGHTS:
                one, two = (load_weights(open_checkpoint(run), which) for run in (folder / "one", resumed))
                assert all(torch.equal(one[name], two[name]) for name in one)
        else:
            np.testing.assert_allclose(losses(resumed), losses(folder / "one"), rtol=2e-5)


def test_every_clip_is_seen_once_an_epoch_whatever_the_workers(mixed_runs):
    """By the workers' own batches; a rank has equally many clips of each bucket as every other."""
    task = make_task(mixed_runs[0])
    for world_size in (1, 2, 4):
        seen: Counter[str] = Counter()
        by_step: list[list[Counter[str]]] = []
        for rank in range(world_size):
            stream = stream_of(task, rank, world_size)
            for step in range(6):
                rows = stream.rows(step)
                seen.update(row.key for row in rows)
                by_step.append([Counter(row.bucket for row in rows)])
        assert max(seen.values()) - min(seen.values()) <= 1
        assert len(seen) == 30
        for step in range(6):
            assert all(by_step[step] == by_step[6 * rank + step] for rank in range(world_size))


def test_micro_batches_have_equally_many_clips_of_each_bucket(mixed_runs):
    task = make_task(mixed_runs[0])
    stream = stream_of(task)
    samples: list[Sample] = next(stream.batches(0, list, readers=0))
    parts = micro_batches(task, 4, samples)
    shapes = [[tuple(batch.x_1.shape) for batch in part.parts] for part in parts]
    assert all(each == shapes[0] for each in shapes)
    whole = Counter(sample.row.bucket for sample in samples)
    assert sorted(whole) == sorted(bucket.name for bucket in MIXED_BUCKETS)
    assert {name: number // 4 for name, number in whole.items()} == {
        name: shape[0] for name, shape in zip(sorted(whole), shapes[0], strict=True)
    }


@pytest.mark.parametrize(
    "flow",
    [{}, {"times_per": "frame"}, {"first_frame_share": 0.5}, {"given": GivenFrames(ends=0.3, subset=0.5)}],
    ids=["one time", "times per frame", "first frames given", "any frames given"],
)
def test_the_loss_is_the_mean_over_tokens_of_that_of_each_bucket_alone(mixed_runs, flow):
    """Packed = padded: the loss and the gradient of every weight, within rounding."""
    task = make_task(mixed_runs[0])
    task = replace(task, flow=task.flow.model_copy(update=flow))
    torch.manual_seed(0)
    module = with_open_gates(task.build())
    batch = batch_of(task)

    def gradients(loss: torch.Tensor) -> dict[str, torch.Tensor]:
        module.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}

    values = module(batch)
    tokens = [part.x_1[:, 0].numel() for part in batch.parts]
    losses_of_parts = [module(part)["total"] * number for part, number in zip(batch.parts, tokens, strict=True)]
    expected = torch.stack(losses_of_parts).sum() / sum(tokens)
    torch.testing.assert_close(values["total"], expected, rtol=1e-5, atol=0)
    packed, padded = gradients(values["total"]), gradients(expected)
    assert packed.keys() == padded.keys()
    for name, gradient in padded.items():
        torch.testing.assert_close(packed[name], gradient, rtol=1e-5, atol=1e-5 * gradient.abs().max().item())
    shares = sum(values[f"share_t{number}"] for number in range(NUM_TIME_BINS))
    by_bin = sum(values[f"loss_t{number}"] for number in range(NUM_TIME_BINS))
    assert float(shares) == pytest.approx(1, rel=1e-6)
    assert float(by_bin) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_a_step_has_the_tokens_of_the_global_batch(mixed_runs):
    stream = stream_of(make_task(mixed_runs[0]))
    positions = {bucket.name: bucket.num_latent_positions for bucket in MIXED_BUCKETS}
    largest, steps = max(positions.values()), 50
    total = 0
    for step in range(steps):
        tokens = sum(positions[name] * number for name, number in stream.plan.num_samples(step).items())
        assert abs(tokens - 12 * largest) < 4 * largest
        total += tokens
    assert abs(total - steps * 12 * largest) < 4 * largest


def test_settings_that_do_not_work_together_are_refused():
    def refused(match: str, **settings) -> None:
        with pytest.raises(ValidationError, match=match):
            FlowTrainConfig(mixed_buckets=True, **settings)

    refused("set sequence_parallel to 1", sequence_parallel=2)
    refused("multiple of batch_multiple 4: use 12", global_batch=13)
    config = FlowTrainConfig(mixed_buckets=True, global_batch=8)
    check_mixed(config, 2)
    with pytest.raises(WorldSizeError, match=r"global_batch is 8, .* 4 clips of each of 3 buckets: use 12"):
        token_budget(config, MIXED_BUCKETS)
    with pytest.raises(
        WorldSizeError, match=r"do not divide over 3 workers .*set train.batch_multiple \(it is 4\) to 12"
    ):
        check_world(turn_sizes(config, MIXED_BUCKETS), 3, 4)
    assert fitting_worlds(MIXED, MIXED_BUCKETS, 8) == [1, 2, 4]
    assert fitting_worlds(ACCUMULATED, MIXED_BUCKETS, 8) == [1, 2]
