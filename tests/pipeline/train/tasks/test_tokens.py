"""Training a tokeniser and a network of its tokens, with the loop and the checkpoints of every network."""

import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from data.dataset.reader import PayloadReader
from data.stream.loader import Sample
from models.autoencoder.build import build_autoencoder
from models.autoencoder.config import AutoencoderConfig
from models.flow.spec import FlowSpec
from models.tokens.config import TokenizerConfig
from models.tokens.fsq import tokens_of
from pipeline.checkpoint.export import export_published
from pipeline.checkpoint.read import load_weights, open_checkpoint
from pipeline.checkpoint.record import CheckpointError
from pipeline.distributed.torchrun import train_here
from pipeline.encode.statistics import normalize
from pipeline.encode.tokens import TOKENIZER_NAME, export_tokenizer, load_tokenizer
from pipeline.sample.checks import check_can_sample
from pipeline.sample.config import SampleConfig
from pipeline.sample.model import open_model
from pipeline.sample.requests import PromptRequest
from pipeline.sample.sampler import ClipSampler
from pipeline.train.base import open_base
from pipeline.train.loop import train
from pipeline.train.tasks.tokenizer import TokenizerTask
from pipeline.train.tasks.tokens import TokenTask
from testing.records import SMALL
from testing.tiny import CONFIG, SHAPE, WEIGHTS, losses, make_task

TOKENS = TokenizerConfig(levels=(3, 2), codes=2, width=8, depth=1)
SAMPLING = {"solver": "jumps", "steps": 3, "guidance_scale": 2.0, "precision": "fp32"}
FLOW = FlowSpec.model_validate({"tokens": {}, "caption_dropout": 0.3})


@pytest.fixture(scope="module")
def tokenized(tiny_latents, tmp_path_factory):
    """A tokeniser after eight steps and its file, and a network of its tokens after eight."""
    folder = tmp_path_factory.mktemp("tokens")
    stats = make_task(tiny_latents).latent_stats
    task = TokenizerTask(TOKENS, stats, tiny_latents, 7)
    train_here(partial(train, task, CONFIG, folder / "tokenizer"), 1)
    export_tokenizer(open_checkpoint(folder / "tokenizer"), folder / TOKENIZER_NAME)
    config = AutoencoderConfig(latent_channels=4, width=8, deep_width=8, num_blocks=1)
    path = folder / "autoencoder.safetensors"
    save_file(build_autoencoder(config).state_dict(), path, metadata={"config": config.model_dump_json()})
    flow_task = replace(make_task(tiny_latents), flow=FLOW, autoencoder_path=path, sampling=tuple(SAMPLING.items()))
    token_task = TokenTask.of(flow_task, TOKENS, folder / TOKENIZER_NAME)
    train_here(partial(train, token_task, CONFIG, folder / "dit"), 1)
    return task, token_task, folder


def samples_of(task: TokenTask, positions: range) -> list[Sample]:
    rows = task.subsets()[0].rows
    content = PayloadReader(task.dataset_dir).read(rows[0])
    return [Sample(position, rows, 0, content) for position in positions]


def test_the_tokeniser_learns_and_its_file_is_what_was_trained(tokenized):
    task, _, folder = tokenized
    assert losses(folder / "tokenizer")[-1] < losses(folder / "tokenizer")[0]
    held = load_weights(open_checkpoint(folder / "tokenizer"))
    loaded = load_tokenizer(folder / TOKENIZER_NAME)
    assert loaded.config == task.model
    assert all(torch.equal(held[f"network.{name}"], weight) for name, weight in loaded.state_dict().items())
    with pytest.raises(CheckpointError, match="holds a dit, and a tokenizer is needed"):
        export_tokenizer(open_checkpoint(folder / "dit"), folder / "other.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / TOKENIZER_NAME).read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors cannot be read"):
        load_tokenizer(folder / "cut.safetensors")


@pytest.mark.parametrize("name", ["tokenizer", "dit"])
def test_a_training_that_is_stopped_and_resumed_has_the_same_bits(tokenized, tmp_path, name):
    task, token_task, folder = tokenized
    run_dir, resumed = folder / name, tmp_path / name
    shutil.copytree(run_dir / "checkpoints" / "step_0000004", resumed / "checkpoints" / "step_0000004")
    (resumed / "latest").write_text("step_0000004\n")
    shutil.copy(run_dir / "metrics.jsonl", resumed / "metrics.jsonl")
    train_here(partial(train, task if name == "tokenizer" else token_task, CONFIG, resumed), 1)
    assert losses(resumed) == losses(run_dir)
    for which in WEIGHTS:
        one, two = (load_weights(open_checkpoint(each), which) for each in (run_dir, resumed))
        assert all(torch.equal(one[weight], two[weight]) for weight in one)


def test_a_batch_is_a_function_of_its_positions(tokenized):
    _, task, _ = tokenized
    batch = task.collate(samples_of(task, range(200)))
    again = task.collate(samples_of(task, range(70, 71)))
    assert torch.equal(again.x_t[0], batch.x_t[70])
    assert torch.equal(again.t[0], batch.t[70])
    dropped = (batch.caption.mask.sum(1) == 1).float().mean()
    assert abs(float(dropped) - 0.3) < 0.1


def test_tokens_are_masked_with_the_probability_of_their_time(tokenized):
    _, task, folder = tokenized
    batch = task.collate(samples_of(task, range(400)))
    is_masked = batch.x_t == TOKENS.num_tokens
    assert torch.equal(torch.where(is_masked, batch.x_1, batch.x_t), batch.x_1)
    shares = is_masked.flatten(1).float().mean(1)
    assert abs(float((shares - (1 - batch.t)).mean())) < 0.01
    assert float((shares - (1 - batch.t)).square().mean()) < 1.2 * 0.25 / is_masked[0].numel()
    latents = normalize(torch.zeros(1, *SHAPE), task.latent_stats)
    tokenizer = load_tokenizer(folder / TOKENIZER_NAME)
    assert torch.equal(tokenizer.encode(latents), tokens_of(tokenizer._codes(latents), TOKENS.levels))


def test_the_first_loss_is_that_of_a_network_that_knows_nothing_of_the_tokens(tokenized):
    """Features are zero at first, so logits are the head's bias at every place, whatever is masked."""
    _, task, _ = tokenized
    torch.manual_seed(task.seed)
    module = task.build()
    batch = task.collate(samples_of(task, range(4)))
    bias = module.get_parameter("network.head.bias").reshape(TOKENS.codes, -1).log_softmax(-1)
    open_tokens = batch.x_t == TOKENS.num_tokens
    of_each = -bias[torch.arange(TOKENS.codes)[None, :, None, None, None], batch.x_1]
    expected = (of_each * open_tokens).flatten(1).sum(1) / open_tokens.flatten(1).sum(1)
    assert module(batch)["total"].item() == pytest.approx(expected.mean().item(), rel=1e-5)


def test_a_checkpoint_holds_all_that_sampling_needs_and_previews_are_its_clips(tokenized):
    _, task, folder = tokenized
    model, config = open_model(folder / "dit"), SampleConfig.model_validate(SAMPLING)
    assert model.sampling_defaults == (SAMPLING, [])
    check_can_sample(model, config)
    sampler = ClipSampler(model, config, torch.device("cpu"))
    requests = [
        PromptRequest(id=f"{n:012}", prompt="a dot", seed=n, guidance_scale=2.0, bucket=SMALL.name) for n in (0, 1)
    ]
    clips, calls = sampler.sample(requests)
    assert calls == 3
    assert not np.array_equal(clips[0], clips[1])
    (alone,), _ = sampler.sample(requests[1:])
    assert np.array_equal(alone, clips[1])
    module = task.build()
    module.get_submodule("network").load_state_dict(dict(model.weights("ema")))
    with torch.no_grad():
        preview = task.previewer(torch.device("cpu")).clip(module.eval(), "a dot", 1)
    assert np.abs(preview.astype(int) - alone.astype(int)).max() <= 1


def test_what_a_network_of_tokens_is_not_for_is_refused(tokenized):
    _, _, folder = tokenized
    model = open_model(folder / "dit")
    with pytest.raises(CheckpointError, match=r"sample\.solver is heun, but .* predicts tokens: use the solver jumps"):
        check_can_sample(model, SampleConfig())
    assert "predicts tokens, none of which can be given" in str(model.frames_refusal(1, 0))
    assert "predicts tokens, none of which can be given" in str(model.image_refusal)
    with pytest.raises(CheckpointError, match="predicts tokens, which no training starts from"):
        open_base(folder / "dit")
    with pytest.raises(CheckpointError, match="predicts tokens, which no published layout is for"):
        export_published(open_checkpoint(folder / "dit"), folder / "published")
