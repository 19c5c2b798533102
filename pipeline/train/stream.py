"""The stream of batches of a training."""

import socket
from pathlib import Path
from typing import Any

from data.dataset.index import read_index
from data.errors import DatasetError
from data.stream.cache import CacheError
from data.stream.loader import Sample, Stream, Subset, subsets_of
from pipeline.checkpoint.record import CheckpointError
from pipeline.distributed.collectives import from_every_rank
from pipeline.engine.config import check_tokens
from pipeline.engine.zero import ZeroTrainer
from pipeline.train.batches import token_budget, turn_sizes
from pipeline.train.config import TrainConfig
from pipeline.train.task import TrainTask
from pipeline.train.world_size import check_world


def open_stream(task: TrainTask, config: TrainConfig, trainer: ZeroTrainer) -> Stream:
    """The stream of this rank's part of every global batch. Collective.

    Raises:
        CacheError: on every rank: a machine cannot write its cache of shards.
        SplitError: the workers of a sequence group cannot share a clip.
        WorldSizeError: the workers cannot share the batches of every bucket, or mixed ones have no room for all.
    """
    subsets = task.subsets()
    buckets = [subset.bucket for subset in subsets]
    sizes, budget = turn_sizes(config, buckets), token_budget(config, buckets)
    share, num_shares = trainer.data_rank, trainer.data_world_size
    check_world(sizes, num_shares * config.gradient_accumulation_steps, config.batch_multiple)
    for bucket in buckets:
        check_tokens(bucket.name, task.num_tokens(bucket) // bucket.latent_grid()[0], config.sequence_parallel)
    stream, problem = None, None
    try:
        stream = Stream(
            subsets, sizes, seed=task.seed, rank=share, world_size=num_shares, cache=config.cache, budget=budget
        )
    except CacheError as error:  # one machine's disk; raised on all ranks below, which would wait for this one
        problem = f"{error} (on {socket.gethostname()})"
    if problems := from_every_rank(problem):
        raise CacheError(problems[0])
    assert stream is not None
    return stream


def micro_batches(task: TrainTask, num_steps: int, samples: list[Sample]) -> list[Any]:
    """A rank's part of a global batch, as `num_steps` micro-batches with equally many clips of each bucket."""
    buckets: dict[str, list[Sample]] = {}
    for sample in samples:
        buckets.setdefault(sample.bucket, []).append(sample)
    by_bucket = [_collated(task, num_steps, buckets[name]) for name in sorted(buckets)]
    return by_bucket[0] if len(by_bucket) == 1 else [task.pack(list(parts)) for parts in zip(*by_bucket, strict=True)]


def _collated(task: TrainTask, num_batches: int, samples: list[Sample]) -> list[Any]:
    size = len(samples) // num_batches
    return [task.collate(samples[start : start + size]) for start in range(0, len(samples), size)]


def check_cursor(stream: Stream, step: int, cursor: int, run_dir: Path) -> None:
    """Refuse to resume if today's batch sizes would have consumed another number of samples in the steps so far.

    Raises:
        CheckpointError: names the settings to restore.
    """
    if (expected := stream.plan.cursor(step)) != cursor:
        raise CheckpointError(
            f"{run_dir} was saved after {step} steps and {cursor} samples, but batches as they are now would have "
            f"taken {expected}: restore train.global_batch, train.batch_multiple, train.mixed_buckets, data.mix and "
            "the data, or train in a new run"
        )


Weights = tuple[tuple[str, float], ...]
"""Of a mix: name of a dataset, and how often each of its samples is seen per epoch."""


def training_subsets(dataset_dir: Path, weights: Weights) -> list[Subset]:
    """The training split of a dataset, by bucket and dataset of the mix.

    Raises:
        DatasetError: the split is empty.
    """
    subsets = subsets_of(dataset_dir, read_index(dataset_dir, "train"), dict(weights))
    if not subsets:
        raise DatasetError(f"{dataset_dir} has no samples to train on; lower data.validation_fraction or add videos")
    return subsets
