"""Weights in bfloat16, master weights in float32: the same training with half the bytes, and the same checkpoints."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pipeline.engine.zero
from data.stream.loader import Stream
from models.networks.build import build_network
from pipeline.checkpoint.adapters import BASE_NAME
from pipeline.checkpoint.config import LoraConfig
from pipeline.checkpoint.export import export_weights
from pipeline.checkpoint.read import load_weights, open_checkpoint
from pipeline.checkpoint.record import rank_file
from pipeline.checkpoint.restore import load_training_state
from pipeline.checkpoint.tensor_files import write_tensors
from pipeline.distributed.process_group import Worker
from pipeline.engine.config import Offload, ZeroStage
from pipeline.engine.deepspeed_internals import import_deepspeed
from pipeline.run.weight_names import MASTER
from pipeline.train.build import build
from pipeline.train.loop import train
from pipeline.train.tasks.flow import FlowTask
from testing.groups import Job, run_jobs
from testing.records import SMALL
from testing.steps import POISONED_STEP, poisoned
from testing.tiny import CONFIG, TINY_MODEL, WEIGHTS, column, losses, make_task, write_latents

STAGES: tuple[ZeroStage, ...] = (1, 2, 3)
OFFLOADED: tuple[tuple[ZeroStage, Offload], ...] = ((2, "optimizer"), (3, "optimizer_and_parameters"))
STEPS = CONFIG.model_copy(update={"schedule": "constant", "precision": "bf16", "weight_precision": "bf16"})
LONG = 200
LORA = LoraConfig(rank=3, alpha=6)
ELSEWHERE = ((1, 2), (2, 3), (3, 1))
"""Stages: of two workers that save, and of one that goes on."""


class Moved(TorchDispatchMode):
    """Counts the bytes that collectives are given, by type."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            for tensor in tree_leaves(args):
                if isinstance(tensor, torch.Tensor):
                    self.bytes[str(tensor.dtype)] += tensor.numel() * tensor.element_size()
        return func(*args, **(kwargs or {}))


def changed(**fields: Any) -> Any:
    return STEPS.model_copy(update=fields)


def batches_of(task: FlowTask, worker: Worker):
    stream = Stream(task.subsets(), {SMALL.name: 4}, seed=task.seed, rank=worker.rank, world_size=worker.world_size)
    return stream.batches(0, task.collate, readers=0)


def base_task(data: Path, lora: LoraConfig | None = None) -> FlowTask:
    return replace(make_task(data), base_path=data / BASE_NAME, base="of the test", lora=lora)


def train_to(worker: Worker, task: FlowTask, run_dir: Path, stops: tuple[int, ...], fields: dict[str, Any]) -> None:
    """Stops after each number of steps and goes on, with nothing but the checkpoint."""
    pipeline.engine.zero.PERSISTENT_PARAMETERS = 1000  # some whole, some cut
    for steps in stops:
        train(task, changed(**fields, steps=steps), run_dir, worker)


def count_bytes(worker: Worker, data: Path, folder: Path, stage: ZeroStage) -> None:
    """What a step moves, with either type of weights."""
    pipeline.engine.zero.PERSISTENT_PARAMETERS = 0
    task = make_task(data)
    for precision in ("fp32", "bf16"):
        trainer, _ = build(task, changed(zero_stage=stage, weight_precision=precision), worker)
        batches = batches_of(task, worker)
        trainer.step([next(batches)], 1e-3)
        with Moved() as moved:
            trainer.step([next(batches)], 1e-3)
        batches.close()
        if worker.rank == 0:
            (folder / f"bytes-{stage}-{precision}").write_text(json.dumps(moved.bytes))


def hold_the_file(worker: Worker, data: Path, stage: ZeroStage, offload: Offload, lora: LoraConfig | None) -> None:
    """Master weights are the file's, to the bit; the module, frozen weights included, holds them rounded."""
    pipeline.engine.zero.PERSISTENT_PARAMETERS = 0
    trainer, _ = build(base_task(data, lora), changed(zero_stage=stage, offload=offload), worker)
    file, num_values = load_file(data / BASE_NAME), 0
    for fragment in trainer.local_fragments:
        assert fragment.master.dtype == fragment.exp_avg.dtype == fragment.exp_avg_sq.dtype == torch.float32
        if lora is None:
            whole = file[fragment.name.removeprefix("network.")].flatten()
            assert torch.equal(fragment.master, whole[fragment.start :][: fragment.master.numel()])
            num_values += fragment.master.numel()
    if lora is None and worker.world_size == 1:
        assert num_values == sum(weight.numel() for weight in file.values())
    trainer.publish_master()  # changes nothing
    deepspeed = import_deepspeed()
    for name, parameter in trainer.engine.module.get_submodule("module.network").named_parameters():
        assert parameter.dtype == torch.bfloat16
        with deepspeed.zero.GatheredParameters([parameter], enabled=stage == 3):
            if (weight := file.get(name.replace(".base_layer", ""))) is not None:
                assert torch.equal(parameter.detach(), weight.bfloat16())


def load_elsewhere(worker: Worker, data: Path, source: Path, run_dir: Path, stage: ZeroStage) -> None:
    """What another layout saved is held to the bit, and the training goes on."""
    shutil.copytree(source, run_dir)
    pipeline.engine.zero.PERSISTENT_PARAMETERS = 0
    trainer, ema = build(make_task(data), changed(zero_stage=stage), worker)
    checkpoint = open_checkpoint(run_dir)
    assert load_training_state(checkpoint, trainer, ema) == []
    saved = {which: load_weights(checkpoint, which) for which in WEIGHTS}
    for fragment in trainer.fragments:
        held = {MASTER: fragment.master} | {name: ema.averages[name][fragment.name] for name in WEIGHTS[1:]}
        for which, values in held.items():
            whole = saved[which][fragment.name].flatten()
            assert torch.equal(values, whole[fragment.start :][: values.numel()])
    train(make_task(data), changed(zero_stage=stage, steps=10), run_dir, worker)


def learn(worker: Worker, data: Path, folder: Path) -> None:
    """A longer training with either type of weights, and in float32 throughout."""
    for name, precision, weights in (("bf16", "bf16", "bf16"), ("autocast", "bf16", "fp32"), ("fp32", "fp32", "fp32")):
        config = changed(precision=precision, weight_precision=weights, steps=LONG, checkpoint_every_steps=LONG)
        train(make_task(data), config, folder / f"learn-{name}", worker)


def resumed_jobs(data: Path, folder: Path, stage: ZeroStage, offload: Offload) -> list[Job]:
    """Eight steps on two workers, in one go and stopped after three."""
    fields, task, name = {"zero_stage": stage, "offload": offload}, make_task(data), f"{stage}-{offload}"
    return [
        Job(2, train_to, (task, folder / f"{run}-{name}", stops, fields))
        for run, stops in (("straight", (8,)), ("resumed", (3, 8)))
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Latents, and the random weights of a network: those of a new one are zero in places."""
    folder = tmp_path_factory.mktemp("data")
    write_latents(folder)
    torch.manual_seed(3)
    weights = build_network(TINY_MODEL, 4).state_dict()
    write_tensors(folder / BASE_NAME, {name: w + 0.02 * torch.randn_like(w) for name, w in weights.items()}, {})
    return folder


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    folder, task = tmp_path_factory.mktemp("half"), make_task(data)
    jobs = [Job(2, count_bytes, (data, folder, 3)), Job(1, train_to, (task, folder / "one", (10,), {"zero_stage": 2}))]
    for stage in STAGES:
        jobs += resumed_jobs(data, folder, stage, "none")
        jobs += [Job(2, hold_the_file, (data, stage, "none", LORA if stage == 3 else None))]
    for there, here in ELSEWHERE:
        source, moved = folder / f"straight-{there}-none", folder / f"moved-{there}-{here}"
        jobs += [Job(1, load_elsewhere, (data, source, moved, here))]
    run_jobs(jobs, folder)
    return folder


@pytest.fixture(scope="module")
def more_runs(data, tmp_path_factory):
    folder, task, jobs = tmp_path_factory.mktemp("more"), make_task(data), []
    for stage, offload in OFFLOADED:
        jobs += resumed_jobs(data, folder, stage, offload)
        jobs += [Job(2, hold_the_file, (data, stage, offload, lora)) for lora in (None, LORA)]
    for stage in STAGES:
        skipping: dict[str, Any] = {"zero_stage": stage, "non_finite_steps": "skip"}
        jobs += [Job(2, train_to, (poisoned(data), folder / f"poisoned-{stage}", (8,), skipping))]
        jobs += [Job(2, train_to, (base_task(data, LORA), folder / f"lora-{stage}", (3, 8), {"zero_stage": stage}))]
    for stage in (2, 3):
        fields = {"zero_stage": stage, "gradient_accumulation_steps": 2}
        jobs += [Job(2, train_to, (task, folder / f"accumulated-{stage}", (3, 8), fields))]
    jobs += [Job(2, count_bytes, (data, folder, 2)), Job(1, learn, (data, folder))]
    # Saved with float32 weights, gone on with bfloat16 ones, and back.
    for steps, precision in ((3, "fp32"), (6, "bf16"), (8, "fp32")):
        jobs += [Job(1, train_to, (task, folder / "mixed", (steps,), {"weight_precision": precision}))]
    run_jobs(jobs, folder)
    return folder


def check_bytes(folder: Path, stage: ZeroStage) -> None:
    single, half = (json.loads((folder / f"bytes-{stage}-{name}").read_text()) for name in ("fp32", "bf16"))
    few = 100  # the norm of the gradient
    assert "torch.bfloat16" not in single
    assert half.get("torch.float32", 0) < few
    assert half["torch.bfloat16"] == pytest.approx(single["torch.float32"] / 2, abs=few)
    assert half["torch.bfloat16"] > 100_000


def check_resumed(folder: Path, stage: ZeroStage, offload: Offload) -> None:
    straight, resumed = (folder / f"{run}-{stage}-{offload}" for run in ("straight", "resumed"))
    for name in ("total", "gradient_norm"):
        assert column(straight, name) == column(resumed, name)
    for rank in (0, 1):
        one, other = (load_file(open_checkpoint(run).folder / rank_file(rank)) for run in (straight, resumed))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_collectives_move_half_the_bytes(runs):
    check_bytes(runs, 3)


@pytest.mark.slow
def test_collectives_move_half_the_bytes_at_stage_2_too(more_runs):
    check_bytes(more_runs, 2)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_it_resumes_to_the_bit(runs, stage):
    check_resumed(runs, stage, "none")


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "offload"), OFFLOADED)
def test_it_resumes_to_the_bit_from_host_memory(runs, more_runs, stage, offload):
    check_resumed(more_runs, stage, offload)
    np.testing.assert_allclose(
        losses(more_runs / f"straight-{stage}-{offload}"), losses(runs / f"straight-{stage}-none"), rtol=1e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_the_losses_of_one_worker(runs, stage):
    np.testing.assert_allclose(losses(runs / f"straight-{stage}-none"), losses(runs / "one")[:8], rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("there", "here"), ELSEWHERE)
def test_a_checkpoint_goes_on_at_another_stage_and_number_of_workers(runs, there, here):
    """The state that was loaded is compared in `load_elsewhere`."""
    np.testing.assert_allclose(losses(runs / f"moved-{there}-{here}"), losses(runs / "one"), rtol=1e-3)


@pytest.mark.slow
def test_a_checkpoint_goes_on_with_the_other_type(runs, more_runs):
    np.testing.assert_allclose(losses(more_runs / "mixed"), losses(runs / "one")[:8], rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_checkpoints_hold_master_weights_in_float32_and_export_gives_them(runs, stage, tmp_path):
    checkpoint = open_checkpoint(runs / f"straight-{stage}-none")
    with safe_open(checkpoint.folder / rank_file(0), framework="pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F32"}  # noqa: SIM118
    master = load_weights(checkpoint, MASTER)
    assert not all(torch.equal(weight, weight.bfloat16().float()) for weight in master.values())
    export_weights(checkpoint, tmp_path / "dit.safetensors", MASTER)
    exported = load_file(tmp_path / "dit.safetensors")
    assert exported.keys() == {name.removeprefix("network.") for name in master}
    assert all(torch.equal(exported[name.removeprefix("network.")], weight) for name, weight in master.items())


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_step_that_is_not_finite_changes_nothing(more_runs, stage):
    assert column(more_runs / f"poisoned-{stage}", "skipped_updates") == [0, 0, *[1] * 6]
    norms = column(more_runs / f"poisoned-{stage}", "gradient_norm")
    assert [np.isfinite(norm) for norm in norms] == [number != POISONED_STEP for number in range(8)]
    assert all(
        weight.isfinite().all() for weight in load_weights(open_checkpoint(more_runs / f"poisoned-{stage}")).values()
    )


@pytest.mark.slow
def test_adapters_and_accumulated_gradients_have_equal_losses_at_every_stage(more_runs):
    for name, stages in (("lora", (1, 2, 3)), ("accumulated", (2, 3))):
        first, *others = (losses(more_runs / f"{name}-{stage}") for stage in stages)
        for other in others:
            np.testing.assert_allclose(other, first, rtol=1e-3)


@pytest.mark.slow
def test_the_loss_curve_is_that_of_autocast(more_runs):
    """And as near to that of float32: differences of rounding grow with the steps, whatever they come from."""
    half, autocast, single = (np.array(losses(more_runs / f"learn-{name}")) for name in ("bf16", "autocast", "fp32"))
    np.testing.assert_allclose(half[:50], autocast[:50], rtol=2e-3)
    for other in (autocast, single):
        np.testing.assert_allclose(half, other, rtol=0.05)
        assert np.abs(half / other - 1).mean() < 5e-3
        assert half[-50:].mean() == pytest.approx(other[-50:].mean(), rel=5e-3)
    assert single[-50:].mean() < 0.95 * single[:10].mean()
