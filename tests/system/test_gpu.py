"""What needs an NVIDIA GPU: pytest -m gpu. Not run on one yet; the other tests run the same code on CPUs."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from models.networks.build import build_network
from pipeline.checkpoint.adapters import BASE_NAME
from pipeline.checkpoint.config import LoraConfig
from pipeline.checkpoint.read import open_checkpoint
from pipeline.checkpoint.tensor_files import write_tensors
from pipeline.distributed.torchrun import train_here
from pipeline.engine.config import LossScaling
from pipeline.train.build import build
from pipeline.train.loop import train
from testing.tiny import CONFIG, losses, make_task, write_latents

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_float16_on_the_gpu(tmp_path, stage):
    """Never run: the gradients of the first steps overflow, those after do not, and going on changes no bit."""
    write_latents(tmp_path)
    scaling = LossScaling(initial=2.0**30, hysteresis=1)
    config = CONFIG.model_copy(
        update={"precision": "fp16", "loss_scaling": scaling, "zero_stage": stage, "schedule": "constant", "steps": 24}
    )
    for run, stops in (("straight", (24,)), ("resumed", (5, 24))):
        for steps in stops:
            train_here(
                partial(train, make_task(tmp_path), config.model_copy(update={"steps": steps}), tmp_path / run), 1
            )
    one, other = (open_checkpoint(tmp_path / run).record for run in ("straight", "resumed"))
    assert 0 < one.num_overflows < 24
    assert one.loss_scaler == other.loss_scaler
    assert losses(tmp_path / "straight") == losses(tmp_path / "resumed")


@pytest.mark.parametrize(("stage", "offload"), [(2, "optimizer"), (3, "optimizer"), (3, "optimizer_and_parameters")])
def test_offload_from_the_gpu(tmp_path, stage, offload):
    """Never run: the master weights lie in host memory, and going on changes no bit."""
    write_latents(tmp_path)
    config = CONFIG.model_copy(
        update={"zero_stage": stage, "offload": offload, "schedule": "constant", "non_finite_steps": "skip"}
    )
    trainers = []
    train_here(lambda worker: trainers.append(build(make_task(tmp_path), config, worker)[0]), 1)
    assert {fragment.master.device.type for fragment in trainers[0].fragments} == {"cpu"}
    for run, stops in (("straight", (8,)), ("resumed", (3, 8))):
        for steps in stops:
            train_here(
                partial(train, make_task(tmp_path), config.model_copy(update={"steps": steps}), tmp_path / run), 1
            )
    assert losses(tmp_path / "straight") == losses(tmp_path / "resumed")


@pytest.mark.parametrize(("stage", "offload"), [(1, "none"), (2, "none"), (3, "none"), (3, "optimizer_and_parameters")])
def test_weights_in_bf16_on_the_gpu(tmp_path, stage, offload):
    """Never run: the default there, with the losses of float32 weights under autocast; going on changes no bit."""
    write_latents(tmp_path)
    config = CONFIG.model_copy(
        update={"precision": "bf16", "zero_stage": stage, "offload": offload, "schedule": "constant"}
    )
    trainers = []
    train_here(lambda worker: trainers.append(build(make_task(tmp_path), config, worker)[0]), 1)
    assert {parameter.dtype for parameter in trainers[0].engine.module.parameters()} == {torch.bfloat16}
    assert {fragment.master.dtype for fragment in trainers[0].fragments} == {torch.float32}
    single = config.model_copy(update={"weight_precision": "fp32"})
    for run, settings, stops in (("straight", config, (8,)), ("resumed", config, (3, 8)), ("single", single, (8,))):
        for steps in stops:
            settings = settings.model_copy(update={"steps": steps})
            train_here(partial(train, make_task(tmp_path), settings, tmp_path / run), 1)
    assert losses(tmp_path / "straight") == losses(tmp_path / "resumed")
    assert losses(tmp_path / "straight") == pytest.approx(losses(tmp_path / "single"), rel=1e-2)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=3, alpha=6)], ids=["all weights", "adapters"])
def test_weights_are_read_onto_the_gpu(tmp_path, lora):
    """Never run: at every stage, and from host memory, the losses are those of stage 0."""
    write_latents(tmp_path)
    task = make_task(tmp_path)
    weights = build_network(task.model, 4).state_dict()
    write_tensors(tmp_path / BASE_NAME, {name: weight + 0.01 for name, weight in weights.items()}, {})
    task = replace(task, base_path=tmp_path / BASE_NAME, base="of the test", lora=lora)
    curves = []
    for stage, offload in ((0, "none"), (2, "none"), (3, "none"), (3, "optimizer_and_parameters")):
        config = CONFIG.model_copy(update={"zero_stage": stage, "offload": offload})
        run_dir = tmp_path / f"{stage}-{offload}"
        train_here(partial(train, task, config, run_dir), 1)
        curves.append(losses(run_dir))
    assert all(curve == pytest.approx(curves[0], rel=1e-4) for curve in curves)


def test_training_on_the_gpu(tmp_path):
    """The whole loop over NCCL: losses fall and the checkpoint is complete."""
    write_latents(tmp_path)
    train_here(partial(train, make_task(tmp_path), CONFIG, tmp_path / "gpu"), 1)
    first = losses(tmp_path / "gpu")
    assert len(first) == CONFIG.steps
    assert first[-1] < first[0]
    assert open_checkpoint(tmp_path / "gpu").record.step == CONFIG.steps
