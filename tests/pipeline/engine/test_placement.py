"""Weights that a training starts from go to their places one at a time, and are then those of the file."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import pipeline.engine.zero
from models.networks.build import build_network
from models.networks.config import DiTConfig
from pipeline.checkpoint.adapters import BASE_NAME, base_weights
from pipeline.checkpoint.config import LoraConfig
from pipeline.checkpoint.record import CheckpointError
from pipeline.checkpoint.tensor_files import write_tensors
from pipeline.distributed.process_group import Worker
from pipeline.engine.config import Offload, ZeroStage
from pipeline.engine.deepspeed_internals import import_deepspeed
from pipeline.engine.placement import WHOLE, Placement
from pipeline.train.build import build
from pipeline.train.loop import train
from pipeline.train.tasks.flow import FlowTask
from testing.groups import Job, run_jobs
from testing.tensors import LiveTensors
from testing.tiny import CONFIG, TINY_MODEL, losses, make_task, write_latents

DEEP = TINY_MODEL.model_copy(update={"depth": 24})  # its largest parameter is a small part of it
CELLS: tuple[tuple[ZeroStage, Offload], ...] = (
    (0, "none"),
    (2, "none"),
    (3, "none"),
    (3, "optimizer_and_parameters"),
)
LORA = LoraConfig(rank=3, alpha=6)
STEPS = CONFIG.model_copy(update={"schedule": "constant", "warmup_steps": 0})
WORLD_SIZE = 2


def task_of(data: Path, lora: LoraConfig | None = None) -> FlowTask:
    return replace(make_task(data), base_path=data / BASE_NAME, base="of the test", lora=lora)


def write_base(data: Path, model: DiTConfig = TINY_MODEL) -> None:
    """Random weights: those of a new network are zero in places."""
    torch.manual_seed(3)
    weights = build_network(model, 4).state_dict()
    noisy = {name: weight + 0.02 * torch.randn_like(weight) for name, weight in weights.items()}
    write_tensors(data / BASE_NAME, noisy, {})


def gathered(deepspeed: Any, parameter: nn.Parameter) -> torch.Tensor:
    if not hasattr(parameter, "ds_shape"):
        return parameter.detach()
    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()


def hold_the_file(worker: Worker, data: Path, stage: ZeroStage, offload: Offload, lora: LoraConfig | None) -> None:
    """Every rank has all values of the file, and at stage 3 keeps half of each parameter, frozen ones too."""
    pipeline.engine.zero.PERSISTENT_PARAMETERS = 0
    config = STEPS.model_copy(update={"zero_stage": stage, "offload": offload})
    trainer, _ = build(task_of(data, lora), config, worker)
    network, file = trainer.engine.module.get_submodule("module.network"), load_file(data / BASE_NAME)
    deepspeed = import_deepspeed()
    held = {name.replace(".base_layer", ""): parameter for name, parameter in network.named_parameters()}
    assert {name for name in held if "lora_" not in name} == set(file)
    for name, parameter in held.items():
        assert (stage == 3) == hasattr(parameter, "ds_shape"), name
        if stage == 3:
            assert parameter.numel() == 0
            assert parameter.ds_tensor.numel() == -(-parameter.ds_numel // worker.world_size)  # pyright: ignore
        if name in file:
            assert torch.equal(gathered(deepspeed, parameter), file[name]), name


def train_three_steps(
    worker: Worker, data: Path, run_dir: Path, stage: ZeroStage, offload: Offload, lora: LoraConfig | None
) -> None:
    """At stage 3 the last step is made by a training that resumes."""
    pipeline.engine.zero.PERSISTENT_PARAMETERS = 0
    for steps in (2, 3) if stage == 3 else (3,):
        config = STEPS.model_copy(update={"zero_stage": stage, "offload": offload, "steps": steps})
        train(task_of(data, lora), config, run_dir, worker)


def measure(worker: Worker, data: Path, stage: ZeroStage, offload: Offload) -> None:
    """Write how many bytes of tensors exist at most while a network is built."""
    with LiveTensors() as live:
        module = replace(task_of(data), model=DEEP).build(Placement(worker.device, stage, offload))
    assert all(not parameter.is_meta for parameter in module.parameters())
    (data / f"bytes-{worker.rank}-{stage}-{offload}").write_text(str(live.most_bytes))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    data, deep, folder = (tmp_path_factory.mktemp(name) for name in ("data", "deep", "runs"))
    write_latents(data)
    write_base(data)
    write_base(deep, DEEP)
    jobs = [Job(WORLD_SIZE, hold_the_file, (data, *cell, None)) for cell in CELLS]
    jobs += [Job(WORLD_SIZE, hold_the_file, (data, *cell, LORA)) for cell in CELLS if cell[0] == 3]
    jobs += [Job(WORLD_SIZE, measure, (deep, *cell)) for cell in CELLS]
    for number, lora in enumerate((None, LORA)):
        jobs += [
            Job(WORLD_SIZE, train_three_steps, (data, folder / f"{stage}-{offload}-{number}", stage, offload, lora))
            for stage, offload in CELLS
        ]
    run_jobs(jobs, folder)  # every rank asserts that it holds the file
    return deep, folder


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1], ids=["all weights", "adapters"])
@pytest.mark.parametrize(("stage", "offload"), CELLS[1:])
def test_stages_have_the_losses_of_stage_0_also_after_a_resume(runs, stage, offload, number):
    _, folder = runs
    expected = losses(folder / f"0-none-{number}")
    assert len(set(expected)) == 3
    assert losses(folder / f"{stage}-{offload}-{number}") == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "offload"), CELLS)
def test_no_rank_holds_a_second_copy_and_at_stage_3_not_even_one(runs, stage, offload):
    deep, _ = runs
    sizes = [weight.numel() * 4 for weight in load_file(deep / BASE_NAME).values()]
    held = sum(-(-size // WORLD_SIZE) for size in sizes) if stage == 3 else sum(sizes)
    for rank in range(WORLD_SIZE):
        most = int((deep / f"bytes-{rank}-{stage}-{offload}").read_text())
        assert held <= most <= held + max(sizes) + 16 * len(sizes)  # padding, and tensors without values
    assert max(sizes) < 0.1 * sum(sizes)  # so that the bound is far below one and two whole copies


def test_layers_are_read_in_order_and_stay_trainable_or_not(tmp_path):
    write_base(tmp_path)
    with torch.device("meta"):
        network = build_network(TINY_MODEL, 4)
    network.patch.requires_grad_(False)
    WHOLE.place(network, base_weights(tmp_path / BASE_NAME, network))
    file = load_file(tmp_path / BASE_NAME)
    assert list(network.state_dict()) == [name for name, _ in base_weights(tmp_path / BASE_NAME, network)]
    assert all(torch.equal(weight, file[name]) for name, weight in network.state_dict().items())
    assert {n for n, p in network.named_parameters() if not p.requires_grad} == {"patch.weight", "patch.bias"}


def test_the_file_is_not_changed_by_what_is_trained(tmp_path):
    write_base(tmp_path)
    before = (tmp_path / BASE_NAME).read_bytes()
    module = task_of(tmp_path).build()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert (tmp_path / BASE_NAME).read_bytes() == before
    assert all(weight.any() for weight in load_file(tmp_path / BASE_NAME).values())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda weights: weights.pop("final.bias"), r"final\.bias is absent, but the network .* has \[16\]"),
        (lambda weights: weights.update(extra=torch.ones(2)), r"extra is \[2\], but the network .* has none of that"),
        (lambda weights: weights.update({"final.bias": torch.ones(3)}), r"final\.bias is \[3\], but .* has \[16\]"),
    ],
    ids=["missing", "unknown", "other shape"],
)
def test_a_file_of_another_network_is_refused_before_memory_is_taken(tmp_path, change, told):
    write_base(tmp_path)
    weights = load_file(tmp_path / BASE_NAME)
    change(weights)
    (tmp_path / BASE_NAME).unlink()  # it is mapped
    write_tensors(tmp_path / BASE_NAME, weights, {})
    with LiveTensors() as live, pytest.raises(CheckpointError, match=rf"base\.safetensors is damaged: {told}"):
        task_of(tmp_path).build()
    assert live.most_bytes == 0


def test_a_damaged_file_is_refused(tmp_path):
    write_base(tmp_path)
    os.truncate(tmp_path / BASE_NAME, 1000)
    with pytest.raises(CheckpointError, match=r"base\.safetensors is damaged"):
        task_of(tmp_path).build()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([("weight", torch.ones(2, 3))], r"no value was given for bias"),
        ([("weight", torch.ones(3, 2)), ("bias", torch.ones(2))], r"weight is \[3, 2\], but the parameter \[2, 3\]"),
    ],
    ids=["missing", "other shape"],
)
def test_a_parameter_without_its_value_is_never_left_empty(values, told):
    with torch.device("meta"):
        layer = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=told):
        WHOLE.place(layer, values)


def test_a_buffer_that_only_the_constructor_fills_is_not_left_empty():
    with torch.device("meta"):
        layer = nn.BatchNorm1d(2)
    with pytest.raises(ValueError, match="no value was given for running_mean, running_var, num_batches_tracked"):
        WHOLE.place(layer, [("weight", torch.ones(2)), ("bias", torch.ones(2))])
