"""What needs an NVIDIA GPU: pytest -m gpu. Not run on one yet; the other tests run the same code on CPUs."""

from functools import partial
from importlib.util import find_spec

import pytest
import torch
from test_networks import reference_attention
from test_training import losses

from models.attention.attention import attention, choose_backend
from pipeline.checkpoint.read import open_checkpoint
from pipeline.distributed.torchrun import train_here
from pipeline.engine.config import LossScaling
from pipeline.train.build import build
from pipeline.train.loop import train
from testing.tiny import CONFIG, make_task, write_latents

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("masked", [False, True])
def test_attention_on_the_gpu_equals_the_reference(masked):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 65, 4, 64).bfloat16() for _ in range(3))
    mask = (torch.arange(65) < torch.tensor([[65], [30]])) if masked else None
    on_gpu = attention(q.cuda(), k.cuda(), v.cuda(), None if mask is None else mask.cuda())
    torch.testing.assert_close(on_gpu.cpu().double(), reference_attention(q, k, v, mask), rtol=3e-2, atol=3e-2)


def test_flash_attention_is_taken_where_it_is_installed():
    x = torch.zeros(1, 16, 2, 64, dtype=torch.bfloat16, device="cuda")
    assert choose_backend(x, x, None) == ("flash-attn" if find_spec("flash_attn") else "sdpa")
    assert choose_backend(x, x, torch.ones(1, 16, dtype=torch.bool, device="cuda")) == "sdpa"


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
        update={"zero_stage": stage, "offload": offload, "schedule": "constant", "bad_steps": "skip"}
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


def test_training_on_the_gpu(tmp_path):
    """The whole loop over NCCL: losses fall and the checkpoint is complete."""
    write_latents(tmp_path)
    train_here(partial(train, make_task(tmp_path), CONFIG, tmp_path / "gpu"), 1)
    first = losses(tmp_path / "gpu")
    assert len(first) == CONFIG.steps
    assert first[-1] < first[0]
    assert open_checkpoint(tmp_path / "gpu").record.step == CONFIG.steps
