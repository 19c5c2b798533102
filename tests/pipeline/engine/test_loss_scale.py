"""Training in float16: the scale of the loss, the steps that overflow, and resuming between them."""

import importlib
import json
import random
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import pipeline.engine.zero
from data.files.checksums import file_sha256
from data.stream.loader import Stream
from pipeline.checkpoint.read import load_weights, open_checkpoint
from pipeline.checkpoint.record import rank_file
from pipeline.distributed.process_group import Worker
from pipeline.distributed.torchrun import train_here
from pipeline.engine.config import LossScaling
from pipeline.engine.deepspeed_internals import import_deepspeed
from pipeline.engine.loss_scale import LossScaler
from pipeline.train.build import build
from pipeline.train.loop import train
from testing.groups import Job, run_jobs
from testing.records import SMALL
from testing.steps import POISONED_STEP, poisoned
from testing.tiny import CONFIG, WEIGHTS, column, make_task, write_latents

STAGES = (0, 1, 2, 3)

# Gradients overflow at first, and whenever two good steps have doubled the scale too often.
HALF = CONFIG.model_copy(
    update={
        "precision": "fp16",
        "schedule": "constant",
        "steps": 12,
        "loss_scaling": LossScaling(initial=2.0**24, window=2, hysteresis=1),
    }
)

CALM = LossScaling(initial=2.0**10)


def train_half(worker: Worker, data: Path, run_dir: Path, changes: dict) -> None:
    train(make_task(data), HALF.model_copy(update=changes), run_dir, worker)


def interrupted(worker: Worker, data: Path, run_dir: Path, stage: int) -> None:
    """Stops between overflows and resumes."""
    for steps in (5, 12):
        train_half(worker, data, run_dir, {"zero_stage": stage, "steps": steps})


def nothing_moves(worker: Worker, data: Path, stage: int) -> None:
    """A step that overflows changes no weight, no moment and no count; the next one is made with half the scale."""
    pipeline.engine.zero.PERSISTENT_PARAMETERS = 0
    task = make_task(data)
    scaling = LossScaling(initial=2.0**40, hysteresis=1)
    config = HALF.model_copy(update={"zero_stage": stage, "loss_scaling": scaling, "gradient_accumulation_steps": 2})
    trainer, _ = build(task, config, worker)
    stream = Stream(task.subsets(), {SMALL.name: 4}, seed=task.seed, rank=worker.rank, world_size=worker.world_size)
    batches = stream.batches(0, lambda samples: [task.collate([sample]) for sample in samples], readers=0)

    def state() -> list[torch.Tensor]:
        counts = [state["step"].clone() for state in trainer.adam.state.values()]
        return counts + [t.clone() for fragment in trainer.fragments for t in fragment.tensors().values()]

    moved, scaler = [], trainer.guard.loss_scaler
    assert scaler is not None
    for _ in range(25):
        before, scale = state(), scaler.scale
        trainer.step(next(batches), 1e-3)
        same = [torch.equal(old, new) for old, new in zip(before, state(), strict=True)]
        assert all(same) == trainer.guard.overflowed
        assert not trainer.guard.skipped
        assert np.isfinite(trainer.guard.gradient_norm()) != trainer.guard.overflowed
        assert scaler.scale == (scale / 2 if trainer.guard.overflowed else scale)
        moved.append(not trainer.guard.overflowed)
    assert moved == sorted(moved)  # the scale goes down until it fits
    assert not moved[0]
    assert moved[-1]
    assert trainer.guard.num_overflows == moved.count(False)
    assert {float(state["step"]) for state in trainer.adam.state.values()} == {float(moved.count(True))}
    batches.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder, data = tmp_path_factory.mktemp("half"), tmp_path_factory.mktemp("data")
    write_latents(data)
    growing = {"loss_scaling": LossScaling(initial=2.0**6, window=3), "non_finite_steps": "skip"}
    jobs = []
    for stage in STAGES:  # 3 comes last: from then on DeepSpeed's own linear layer rounds otherwise in this process
        at = {"zero_stage": stage}
        jobs += [Job(2, train_half, (data, folder / f"straight-{stage}", at))]
        jobs += [Job(2, interrupted, (data, folder / f"resumed-{stage}", stage))]
        jobs += [Job(2, train_half, (data, folder / f"calm-{stage}", at | {"loss_scaling": CALM}))]
        jobs += [Job(2, train_half, (data, folder / f"growing-{stage}", at | growing))]
        jobs += [Job(2, nothing_moves, (data, stage))]
    run_jobs(jobs, folder)
    return data, folder


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_overflows_are_counted_apart_and_the_cursor_goes_on(runs, stage):
    _, folder = runs
    run_dir = folder / f"straight-{stage}"
    counts = column(run_dir, "overflows")
    overflows = [bool(count) for count in np.diff([0, *counts])]
    assert 0 < sum(overflows) < HALF.steps
    assert [np.isfinite(norm) for norm in column(run_dir, "gradient_norm")] == [not over for over in overflows]
    assert column(run_dir, "skipped_updates") == [0] * HALF.steps
    assert not (run_dir / "bad_steps.jsonl").exists()
    record = open_checkpoint(run_dir).record
    assert (record.step, record.cursor) == (HALF.steps, 4 * HALF.steps)  # its samples are consumed as any step's
    assert (record.num_overflows, record.num_skipped_updates) == (counts[-1], 0)
    assert record.loss_scaler is not None
    assert record.loss_scaler.scale == column(run_dir, "loss_scale")[-1]
    assert record.loss_scaler.num_steps == HALF.steps


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_overflowed_resumes_bit_for_bit(runs, stage):
    _, folder = runs
    straight, resumed = folder / f"straight-{stage}", folder / f"resumed-{stage}"
    for name in ("total", "gradient_norm", "loss_scale", "overflows"):
        assert column(straight, name) == column(resumed, name)
    one, other = open_checkpoint(straight), open_checkpoint(resumed)
    assert one.record.loss_scaler == other.record.loss_scaler
    for rank in range(2):
        assert file_sha256(one.folder / rank_file(rank)) == file_sha256(other.folder / rank_file(rank))


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_without_overflow_it_is_the_training_of_float32(runs, stage, tmp_path):
    data, folder = runs
    if not (folder / "single").exists():
        config = HALF.model_copy(update={"precision": "fp32"})
        train_here(partial(train, make_task(data), config, folder / "single"), 1)
    assert column(folder / f"calm-{stage}", "overflows") == [0] * HALF.steps
    np.testing.assert_allclose(column(folder / f"calm-{stage}", "total"), column(folder / "single", "total"), rtol=2e-3)
    calm, single = (column(folder / run, "gradient_norm") for run in (f"calm-{stage}", "single"))
    np.testing.assert_allclose(calm, single, rtol=1e-2)
    assert calm != single  # it computed in another type


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_scale_that_doubles_halves_no_gradient(runs, stage):
    """Otherwise DeepSpeed would divide by the new scale in that step, which the first moment would show."""
    _, folder = runs
    growing, calm = folder / f"growing-{stage}", folder / f"calm-{stage}"
    assert len(set(column(growing, "loss_scale"))) > 2
    assert column(growing, "overflows") == [0] * HALF.steps
    for rank in range(2):
        files = [safe_open(open_checkpoint(run).folder / rank_file(rank), framework="pt") for run in (growing, calm)]
        for name in json.loads(files[0].metadata()["starts"]):
            one, other = (file.get_tensor(f"exp_avg/{name}") for file in files)
            assert (one - other).norm() <= 0.03 * other.norm() + 1e-9, name


@pytest.mark.slow
def test_a_checkpoint_goes_on_at_another_stage_with_its_scale(runs, tmp_path):
    data, folder = runs
    shutil.copytree(folder / "straight-2", tmp_path / "run", ignore=shutil.ignore_patterns("tensorboard"))
    before = open_checkpoint(tmp_path / "run")
    config = HALF.model_copy(update={"zero_stage": 0, "steps": 13})
    train_here(partial(train, make_task(data), config, tmp_path / "run"), 1)
    scaler, state = before.record.loss_scaler, open_checkpoint(tmp_path / "run").record.loss_scaler
    assert scaler is not None
    assert state is not None
    assert state.num_steps == 13
    assert state.scale in {scaler.scale * factor for factor in (0.5, 1, 2)}


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2])
def test_at_the_smallest_scale_it_is_a_bad_step(runs, tmp_path, stage):
    data, _ = runs
    config = HALF.model_copy(update={"loss_scaling": LossScaling(initial=1.0), "zero_stage": stage, "steps": 4})
    with pytest.raises(FloatingPointError, match=rf"at step {POISONED_STEP + 1}; its samples"):
        train_here(partial(train, poisoned(data), config, tmp_path / "stopped"), 1)
    skipping = config.model_copy(update={"non_finite_steps": "skip"})
    train_here(partial(train, poisoned(data), skipping, tmp_path / "skipped"), 1)
    assert column(tmp_path / "skipped", "skipped_updates") == [0, 0, 1, 1]
    assert column(tmp_path / "skipped", "overflows") == [0] * 4
    weights = [load_weights(open_checkpoint(tmp_path / "skipped"), which) for which in WEIGHTS]
    assert all(torch.isfinite(value).all() for named in weights for value in named.values())


@pytest.mark.parametrize("hysteresis", [1, 2, 3])
@pytest.mark.parametrize("window", [1, 2, 5])
def test_the_scale_moves_as_that_of_deepspeed(window, hysteresis, monkeypatch):
    import_deepspeed()
    module = importlib.import_module("deepspeed.runtime.fp16.loss_scaler")
    monkeypatch.setattr(module.dist, "get_rank", lambda: 1)
    peer = module.DynamicLossScaler(
        init_scale=2.0**8,
        scale_window=window,
        min_scale=1.0,
        delayed_shift=hysteresis,
        consecutive_hysteresis=False,
        raise_error_at_min_scale=False,
    )
    scaler = LossScaler(LossScaling(initial=2.0**8, window=window, hysteresis=hysteresis))
    for number in range(3000):
        overflow = peer.cur_scale > 2.0**100 or random.Random(number).random() < (0.1, 0.5)[number // 200 % 2]
        peer.update_scale(overflow)
        scaler.update(overflow)
        state = (peer.cur_scale, peer.cur_iter, peer.last_overflow_iter, peer.cur_hysteresis)
        assert tuple(scaler.state.model_dump().values()) == state
