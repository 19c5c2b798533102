"""Jobs for worker processes: trainings with monitoring, and checks of the averages that it uses."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

import pipeline.engine.zero
from data.dataset.buckets import Bucket
from data.dataset.clip import LATENT_MEMBER
from data.dataset.index import write_index
from data.dataset.shards import write_shard
from data.stream.loader import Stream
from models.autoencoder.config import AutoencoderConfig
from models.autoencoder.model import Autoencoder
from pipeline.distributed.collectives import from_every_rank
from pipeline.distributed.process_group import Worker
from pipeline.engine.ema import ShardedEma, averaged_weights
from pipeline.engine.zero import ZeroTrainer
from pipeline.run import randomness
from pipeline.train.build import build
from pipeline.train.config import TrainConfig
from pipeline.train.loop import train
from pipeline.train.tasks.flow import FlowTask
from testing.records import SMALL, made_up_clip
from testing.tiny import CONFIG, make_task

STILL = Bucket(num_frames=1, height=32, width=32, fps=8)

STAGES = (0, 1, 2, 3)

WATCHED = CONFIG.model_copy(
    update={
        "validate_every_steps": 3,
        "validation_clips": 7,
        "validate_weights": ("raw", "ema", "power-0.10"),
        "sample_every_steps": 4,
        "sample_weights": "power-0.10",
    }
)


def write_two_splits(folder: Path) -> None:
    """Twenty latents of two shapes; every third clip is held out."""
    folder.mkdir(parents=True)
    samples = []
    for number in range(20):
        bucket = STILL if number % 4 == 0 else SMALL
        split = "validation" if number % 3 == 0 else "train"
        record = made_up_clip(number, bucket).model_copy(update={"split": split})
        shape = (4, 1 if bucket == STILL else 2, 4, 4)
        samples.append((record, save({"mean": randomness.normal(0, "test", [number], shape)[0]})))
    _, rows = write_shard(folder / "shard-00000.tar", samples, LATENT_MEMBER)
    write_index(folder, rows)
    torch.manual_seed(3)
    config = AutoencoderConfig(latent_channels=4, width=8, deep_width=8)
    weights = Autoencoder(config).state_dict()
    save_file(weights, folder / "autoencoder.safetensors", metadata={"config": config.model_dump_json()})


def task_of(folder: Path) -> FlowTask:
    """The small task on latents of two shapes."""
    return replace(make_task(folder), buckets=(SMALL, STILL), sampling=(("steps", 4),))


def train_watched(worker: Worker, data: Path, run_dir: Path, stage: int, config: TrainConfig) -> None:
    """Run the training loop; ZeRO-3 partitions every parameter, however small."""
    pipeline.engine.zero.PERSISTENT_PARAMETERS = 0
    train(task_of(data), config.model_copy(update={"zero_stage": stage}), run_dir, worker)


def whole_average(task: FlowTask, trainer: ZeroTrainer, ema: ShardedEma, which: str) -> torch.nn.Module:
    """A plain module with averaged weights, assembled from the fragments of every rank."""
    module, average = task.build(), ema.of(which)
    parts = {fragment.name: (fragment.start, average[fragment.name]) for fragment in trainer.fragments}
    for own in from_every_rank(parts):
        for name, (start, values) in own.items():
            module.get_parameter(name).data.view(-1)[start : start + values.numel()] = values
    return module


class StopHereError(Exception):
    """Raised inside the block to test that it restores the weights."""


def compare_average(worker: Worker, data: Path, stage: int) -> None:
    """Inside `averaged_weights` the module has averaged weights; after it, weights and mode are restored."""
    pipeline.engine.zero.PERSISTENT_PARAMETERS = 0
    task = task_of(data)
    trainer, ema = build(task, CONFIG.model_copy(update={"zero_stage": stage}), worker)
    stream = Stream(
        task.subsets(), {SMALL.name: 4, STILL.name: 4}, seed=7, rank=worker.rank, world_size=worker.world_size
    )
    batches = stream.batches(0, task.collate, readers=0)
    for step in range(1, 4):
        trainer.step([next(batches)], 3e-3)
        ema.update(step)
    probe = next(batches)
    before = {held.name: held.master.clone() for held in trainer.local_fragments}
    raw = trainer.evaluate(probe)
    averages = {}
    for which in ("ema", "power-0.10"):
        with torch.no_grad():
            expected = whole_average(task, trainer, ema, which).eval()(probe)
        with averaged_weights(trainer, ema, which):
            averages[which] = trainer.evaluate(probe)
        assert all(torch.equal(averages[which][name], expected[name]) for name in expected)
    with pytest.raises(StopHereError), averaged_weights(trainer, ema):
        raise StopHereError
    again = trainer.evaluate(probe)
    assert len({float(losses["total"]) for losses in (*averages.values(), raw)}) == 3
    assert all(torch.equal(again[name], raw[name]) for name in raw)
    assert all(torch.equal(held.master, before[held.name]) for held in trainer.local_fragments)
    assert trainer.engine.module.training
    batches.close()
