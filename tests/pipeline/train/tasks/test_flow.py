"""What the flow task draws per sample, and that it trains any network: dropped captions, times per frame, a U-Net."""

import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from data.dataset.reader import PayloadReader
from data.files.checksums import file_sha256
from data.stream.loader import Sample
from models.autoencoder.build import build_autoencoder
from models.autoencoder.config import AutoencoderConfig
from models.flow.spec import FlowSpec, GivenFrames
from models.networks.build import build_network
from models.networks.config import UNetConfig, WanConfig
from models.text.bytes import CaptionTokens
from models.text.config import TextConfig
from models.text.embeddings import CaptionEmbeddings
from pipeline.checkpoint.config import LoraConfig
from pipeline.checkpoint.read import open_checkpoint
from pipeline.distributed.config import WorldSizeError
from pipeline.distributed.torchrun import train_here
from pipeline.encode.codec import AUTOENCODER_NAME
from pipeline.sample.config import SampleConfig
from pipeline.sample.model import open_model
from pipeline.sample.requests import ImageFile, PromptRequest
from pipeline.sample.sampler import ClipSampler
from pipeline.train.loop import train
from pipeline.train.tasks.flow import FlowMatchingLoss
from pipeline.train.tasks.flow_batch import FlowBatch, FlowQuery
from testing.networks import with_open_gates
from testing.records import SMALL
from testing.tiny import CONFIG, SHAPE, losses, make_task, write_latents


def test_caption_drop_is_per_sample_and_at_the_configured_rate(straight):
    task, folder, _ = straight
    rows = task.subsets()[0].rows
    content = PayloadReader(folder).read(rows[0])
    batch = task.collate([Sample(position, rows, 0, content) for position in range(400)])
    dropped = (batch.caption.mask.sum(1) == 1).float().mean()
    assert abs(float(dropped) - 0.3) < 0.07


def test_clips_exchange_noise_among_those_of_their_caption(straight):
    """However many a worker computes at once; and a clip with given frames keeps its own noise."""
    task, folder, _ = straight
    rows = task.subsets()[0].rows
    reader = PayloadReader(folder)
    samples = [Sample(position, rows, position % 2, reader.read(rows[position % 2])) for position in range(16)]
    plain = replace(task, flow=FlowSpec(caption_dropout=0.3)).collate(samples)
    coupled = replace(task, flow=FlowSpec(caption_dropout=0.3, coupled_clips=8))
    batch = coupled.collate(samples)
    halves = [coupled.collate(part).x_0 for part in (samples[:8], samples[8:])]
    assert torch.equal(torch.cat(halves), batch.x_0)
    dropped = plain.caption.mask.sum(1) == 1
    keys = [(p // 8, None if dropped[p] else p % 2) for p in range(16)]
    came_from = [next(j for j in range(16) if torch.equal(plain.x_0[j], noise)) for noise in batch.x_0]
    assert sorted(came_from) == list(range(16))
    assert came_from != list(range(16))
    assert all(keys[j] == key for j, key in zip(came_from, keys, strict=True))
    assert (batch.x_0 - batch.x_1).square().sum() < (plain.x_0 - plain.x_1).square().sum()
    given = replace(task, flow=FlowSpec(coupled_clips=8, first_frame_share=1.0)).collate(samples)
    assert torch.equal(given.x_0, plain.x_0)
    with pytest.raises(WorldSizeError, match="coupled_clips is 8, but a worker computes 12 clips at once"):
        coupled.collate(samples[:12])


def test_times_per_frame_belong_to_their_position(straight):
    task, folder, _ = straight
    rows = task.subsets()[0].rows
    content = PayloadReader(folder).read(rows[0])
    per_frame = replace(task, flow=task.flow.model_copy(update={"times_per": "frame"}))
    t = per_frame.collate([Sample(position, rows, 0, content) for position in range(400)]).t
    assert t.shape == (400, 1, SHAPE[1])
    assert torch.equal(per_frame.collate([Sample(7, rows, 0, content)]).t, t[7:8])
    assert len(t.unique()) == t.numel()


def test_the_network_is_told_the_frame_rate_of_each_clip(straight):
    task, folder, _ = straight
    rows = [replace(task.subsets()[0].rows[0], fps=fps) for fps in (8.0, 24.0)]
    content = PayloadReader(folder).read(rows[0])
    model = task.model.model_copy(update={"clip_conditions": ("fps",)})
    told = replace(task, model=model)
    batch = told.collate([Sample(7, rows, number, content) for number in range(2)])
    assert batch.fps.tolist() == [8.0, 24.0]
    assert told.validation_batch(rows[1], content).fps.tolist() == [24.0] * 4
    torch.manual_seed(0)
    module = with_open_gates(told.build())
    loss = module(batch)["total"]
    assert not torch.equal(module(replace(batch, fps=torch.full((2,), 8.0)))["total"], loss)
    caption = CaptionTokens.encode(["a dot"], task.model.caption_text.max_bytes)
    queries = (FlowQuery(batch.x_1[:1], batch.t[:1], caption, fps) for fps in batch.fps.split(1))
    slow, fast = (module(query)["predicted"] for query in queries)
    assert not torch.equal(slow, fast)
    plain = with_open_gates(task.build())  # does not read it
    assert torch.equal(plain(replace(batch, fps=torch.full((2,), 8.0)))["total"], plain(batch)["total"])


def test_the_first_frame_of_a_share_of_the_clips_is_given_and_has_no_loss(straight):
    task, folder, _ = straight
    rows = task.subsets()[0].rows
    content = PayloadReader(folder).read(rows[0])
    samples = [Sample(position, rows, 0, content) for position in range(400)]
    given = replace(task, flow=task.flow.model_copy(update={"first_frame_share": 0.3}))
    batch, plain = given.collate(samples), task.collate(samples)
    assert batch.known is not None
    assert plain.known is None
    assert not batch.known[..., 1:].any()
    assert abs(float(batch.known[..., 0].float().mean()) - 0.3) < 0.07
    assert torch.equal(batch.t, torch.where(batch.known, 1.0, plain.t[:, None, None]))
    torch.manual_seed(0)
    module = with_open_gates(given.build())
    few = given.collate(samples[:8])
    assert few.known is not None
    assert few.known.any()
    hidden = replace(few, x_0=torch.where(few.known[..., None, None], 100.0, few.x_0))
    assert torch.equal(module(hidden)["total"], module(few)["total"])  # what the noise would be there does not matter
    shown = replace(few, x_1=torch.where(few.known[..., None, None], few.x_1 + 1, few.x_1))
    assert not torch.allclose(module(shown)["total"], module(few)["total"])  # other frames see the given one


def test_other_patterns_of_given_frames_are_drawn_by_position_and_have_no_loss(straight):
    task, folder, _ = straight
    rows = task.subsets()[0].rows
    content = PayloadReader(folder).read(rows[0])
    samples = [Sample(position, rows, 0, content) for position in range(64)]
    patterns = GivenFrames(prefix=0.2, ends=0.2, subset=0.4)
    given = replace(task, flow=task.flow.model_copy(update={"first_frame_share": 0.2, "given": patterns}))
    batch, plain = given.collate(samples), task.collate(samples)
    assert batch.known is not None
    assert bool((batch.known.any(2) & ~batch.known.all(2)).all())
    assert len(batch.known.unique(dim=0)) == 2  # clips of two latent frames: the first or the last
    assert torch.equal(batch.t, torch.where(batch.known, 1.0, plain.t[:, None, None]))
    alone = given.collate(samples[7:8])
    assert alone.known is not None
    assert torch.equal(alone.known, batch.known[7:8])
    torch.manual_seed(0)
    module = with_open_gates(given.build())
    hidden = replace(batch, x_0=torch.where(batch.known[..., None, None], 100.0, batch.x_0))
    assert torch.equal(module(hidden)["total"], module(batch)["total"])


def test_a_network_with_channels_is_told_in_training_which_frames_are_given(straight):
    task, folder, _ = straight
    rows = task.subsets()[0].rows
    content = PayloadReader(folder).read(rows[0])
    told = replace(
        task,
        model=task.model.model_copy(update={"known_frames": "channels"}),
        flow=task.flow.model_copy(update={"first_frame_share": 0.5}),
    )
    torch.manual_seed(0)
    module = with_open_gates(told.build())
    batch = told.collate([Sample(position, rows, 0, content) for position in range(8)])
    assert batch.known is not None
    assert 0 < batch.known.float().sum() < 8
    none = replace(batch, known=torch.zeros_like(batch.known))  # at the same times, but not told
    losses = [module(each)["total"] for each in (batch, none, replace(none, known=None))]
    assert not torch.allclose(losses[0], losses[1])
    torch.testing.assert_close(losses[1], losses[2])


def test_wan_is_trained_with_the_first_frame_given():
    """As Wan 2.2 TI2V: the given frame has time 1 and no loss, whatever its noise would be."""
    model = WanConfig(architecture="wan", width=64, depth=2, heads=2, mlp_width=96, time_width=16, text_tokens=12)
    torch.manual_seed(0)
    network = build_network(model, channels=4, embedding_width=20)
    with_open_gates(network)
    module = FlowMatchingLoss(network, FlowSpec(first_frame_share=0.5))
    known = torch.tensor([True, False, False]) & torch.tensor([True, False])[:, None, None]
    batch = FlowBatch(
        x_1=torch.randn(2, 4, 3, 4, 4),
        x_0=torch.randn(2, 4, 3, 4, 4),
        t=torch.where(known, 1.0, torch.rand(2, 1, 1)),
        caption=CaptionEmbeddings(torch.randn(2, 9, 20), torch.ones(2, 9, dtype=torch.bool)),
        fps=torch.full((2,), 8.0),
        known=known,
    )
    loss = module(batch)["total"]
    hidden = replace(batch, x_0=torch.where(known[..., None, None], 100.0, batch.x_0))
    assert torch.equal(module(hidden)["total"], loss)
    shown = replace(batch, x_1=torch.where(known[..., None, None], batch.x_1 + 1, batch.x_1))
    assert not torch.allclose(module(shown)["total"], loss)
    loss.backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


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


def test_a_checkpoint_says_that_clips_may_start_from_images(tmp_path):
    data, run_dir = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    write_latents(data)
    small = AutoencoderConfig(latent_channels=SHAPE[0], width=8, deep_width=8)
    save_file(
        build_autoencoder(small).state_dict(), data / AUTOENCODER_NAME, metadata={"config": small.model_dump_json()}
    )
    plain = make_task(data)
    task = replace(
        plain,
        model=plain.model.model_copy(update={"known_frames": "channels"}),
        flow=plain.flow.model_copy(update={"first_frame_share": 0.5}),
    )
    train_here(partial(train, task, CONFIG, run_dir), 1)
    model = open_model(run_dir)
    assert (model.network.known_frames, model.image_refusal) == ("channels", None)
    path = tmp_path / "start.png"
    Image.new("RGB", (48, 32), "red").save(path)
    image = ImageFile(path=str(path), sha256=file_sha256(path))
    requests = [
        PromptRequest(id=f"{seed:012}", prompt="clip 1", seed=seed, guidance_scale=2.0, bucket=SMALL.name, image=image)
        for seed in (1, 2)
    ]
    clips, _ = ClipSampler(model, SampleConfig(steps=2, precision="fp32"), torch.device("cpu")).sample(requests)
    assert abs(clips[0][0].astype(int) - clips[1][0]).max() <= 1
    assert (clips[0][1:] != clips[1][1:]).any()


def test_another_network_takes_adapters(unet_run):
    task, _ = unet_run
    adapted = replace(task, lora=LoraConfig(rank=2)).build()
    learnt = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert any(name.startswith("network.blocks.0.qkv.lora_A") for name in learnt)
    assert all("lora_" in name for name in learnt)
