"""What the engine is built from: checks of batch sizes, and names of compiled modules."""

import pytest
import torch

from models.networks.dit import DiT
from pipeline.distributed.config import WorldSizeError
from pipeline.distributed.process_group import Worker
from pipeline.distributed.torchrun import train_here
from pipeline.train.build import build
from testing.steps import STEPS
from testing.tiny import CONFIG, TINY_MODEL, make_task


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
