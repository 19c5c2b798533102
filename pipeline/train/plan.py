"""What a training is going to do, in a few lines: steps, batches, and how many workers may take part."""

from collections.abc import Collection, Sequence
from math import prod
from typing import TYPE_CHECKING

from data.dataset.buckets import Bucket
from data.dataset.compression import Compression
from pipeline.distributed.config import WorldSizeError, num_participating
from pipeline.train.batches import turn_sizes
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
    sizes = turn_sizes(train, buckets)
    if train.mixed_buckets and len(sizes) > 1:
        each = " and ".join(f"{number} ({name})" for name, number in tokens.items())
        total = train.global_batch * max(tokens.values())
        return f"{train.steps} steps of {total} tokens, in clips of {each} tokens, packed together"
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
    if train.mixed_buckets:
        return _describe_mixed(subsets, train)
    sizes = turn_sizes(train, [subset.bucket for subset in subsets])
    steps = [subset.part().share / sizes[subset.bucket.name] for subset in subsets]
    return [
        f"  {subset.bucket.name:16} {subset.rows[0].dataset:12} {len(subset.rows):9,} clips, each {subset.weight:g} x "
        f"an epoch, {sizes[subset.bucket.name]:5} a batch, {share / sum(steps):6.1%} of the steps"
        for subset, share in zip(subsets, steps, strict=True)
    ]


def _describe_mixed(subsets: "Sequence[Subset]", train: TrainConfig) -> list[str]:
    tokens = [subset.bucket.num_latent_positions for subset in subsets]
    shares = [subset.part().share for subset in subsets]
    all_tokens = sum(share * each for share, each in zip(shares, tokens, strict=True))
    clips_a_step = [train.global_batch * max(tokens) * share / all_tokens for share in shares]
    return [
        f"  {subset.bucket.name:16} {subset.rows[0].dataset:12} {len(subset.rows):9,} clips, each {subset.weight:g} x "
        f"an epoch, {number:7.1f} a step, {share * each / all_tokens:6.1%} of the tokens"
        for subset, number, share, each in zip(subsets, clips_a_step, shares, tokens, strict=True)
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
