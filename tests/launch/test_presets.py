"""Presets for GPUs: they fit where their names say, and what they set trains."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

from data.dataset.clip import LATENT_MEMBER
from data.dataset.compression import COMPRESSION
from data.dataset.index import write_index
from data.dataset.latents import LATENT_TENSOR
from data.dataset.shards import write_shard
from launch.config import RunConfig, load_config
from launch.plan_hardware import Hardware
from launch.plan_run import size
from launch.plan_training import Trained, autoencoder_training, flow_training, plan_training
from models.text.embeddings import CaptionEmbeddings
from pipeline.distributed.process_group import Worker
from pipeline.encode.captions import NULL_CAPTION_NAME, text_tensors
from pipeline.run import randomness
from pipeline.train.config import TrainConfig
from pipeline.train.loop import train
from pipeline.train.monitor.metrics import read_metrics
from pipeline.train.tasks.autoencoder import AutoencoderTask
from pipeline.train.tasks.flow import FlowTask
from testing.datasets import colour_clip, write_dataset
from testing.groups import Job, run_jobs
from testing.paths import ROOT
from testing.records import made_up_clip

GUIDE = ROOT / "docs" / "guides" / "cluster.md"
GPUS = {"gpu-1": 1, "gpu-8": 8, "gpu-64": 64}
CHANNELS, TEXT_WIDTH, NUM_CLIPS = 16, 4096, 6

pytestmark = pytest.mark.slow


def trainings(config: RunConfig) -> list[Trained]:
    """All of a run; a published autoencoder is not trained."""
    flow = flow_training(config, config.data.buckets, CHANNELS, COMPRESSION)
    return [flow] if config.autoencoder.published else [autoencoder_training(config, config.data.buckets), flow]


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory) -> Path:
    """The folder of a text encoder as large as that of Wan, without its weights."""
    folder = tmp_path_factory.mktemp("text_encoder")
    (folder / "config.json").write_text(json.dumps({"model_type": "umt5", "d_model": TEXT_WIDTH}), encoding="utf-8")
    (folder / "model.safetensors").touch()
    return folder


def load(name: str, text_encoder: Path, *overrides: str) -> RunConfig:
    config = load_config(Path(name), overrides)
    if config.encode.text is None:
        return config
    return load_config(Path(name), [*overrides, f"encode.text.folder={text_encoder}"])


@pytest.mark.parametrize("name", GPUS)
def test_every_training_fits_on_the_gpus_that_the_preset_names(name, text_encoder, tmp_path):
    config = load(name, text_encoder)
    assert config.cluster.workers.num_workers == GPUS[name]
    assert config.cluster.workers.gpus_per_worker == 1
    hardware = Hardware(GPUS[name], memory_bytes=80 * 2**30, peak_flops=989e12)
    totals = []
    for trained in trainings(config):
        planned = plan_training(trained, hardware, tmp_path)
        assert planned.fits, (trained.name, planned.memory)
        totals.append(size(planned.memory.total))
    (row,) = [line for line in GUIDE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{name}` |")]
    assert row.endswith(f"| {', '.join(totals)} |")


REDUCED = (
    "data.buckets=[{num_frames: 5, height: 32, width: 32, fps: 16}]",
    "autoencoder.model={latent_channels: 16, width: 8, deep_width: 16, num_blocks: 2}",
    "autoencoder.train.global_batch=4",
    "dit.train.global_batch=4",
)
SIZES = {
    "dit": "dit.model={width: 32, depth: 2, heads: 2, modulation: shared, text: {width: 16, depth: 1, heads: 2}}",
    "wan": "dit.model={architecture: wan, width: 48, depth: 2, heads: 2, mlp_width: 96, text_tokens: 16}",
}
TWO_STEPS = {"steps": 2, "warmup_steps": 1, "log_every_steps": 1, "validation_clips": 0}


def reduced(name: str, text_encoder: Path) -> RunConfig:
    """The preset at reduced width, on two workers if it has several, with all that its training does."""
    whole = load(name, text_encoder)
    train, num_workers = whole.dit.train, min(2, GPUS[name])
    overrides = [*REDUCED, SIZES[whole.dit.model.architecture], f"cluster.workers={{num_workers: {num_workers}}}"]
    overrides += [f"dit.train.gradient_accumulation_steps={min(2, train.gradient_accumulation_steps)}"]
    overrides += [f"dit.train.sequence_parallel={min(2, train.sequence_parallel)}"]
    overrides += ["encode.text.max_tokens=16"] if whole.encode.text else []
    return load(name, text_encoder, *overrides)


def write_latents(folder: Path, config: RunConfig) -> None:
    """Random latents and embeddings of captions, as stage encode leaves them."""
    bucket, samples = config.data.buckets[0], []
    mask = torch.ones(1, 16, dtype=torch.bool)
    for number in range(NUM_CLIPS):
        tensors = {LATENT_TENSOR: randomness.normal(0, "presets", [number], (16, *bucket.latent_grid()))[0]}
        embedded = CaptionEmbeddings(randomness.normal(0, "captions", [number], (16, TEXT_WIDTH)), mask)
        samples.append((made_up_clip(number, bucket), save(tensors | text_tensors(embedded)[0])))
    _, rows = write_shard(folder / "shard-00000.tar", samples, LATENT_MEMBER)
    write_index(folder, rows)
    empty = CaptionEmbeddings(torch.zeros(1, 16, TEXT_WIDTH), mask)
    save_file(text_tensors(empty)[0], folder / NULL_CAPTION_NAME)
    save_file({"x": torch.zeros(1)}, folder / "autoencoder.safetensors")


def run_two_steps(worker: Worker, task: AutoencoderTask | FlowTask, config: TrainConfig, folder: Path) -> None:
    train(task, config, folder, worker)


def test_two_steps_of_each_run_at_reduced_width(text_encoder, tmp_path):
    jobs = []
    for name in GPUS:
        config, whole = reduced(name, text_encoder), load(name, text_encoder)
        latents, clips = tmp_path / f"{name}-latents", tmp_path / f"{name}-clips"
        for folder in (latents, clips):
            folder.mkdir()
        write_latents(latents, config)
        bucket = config.data.buckets[0]
        write_dataset(
            clips, [(made_up_clip(n, bucket), colour_clip(bucket, (40 * n, 90, 9))) for n in range(NUM_CLIPS)]
        )
        for trained in trainings(config):
            task = trained.task
            if isinstance(task, FlowTask):
                kept = {"activation_checkpointing", "zero_stage", "schedule", "ema", "weight_precision", "offload"}
                assert all(getattr(trained.train, field) == getattr(whole.dit.train, field) for field in kept)
                task = replace(task, dataset_dir=latents, autoencoder_path=latents / "autoencoder.safetensors")
            else:
                task = replace(task, dataset_dir=clips)
            settings = trained.train.model_copy(update=TWO_STEPS)
            run_dir = tmp_path / f"{name}-{task.kind}"
            workers = config.cluster.workers.num_workers
            jobs.append(Job(workers, run_two_steps, (task, settings, run_dir)))
    run_jobs(jobs, tmp_path)
    assert len(jobs) == 5
    for *_, run_dir in (job.arguments for job in jobs):
        rows = read_metrics(run_dir)
        assert [row["step"] for row in rows] == [1, 2], run_dir
        assert np.isfinite([row["total"] for row in rows]).all(), run_dir
