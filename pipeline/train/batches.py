"""How the clips of a step are chosen: buckets in turn, or mixed."""

from collections.abc import Iterable

from data.dataset.buckets import Bucket, batch_sizes
from data.stream.plan import TokenBudget
from pipeline.distributed.config import WorldSizeError
from pipeline.train.config import TrainConfig


def turn_sizes(config: TrainConfig, buckets: Iterable[Bucket]) -> dict[str, int]:
    """Clips in a turn of each bucket, by name: a whole step, or with mixed buckets a small part of one."""
    if config.mixed_buckets:
        return {bucket.name: config.batch_multiple for bucket in buckets}
    return batch_sizes(buckets, config.global_batch, config.batch_multiple)


def token_budget(config: TrainConfig, buckets: Iterable[Bucket]) -> TokenBudget | None:
    """What a step holds with mixed buckets: the tokens of `global_batch` clips of the largest; None without.

    Tokens are counted as latent positions, to which those of any network are proportional.

    Raises:
        WorldSizeError: a step has not a turn for each bucket.
    """
    if not config.mixed_buckets:
        return None
    tokens = {bucket.name: bucket.num_latent_positions for bucket in buckets}
    check_mixed(config, len(tokens))
    return TokenBudget(config.global_batch * max(tokens.values()), tokens)


def check_mixed(config: TrainConfig, num_buckets: int) -> None:
    """Refuse steps that are too small to hold clips of each bucket.

    Raises:
        WorldSizeError: names the global batch that is large enough.
    """
    smallest = num_buckets * config.batch_multiple
    if config.mixed_buckets and config.global_batch < smallest:
        raise WorldSizeError(
            f"train.global_batch is {config.global_batch}, but with train.mixed_buckets a step must have room for "
            f"train.batch_multiple {config.batch_multiple} clips of each of {num_buckets} buckets: use {smallest}, or "
            "a lower train.batch_multiple that the workers divide"
        )
