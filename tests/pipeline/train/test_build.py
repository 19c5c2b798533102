"""What the engine is built from: checks of batch sizes, and names of compiled modules."""

from types import SimpleNamespace

import pytest
import torch

from models.layers import BlockStack
from models.networks.dit import DiT
from pipeline.distributed.config import WorldSizeError
from pipeline.distributed.process_group import Worker
from pipeline.distributed.torchrun import train_here
from pipeline.engine.config import WeightPrecisionError
from pipeline.run import precision
from pipeline.train.build import build, uses_half_weights
from testing.steps import STEPS
from testing.tiny import CONFIG, TINY_MODEL, make_task


@pytest.mark.slow
def test_pieces_that_do_not_divide_are_refused(step_runs):
    data, _ = step_runs
    worker = Worker(0, 1, torch.device("cpu"))
    with pytest.raises(
        WorldSizeError, match=r"1 workers must divide it, with train.gradient_accumulation_steps 3 on each: use 3"
    ):
        build(make_task(data), STEPS.model_copy(update={"gradient_accumulation_steps": 3}), worker)


def test_compiled_networks_are_checkpointed_alike():
    """The names of a compiled module are those of the module: a checkpoint of either serves both."""
    module = DiT(TINY_MODEL, 4)
    names = list(module.state_dict())
    module.compile()
    assert list(module.state_dict()) == names


@pytest.mark.parametrize(("stage", "has_breaks"), [(2, False), (3, True)])
def test_a_break_is_allowed_only_where_deepspeed_makes_one(straight, monkeypatch, stage, has_breaks):
    """Its hooks of ZeRO 3 gather parameters inside the blocks."""
    task, _, _ = straight
    calls, built = [], []
    monkeypatch.setattr("pipeline.train.build.compile_network", lambda module, **options: calls.append(options))
    config = CONFIG.model_copy(update={"compile": True, "zero_stage": stage})
    train_here(lambda worker: built.append(build(task, config, worker)), 1)
    assert calls == [{"has_breaks": has_breaks}]


def test_a_batch_that_the_workers_cannot_share_is_refused(straight, tmp_path):
    task, _, _ = straight
    worker = Worker(rank=0, world_size=3, device=torch.device("cpu"))
    with pytest.raises(WorldSizeError, match="global_batch is 4, but 3 workers must divide it: use 3"):
        build(task, CONFIG, worker)


def test_the_wanted_kernel_computes_the_attention_of_every_block(straight, monkeypatch):
    task, _, _ = straight
    built: list[torch.nn.Module] = []
    engine = SimpleNamespace(fragments=None)  # a real one needs a process group
    monkeypatch.setattr("pipeline.train.build.ZeroTrainer", lambda module, *_, **__: built.append(module) or engine)
    monkeypatch.setattr("pipeline.train.build.ShardedEma", lambda *_: None)
    config = CONFIG.model_copy(update={"attention": "flash-attn-2"})
    build(task, config, Worker(rank=0, world_size=1, device=torch.device("cpu")))
    stacks = [part for part in built[0].modules() if isinstance(part, BlockStack)]
    assert stacks
    assert all(stack.attention == "flash-attn-2" for stack in stacks)


def test_weights_are_in_bf16_by_default_on_a_gpu_that_computes_in_it(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    half = CONFIG.model_copy(update={"precision": "bf16"})
    asked = half.model_copy(update={"weight_precision": "bf16"})
    assert [uses_half_weights(config, cpu) for config in (half, asked)] == [False, True]
    assert [uses_half_weights(config, gpu) for config in (half, asked)] == [True, True]
    for changes in ({"precision": "fp32"}, {"zero_stage": 0}, {"weight_precision": "fp32"}):
        assert not uses_half_weights(half.model_copy(update=changes), gpu)


def test_weights_in_bf16_where_auto_is_fp32_are_refused(monkeypatch):
    monkeypatch.setattr(precision, "_cpu_flags", lambda: "flags: avx2")
    config = CONFIG.model_copy(update={"precision": "auto", "weight_precision": "bf16"})
    with pytest.raises(WeightPrecisionError, match=r"train.precision is auto, which is fp32 on this machine \(cpu\)"):
        uses_half_weights(config, torch.device("cpu"))
