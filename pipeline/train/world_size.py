"""Numbers of workers that can share the batches of every bucket evenly."""

import math
from collections.abc import Iterable, Mapping

from data.dataset.buckets import Bucket
from pipeline.distributed.config import WorldSizeError
from pipeline.train.batches import turn_sizes
from pipeline.train.config import TrainConfig


def fitting_worlds(config: TrainConfig, buckets: Iterable[Bucket], most: int) -> list[int]:
    """The numbers of workers up to `most` that share the batches of every bucket evenly."""
    sizes = [config.global_batch, *turn_sizes(config, buckets).values()]
    group_size, accumulation = config.sequence_parallel, config.gradient_accumulation_steps
    return [
        number
        for number in range(group_size, most + 1, group_size)
        if all(size % (number // group_size * accumulation) == 0 for size in sizes)
    ]


def check_world(sizes: Mapping[str, int], num_micro_batches: int, multiple: int) -> None:
    """Refuse batch sizes that do not divide into equal micro-batches.

    Args:
        sizes: clips per turn, by bucket.
        num_micro_batches: workers (or sequence groups) times gradient accumulation steps.
        multiple: the configured `batch_multiple`.

    Raises:
        WorldSizeError: names the bucket and a `batch_multiple` that fits.
    """
    for bucket, size in sizes.items():
        if size % num_micro_batches:
            raise WorldSizeError(
                f"batches of bucket {bucket} hold {size} clips, which do not divide over {num_micro_batches} workers "
                f"(times train.gradient_accumulation_steps): set train.batch_multiple (it is {multiple}) to "
                f"{math.lcm(multiple, num_micro_batches)}"
            )
