"""Master weights, moments and parameters in host memory: the same training, and its checkpoints are anybody's."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import pipeline.engine.zero
from data.files.checksums import file_sha256
from pipeline.checkpoint.read import load_weights, open_checkpoint
from pipeline.checkpoint.record import rank_file
from pipeline.distributed.process_group import Worker
from pipeline.distributed.torchrun import train_here
from pipeline.engine.parameter_groups import AdamWByTurns
from pipeline.train.build import build
from pipeline.train.loop import train
from testing.groups import Job, run_jobs
from testing.steps import POISONED_STEP, poisoned
from testing.tiny import CONFIG, WEIGHTS, column, make_task, write_latents

PLACES = ((2, "optimizer"), (3, "optimizer"), (3, "optimizer_and_parameters"))

CONSTANT = CONFIG.model_copy(update={"schedule": "constant", "gradient_accumulation_steps": 2})


def train_to(worker: Worker, data: Path, run_dir: Path, stops: tuple[int, ...], changes: dict) -> None:
    """Stops after each number of steps and goes on."""
    pipeline.engine.zero.PERSISTENT_PARAMETERS = 1000  # some whole, some cut
    for steps in stops:
        train(make_task(data), CONSTANT.model_copy(update=changes | {"steps": steps}), run_dir, worker)


def skip_one(worker: Worker, data: Path, run_dir: Path, changes: dict) -> None:
    train(poisoned(data), CONSTANT.model_copy(update=changes | {"non_finite_steps": "skip"}), run_dir, worker)


def on_the_host(worker: Worker, data: Path, stage: int, offload: str) -> None:
    """DeepSpeed does offload, with PyTorch's AdamW."""
    config = CONSTANT.model_copy(update={"zero_stage": stage, "offload": offload})
    trainer, _ = build(make_task(data), config, worker)
    assert type(trainer.zero.optimizer) is AdamWByTurns
    if stage == 2:
        assert trainer.zero.cpu_offload
    else:
        assert trainer.zero.offload_optimizer
        assert trainer.zero.offload_param == (offload == "optimizer_and_parameters")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder, data = tmp_path_factory.mktemp("offload"), tmp_path_factory.mktemp("data")
    write_latents(data)
    jobs = []
    for stage, offload in PLACES:
        changes, name = {"zero_stage": stage, "offload": offload}, f"{stage}-{offload}"
        jobs += [Job(2, train_to, (data, folder / f"straight-{name}", (8,), changes))]
        jobs += [Job(2, train_to, (data, folder / f"resumed-{name}", (3, 8), changes))]
        jobs += [Job(2, train_to, (data, folder / f"back-{name}", (3,), changes))]
        jobs += [Job(2, train_to, (data, folder / f"back-{name}", (8,), {"zero_stage": stage}))]
        jobs += [Job(2, train_to, (data, folder / f"half-{name}", (3, 8), changes | {"precision": "fp16"}))]
        jobs += [Job(2, skip_one, (data, folder / f"poisoned-{name}", changes))]
        jobs += [Job(2, on_the_host, (data, stage, offload))]
        jobs += [Job(2, train_to, (data, folder / f"none-{stage}", (8,), {"zero_stage": stage}))]
    run_jobs(jobs, folder)
    return data, folder


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "offload"), PLACES)
def test_it_is_the_training_without(runs, stage, offload):
    """The norm that clips is added up in another order."""
    _, folder = runs
    ours, theirs = (column(folder / run, "total") for run in (f"straight-{stage}-{offload}", f"none-{stage}"))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    norms = [column(folder / run, "gradient_norm") for run in (f"straight-{stage}-{offload}", f"none-{stage}")]
    np.testing.assert_allclose(*norms, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "offload"), PLACES)
def test_it_resumes_bit_for_bit(runs, stage, offload):
    _, folder = runs
    straight, resumed = (folder / f"{run}-{stage}-{offload}" for run in ("straight", "resumed"))
    assert column(straight, "total") == column(resumed, "total")
    assert column(straight, "gradient_norm") == column(resumed, "gradient_norm")
    for rank in range(2):
        one, other = (file_sha256(open_checkpoint(run).folder / rank_file(rank)) for run in (straight, resumed))
        assert one == other


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "offload"), PLACES)
def test_its_checkpoint_goes_on_without(runs, tmp_path, stage, offload):
    """On the same workers, and on one at another stage; the state that is loaded is compared in test_elastic.py."""
    data, folder = runs
    back = folder / f"back-{stage}-{offload}"
    np.testing.assert_allclose(column(back, "total"), column(folder / f"none-{stage}", "total"), rtol=1e-5)
    config = CONSTANT.model_copy(update={"zero_stage": 1, "steps": 9})
    train_here(partial(train, make_task(data), config, back), 1)
    weights = [load_weights(open_checkpoint(back), which) for which in WEIGHTS]
    assert all(torch.isfinite(value).all() for named in weights for value in named.values())
    assert open_checkpoint(back).record.step == 9


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "offload"), PLACES)
def test_a_bad_step_changes_nothing_there_either(runs, stage, offload):
    _, folder = runs
    run_dir = folder / f"poisoned-{stage}-{offload}"
    assert column(run_dir, "skipped_updates") == [0, 0, *[1] * 6]
    assert [np.isfinite(norm) for norm in column(run_dir, "gradient_norm")] == [n != POISONED_STEP for n in range(8)]
    with safe_open(open_checkpoint(run_dir).folder / rank_file(0), framework="pt") as file:
        assert all(bool(torch.isfinite(file.get_tensor(name)).all()) for name in file.keys())  # noqa: SIM118
    whole, guarded = (column(folder / run, "gradient_norm")[0] for run in (f"none-{stage}", run_dir.name))
    assert guarded == pytest.approx(whole, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "offload"), PLACES)
def test_float16_is_scaled_there_too(runs, stage, offload):
    _, folder = runs
    half, single = (column(folder / run, "total") for run in (f"half-{stage}-{offload}", f"none-{stage}"))
    assert column(folder / f"half-{stage}-{offload}", "overflows")[-1] < 8
    assert all(np.isfinite(half))
    assert half[0] == pytest.approx(single[0], rel=1e-3)
