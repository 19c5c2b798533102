"""Which numbers of workers can share the batches."""

import math
from collections.abc import Iterable, Mapping

from data.dataset.buckets import Bucket, batch_sizes
from pipeline.distributed.config import WorldSizeError
from pipeline.train.config import TrainConfig


def fitting_worlds(config: TrainConfig, buckets: Iterable[Bucket], most: int) -> list[int]:
    """The numbers of workers up to `most` that share the batches of every bucket evenly."""
    sizes = [config.global_batch, *batch_sizes(buckets, config.global_batch, config.batch_multiple).values()]
    together, pieces = config.sequence_parallel, config.accumulate
    return [
        number
        for number in range(together, most + 1, together)
        if all(size % (number // together * pieces) == 0 for size in sizes)
    ]


def check_world(sizes: Mapping[str, int], num_pieces: int, multiple: int) -> None:
    """Refuse a world that cannot share the batches of every bucket.

    Raises:
        WorldSizeError: names the bucket and the way out.
    """
    for bucket, size in sizes.items():
        if size % num_pieces:
            raise WorldSizeError(
                f"batches of bucket {bucket} hold {size} clips, which do not divide over {num_pieces} workers (or "
                f"pieces, with train.accumulate): set train.batch_multiple (it is {multiple}) to "
                f"{math.lcm(multiple, num_pieces)}"
            )
