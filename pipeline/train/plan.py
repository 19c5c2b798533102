"""What a training is going to do, in a few lines: steps, batches, and how many workers may take part."""

from collections.abc import Collection, Sequence
from math import prod
from typing import TYPE_CHECKING

from data.dataset.buckets import Bucket, batch_sizes
from data.dataset.compression import Compression
from pipeline.distributed.config import WorldSizeError, num_participating
from pipeline.train.config import TrainConfig

if TYPE_CHECKING:
    from data.stream.loader import Subset


def describe_steps(
    train: TrainConfig, buckets: Sequence[Bucket] | None, patch_size: int, compression: Compression
) -> str:
    """How many steps, of how many clips and tokens.

    Args:
        buckets: None where they will be chosen from the videos.
        patch_size: side of the DiT's patches, in latent pixels.
        compression: of the autoencoder.
    """
    if buckets is None:
        return f"{train.steps} steps of {train.global_batch} clips of the largest bucket, or as many tokens of another"
    tokens = {bucket.name: prod(bucket.latent_grid(compression)) // patch_size**2 for bucket in buckets}
    sizes = batch_sizes(buckets, train.global_batch, train.batch_multiple)
    batches = [
        f"{size} clips of {tokens[name]} tokens" + (f" ({name})" if len(sizes) > 1 else "")
        for name, size in sizes.items()
    ]
    return f"{train.steps} steps of {' or '.join(batches)}"


def describe_batches(subsets: "Sequence[Subset]", train: TrainConfig) -> list[str]:
    """A line for each bucket of each dataset: its clips, its batch size, its share of the steps; none if there is one.

    An epoch has every clip, repeated only by its weight: batches continue across the ends of epochs.
    """
    if len(subsets) == 1:
        return []
    sizes = batch_sizes([subset.bucket for subset in subsets], train.global_batch, train.batch_multiple)
    steps = [subset.part().share / sizes[subset.bucket.name] for subset in subsets]
    return [
        f"  {subset.bucket.name:16} {subset.rows[0].dataset:12} {len(subset.rows):9,} clips, each {subset.weight:g} x "
        f"an epoch, {sizes[subset.bucket.name]:5} a batch, {share / sum(steps):6.1%} of the steps"
        for subset, share in zip(subsets, steps, strict=True)
    ]


def describe_elastic(name: str, fewest: int, most: int, fitting: Collection[int]) -> str:
    """How many workers take part where the cluster has room for `fewest` to `most`.

    Args:
        name: of the stage.
        fitting: the numbers of workers that share every batch evenly.

    Raises:
        WorldSizeError: `fewest` workers cannot share every batch; names the nearest number that can.
    """
    if fewest not in fitting:
        nearest = min(fitting, key=lambda number: abs(number - fewest), default=most)
        raise WorldSizeError(
            f"cluster.workers.min_workers is {fewest}, but the batches of {name} do not divide over so many: "
            f"use {nearest}"
        )
    parts = []
    for number in range(fewest, most + 1):
        used = num_participating(number, fitting)
        parts.append(f"{number}" if used == number else f"{number} ({used} work, {number - used} wait)")
    return f"  elastic: {name} continues with {', '.join(parts)} workers, whatever the cluster has room for"
