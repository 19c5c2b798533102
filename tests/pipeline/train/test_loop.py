"""The training loop: steps, accumulation, recomputation, resuming, and numbers of workers."""

import shutil
from functools import partial

import numpy as np
import pytest
import torch

from data.stream.loader import Stream
from pipeline.checkpoint.read import load_weights, open_checkpoint
from pipeline.checkpoint.record import CheckpointError
from pipeline.distributed.torchrun import train_here
from pipeline.train.loop import train
from pipeline.train.monitor.metrics import read_metrics
from pipeline.train.setup import COMPILED_NAME
from testing.processes import train_in_processes
from testing.records import SMALL
from testing.steps import STAGES, STEPS
from testing.tiny import CONFIG, WEIGHTS, column, losses, make_task


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_accumulated_gradients_give_the_step_of_the_whole_batch(step_runs, stage):
    _, folders = step_runs
    for name in ("total", "gradient_norm"):
        whole, parts = column(folders["plain", stage], name), column(folders["accumulated", stage], name)
        np.testing.assert_allclose(parts, whole, rtol=1e-5)
    assert open_checkpoint(folders["accumulated", stage]).record.cursor == 8 * 4


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_blocks_computed_again_change_no_bit(step_runs, stage):
    _, folders = step_runs
    assert column(folders["recomputed", stage], "total") == column(folders["plain", stage], "total")


@pytest.mark.slow
def test_recomputing_keeps_less(step_runs):
    data, _ = step_runs
    task = make_task(data)
    kept = {}
    for recompute in (False, True):
        module = task.build()
        setattr(module.get_submodule("network.blocks"), "recompute", recompute)  # noqa: B010 - of a plain Module
        sizes = []
        stream = Stream(task.subsets(), {SMALL.name: 4}, seed=0, rank=0, world_size=1)
        batch = next(stream.batches(0, task.collate, readers=0))
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            module(batch)
        kept[recompute] = sum(sizes)
    assert kept[True] < 0.7 * kept[False]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_guard_changes_no_bit_and_measures_the_same_norm(step_runs, stage):
    _, folders = step_runs
    assert column(folders["guarded", stage], "total") == column(folders["plain", stage], "total")
    norms = [column(folders[name, stage], "gradient_norm") for name in ("guarded", "plain")]
    np.testing.assert_allclose(*norms, rtol=1e-5)
    assert column(folders["guarded", stage], "skipped_updates") == [0] * 8
    assert not (folders["guarded", stage] / "bad_steps.jsonl").exists()


@pytest.mark.slow
def test_other_batches_than_those_that_were_counted_are_refused(step_runs, tmp_path):
    data, _ = step_runs
    train_here(partial(train, make_task(data), STEPS.model_copy(update={"steps": 4}), tmp_path), 1)
    with pytest.raises(CheckpointError, match=r"after 4 steps and 16 samples, but .* taken 32: restore train.global"):
        train_here(partial(train, make_task(data), STEPS.model_copy(update={"global_batch": 8}), tmp_path), 1)


@pytest.mark.slow
def test_compiled_blocks_train_alike(straight, tmp_path):
    """Needs a C++ compiler. In processes of their own, without the tests' checks of shapes.

    A second start compiles nothing but the library that a killed compiler had left unfinished.
    """
    _, folder, run_dir = straight
    first, second = tmp_path / "first", tmp_path / "second"
    train_in_processes(folder, first, 1, CONFIG.steps, "compile")
    np.testing.assert_allclose(losses(first), losses(run_dir), rtol=1e-4)

    shutil.copytree(first / COMPILED_NAME, second / COMPILED_NAME)
    cut, *others = libraries = sorted((second / COMPILED_NAME).rglob("*.so"))
    cut.write_bytes(cut.read_bytes()[:1000])
    written = [library.stat().st_mtime_ns for library in others]
    train_in_processes(folder, second, 1, CONFIG.steps, "compile")
    assert losses(second) == losses(first)
    assert sorted((second / COMPILED_NAME).rglob("*.so")) == libraries
    assert [library.stat().st_mtime_ns for library in others] == written
    assert cut.stat().st_size > 1000


def test_loss_is_logged_and_the_first_is_that_of_zero_velocity(straight):
    """adaLN-zero predicts 0, so the first loss is the mean of |x_1 - x_0|^2 over the batch."""
    task, _, run_dir = straight
    stream = Stream(task.subsets(), {SMALL.name: 4}, seed=task.seed, rank=0, world_size=1)
    batch = next(stream.batches(0, task.collate, readers=0))
    assert losses(run_dir)[0] == pytest.approx((batch.x_1 - batch.x_0).square().mean().item(), rel=1e-5)
    assert [row["step"] for row in read_metrics(run_dir)] == list(range(1, 9))


def test_stop_and_resume_is_bit_identical(straight, tmp_path):
    task, _, run_dir = straight
    often = tmp_path / "often"
    train_here(partial(train, task, CONFIG.model_copy(update={"checkpoint_every_steps": 3}), often), 1)
    assert losses(often) == losses(run_dir)  # saving changes nothing
    resumed = tmp_path / "resumed"  # as if it had stopped after step 4
    shutil.copytree(run_dir / "checkpoints" / "step_0000004", resumed / "checkpoints" / "step_0000004")
    (resumed / "latest").write_text("step_0000004\n")
    shutil.copy(run_dir / "metrics.jsonl", resumed / "metrics.jsonl")
    train_here(partial(train, task, CONFIG, resumed), 1)
    assert losses(resumed) == losses(run_dir)
    for which in WEIGHTS:
        one, two = (load_weights(open_checkpoint(folder), which) for folder in (run_dir, resumed))
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_two_workers_see_the_same_samples_and_reach_the_same_losses(straight, two_workers):
    _, _, run_dir = straight
    np.testing.assert_allclose(losses(two_workers), losses(run_dir), rtol=2e-5)
    checkpoint = open_checkpoint(two_workers)
    assert checkpoint.record.world_size == 2
    assert checkpoint.record.cursor == 32
    one, two = load_weights(open_checkpoint(run_dir)), load_weights(checkpoint)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-4)


def test_a_checkpoint_of_two_workers_resumes_on_one(straight, two_workers, tmp_path):
    task, _, run_dir = straight
    shutil.copytree(two_workers, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / "step_0000008")  # as if it had stopped after step 4
    (tmp_path / "latest").write_text("step_0000004\n")
    before = load_weights(open_checkpoint(tmp_path), "master")
    train_here(partial(train, task, CONFIG, tmp_path), 1)
    np.testing.assert_allclose(losses(tmp_path), losses(run_dir), rtol=2e-5)
    after = load_weights(open_checkpoint(tmp_path), "master")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_loss_that_is_not_finite_stops_with_advice(straight, tmp_path):
    task, _, _ = straight
    with pytest.raises(FloatingPointError, match=r"at step 2; its samples .* lower train\.learning_rate"):
        train_here(partial(train, task, CONFIG.model_copy(update={"learning_rate": 1e30}), tmp_path), 1)
