"""A training of eight steps that takes about a second, for tests and benchmarks that need many."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from data.dataset.manifest import LatentStats
from data.dataset.reader import PayloadReader
from data.stream.loader import Sample
from models.flow.spec import FlowSpec
from models.networks.config import DiTConfig
from models.text.config import TextConfig
from pipeline.distributed.process_group import Worker
from pipeline.engine.ema_profile import FixedDecay, PowerFunction
from pipeline.train.config import TrainConfig
from pipeline.train.loop import train
from pipeline.train.monitor.metrics import read_metrics
from pipeline.train.tasks.flow import FlowTask
from pipeline.train.tasks.flow_batch import FlowBatch
from testing.records import SMALL, write_random_latents

SHAPE = (4, 2, 4, 4)
CONFIG = TrainConfig(
    steps=8,
    global_batch=4,
    learning_rate=3e-3,
    warmup_steps=2,
    precision="fp32",
    checkpoint_every_steps=4,
    log_every_steps=1,
    ema=(FixedDecay(decay=0.995), PowerFunction(sigma_rel=0.10)),
)
WEIGHTS = ("master", "decay-0.995", "power-0.10")


TINY_MODEL = DiTConfig(width=32, depth=1, heads=2, text=TextConfig(width=16, depth=1, heads=2, max_bytes=16))


def write_latents(folder: Path, num_samples: int = 10) -> None:
    """A latent shard with random values, and a file in place of the autoencoder."""
    write_random_latents(folder, num_samples, SHAPE, "test")
    save_file({"x": torch.zeros(1)}, folder / "autoencoder.safetensors")


MIXED_BUCKETS = (SMALL, SMALL.model_copy(update={"num_frames": 1}), SMALL.model_copy(update={"width": 64}))
MIXED = CONFIG.model_copy(update={"mixed_buckets": True, "global_batch": 12, "schedule": "constant"})


def write_mixed_latents(folder: Path, num_samples: int = 30) -> None:
    """A latent shard with random values in each of `MIXED_BUCKETS` in turn."""
    write_random_latents(folder, num_samples, SHAPE, "mixed", MIXED_BUCKETS)
    save_file({"x": torch.zeros(1)}, folder / "autoencoder.safetensors")


def make_task(folder: Path) -> FlowTask:
    """A small DiT on those latents."""
    return FlowTask(
        model=TINY_MODEL,
        flow=FlowSpec(caption_dropout=0.3),
        buckets=(SMALL,),
        latent_stats=LatentStats(mean=[0.1] * 4, std=[0.9] * 4),
        dataset_dir=folder,
        autoencoder_path=folder / "autoencoder.safetensors",
        seed=7,
    )


def train_tiny(worker: Worker, data: Path, run_dir: Path) -> None:
    """The training, as a worker of a group runs it."""
    train(make_task(data), CONFIG, run_dir, worker)


def batch_of(task: FlowTask, positions: range) -> FlowBatch:
    """The first three samples of a task in turn, at these positions of the stream."""
    rows, reader = task.subsets()[0].rows, PayloadReader(task.dataset_dir)
    samples = [Sample(position, rows, position % 3, reader.read(rows[position % 3])) for position in positions]
    return task.collate(samples)


def column(run_dir: Path, name: str) -> list[float]:
    """One field of every line of metrics."""
    return [row[name] for row in read_metrics(run_dir)]


def losses(run_dir: Path) -> list[float]:
    """The total loss of every logged step."""
    return [row["total"] for row in read_metrics(run_dir)]
