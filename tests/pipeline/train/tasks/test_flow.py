"""What the flow task draws per sample, and that it trains any network: dropped captions, times per frame, a U-Net."""

import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import save_file

from data.dataset.reader import PayloadReader
from data.stream.loader import Sample
from models.autoencoder.build import build_autoencoder
from models.autoencoder.config import AutoencoderConfig
from models.networks.config import UNetConfig
from models.text.config import TextConfig
from pipeline.checkpoint.config import LoraConfig
from pipeline.checkpoint.read import open_checkpoint
from pipeline.distributed.torchrun import train_here
from pipeline.encode.codec import AUTOENCODER_NAME
from pipeline.sample.config import SampleConfig
from pipeline.sample.model import open_model
from pipeline.sample.requests import PromptRequest
from pipeline.sample.sampler import ClipSampler
from pipeline.train.loop import train
from testing.records import SMALL
from testing.tiny import CONFIG, SHAPE, losses, make_task, write_latents


def test_caption_drop_is_per_sample_and_at_the_configured_rate(straight):
    task, folder, _ = straight
    rows = task.subsets()[0].rows
    content = PayloadReader(folder).read(rows[0])
    batch = task.collate([Sample(position, rows, 0, content) for position in range(400)])
    dropped = (batch.caption.mask.sum(1) == 1).float().mean()
    assert abs(float(dropped) - 0.3) < 0.07


def test_times_per_frame_belong_to_their_position(straight):
    task, folder, _ = straight
    rows = task.subsets()[0].rows
    content = PayloadReader(folder).read(rows[0])
    per_frame = replace(task, flow=task.flow.model_copy(update={"times_per": "frame"}))
    t = per_frame.collate([Sample(position, rows, 0, content) for position in range(400)]).t
    assert t.shape == (400, 1, SHAPE[1])
    assert torch.equal(per_frame.collate([Sample(7, rows, 0, content)]).t, t[7:8])
    assert len(t.unique()) == t.numel()


UNET = UNetConfig(
    architecture="unet",
    width=32,
    multipliers=(1, 2),
    num_blocks=1,
    heads=2,
    text=TextConfig(width=16, depth=1, heads=2, max_bytes=16),
)
THIRTY = CONFIG.model_copy(
    update={"steps": 30, "checkpoint_every_steps": 15, "global_batch": 8, "schedule": "constant"}
)


@pytest.fixture(scope="module")
def unet_run(tmp_path_factory):
    """Thirty steps of a U-Net, beside a small autoencoder to sample with."""
    data, run_dir = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("unet")
    write_latents(data)
    small = AutoencoderConfig(latent_channels=SHAPE[0], width=8, deep_width=8)
    weights = build_autoencoder(small).state_dict()
    save_file(weights, data / AUTOENCODER_NAME, metadata={"config": small.model_dump_json()})
    task = replace(make_task(data), model=UNET)
    train_here(partial(train, task, THIRTY, run_dir), 1)
    return task, run_dir


def test_another_network_learns_and_resumes_bit_for_bit(unet_run, tmp_path):
    """The loop, the averages and the checkpoints know nothing of what network it is."""
    task, run_dir = unet_run
    curve = losses(run_dir)
    assert sum(curve[-10:]) < 0.85 * sum(curve[:10])
    shutil.copytree(run_dir / "checkpoints" / "step_0000015", tmp_path / "checkpoints" / "step_0000015")
    (tmp_path / "latest").write_text("step_0000015\n")
    recompute = THIRTY.model_copy(update={"activation_checkpointing": True})
    train_here(partial(train, task, recompute, tmp_path), 1)
    assert losses(tmp_path) == curve[15:]
    assert open_checkpoint(tmp_path).record.files == open_checkpoint(run_dir).record.files


def test_another_network_is_sampled_from_its_checkpoint(unet_run):
    _, run_dir = unet_run
    model = open_model(run_dir)
    assert model.network == UNET
    sampler = ClipSampler(model, SampleConfig(steps=2, solver="euler"), torch.device("cpu"))
    requests = [
        PromptRequest(id=f"{seed:012}", prompt="clip 1", seed=seed, guidance_scale=2.0, bucket=SMALL.name)
        for seed in (1, 2)
    ]
    clips, calls = sampler.sample(requests)
    assert calls == 2
    assert [clip.shape for clip in clips] == [(5, 32, 32, 3)] * 2
    assert (clips[0] != clips[1]).any()


def test_another_network_takes_adapters(unet_run):
    pytest.importorskip("peft")
    task, _ = unet_run
    adapted = replace(task, lora=LoraConfig(rank=2)).build()
    learnt = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert any(name.startswith("network.blocks.0.qkv.lora_A") for name in learnt)
    assert all("lora_" in name for name in learnt)
