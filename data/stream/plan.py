"""The order of the samples of a training run, as a pure function of (seed, position).

Every position is computed directly, without replaying what came before, so a run resumes at any position at once, on
any number of workers. Three orders are nested.

- Turns (`Interleave`): buckets alternate by steps, and within a bucket datasets alternate by samples, in proportion to
  their weights.
- Epochs (`ShuffledEpochs`): the samples of one dataset in one bucket are drawn without replacement, in a new order each
  epoch. Shards are shuffled, and samples are shuffled within blocks of shards, so that reads stay local.
- Batches (`BatchPlan`): global batch k consists of one bucket's next samples. A batch may span the end of an epoch, so
  no sample is dropped.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import lcm

import numpy as np
from jaxtyping import Int

BLOCK_SHARDS = 16  # number of shards within which samples are shuffled


@dataclass(frozen=True)
class Interleave:
    """Members that take turns in proportion to integer weights, every prefix as balanced as possible.

    The weights are halved recursively. At each split, with weights a of the left half and T of both, the left half has
    round(m a / T) of the first m turns. So the number of turns of any member within the first m is known directly.

    Raises:
        ValueError: there is no weight, or one is not positive.
    """

    weights: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.weights or min(self.weights) < 1:
            raise ValueError(f"expected positive integer weights, got {self.weights}")

    def counts(self, turns: int) -> list[int]:
        """How many of the first `turns` turns each member has had."""
        return _split(self.weights, turns)

    def turn(self, number: int) -> tuple[int, int]:
        """The member that has turn `number`, and how many turns it had before."""
        if len(self.weights) == 1:
            return 0, number
        before, after = self.counts(number), self.counts(number + 1)
        member = next(i for i, (old, new) in enumerate(zip(before, after, strict=True)) if new > old)
        return member, before[member]


def _split(weights: tuple[int, ...], turns: int) -> list[int]:
    if len(weights) == 1:
        return [turns]
    middle = len(weights) // 2
    left, total = sum(weights[:middle]), sum(weights)
    left_turns = (turns * left + total // 2) // total
    return _split(weights[:middle], left_turns) + _split(weights[middle:], turns - left_turns)


class ShuffledEpochs:
    """An endless order of the samples of some shards; every epoch contains each sample once.

    Memory: a few bytes per shard, and per sample of the blocks that are being read.

    Args:
        shard_sizes: number of samples of each shard.
        seed, purpose: address of the random order.
        block_shards: number of shards within which samples are shuffled.
    """

    def __init__(self, shard_sizes: Sequence[int], seed: int, purpose: str, block_shards: int = BLOCK_SHARDS) -> None:
        self._sizes = np.asarray(shard_sizes, dtype=np.int64)
        self._first = np.concatenate([[0], np.cumsum(self._sizes)])  # number of each shard's first sample
        self._key = [seed, *purpose.encode()]
        self._block_shards = block_shards
        self.num_samples = int(self._first[-1])
        self._shards = lru_cache(maxsize=2)(self._shuffle_shards)
        self._block = lru_cache(maxsize=4)(self._shuffle_block)

    def samples(self, positions: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The samples at positions of the endless order, numbered through the shards in their given order."""
        result = np.empty_like(positions)
        epochs, places = np.divmod(positions, self.num_samples)
        for epoch in set(epochs.tolist()):
            _, starts = self._shards(epoch)
            blocks = np.searchsorted(starts, places, side="right") - 1
            here = epochs == epoch
            for block in set(blocks[here].tolist()):
                chosen = here & (blocks == block)
                result[chosen] = self._block(epoch, block)[places[chosen] - starts[block]]
        return result

    def _shuffle_shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of the shards in an epoch, and the position in the epoch at which each block starts."""
        order = np.random.default_rng([*self._key, epoch]).permutation(len(self._sizes))
        return order, np.concatenate([[0], np.cumsum(self._sizes[order])[:-1]])[:: self._block_shards]

    def _shuffle_block(self, epoch: int, block: int) -> np.ndarray:
        """The samples of a block of an epoch, in their order."""
        order, _ = self._shards(epoch)
        shards = order[block * self._block_shards : (block + 1) * self._block_shards]
        ends = zip(self._first[shards].tolist(), self._first[shards + 1].tolist(), strict=True)
        samples = np.concatenate([np.arange(first, end) for first, end in ends])
        return np.random.default_rng([*self._key, epoch, block]).permutation(samples)


@dataclass(frozen=True)
class Part:
    """The samples of one dataset that share a bucket."""

    bucket: str
    shard_sizes: tuple[int, ...]
    share: float = 1.0
    """Relative share of the run's samples, in any unit; if it is the number of samples, all are seen equally often."""


@dataclass(frozen=True)
class Address:
    """A slot of a batch: its position in the run, and its sample."""

    position: int  # number of samples before it since the start of the run
    part: int
    sample: int  # number within the part, through its shards


class BatchPlan:
    """The global batches of a run.

    Args:
        batch_sizes: number of samples in a global batch of each bucket.

    Raises:
        ValueError: a part has no samples or no share, or its bucket has no batch size.
    """

    def __init__(
        self, parts: Sequence[Part], batch_sizes: dict[str, int], seed: int, block_shards: int = BLOCK_SHARDS
    ) -> None:
        for number, part in enumerate(parts):
            if sum(part.shard_sizes) < 1 or part.share <= 0:
                raise ValueError(
                    f"part {number} of the data has {sum(part.shard_sizes)} samples and share {part.share}"
                )
            if part.bucket not in batch_sizes:
                raise ValueError(f"no batch size for bucket {part.bucket}; there are {', '.join(batch_sizes)}")
        self._buckets = sorted({part.bucket for part in parts})
        self._sizes = [batch_sizes[bucket] for bucket in self._buckets]
        self._members = [[i for i, part in enumerate(parts) if part.bucket == bucket] for bucket in self._buckets]
        shares = [[Fraction(parts[i].share) for i in members] for members in self._members]
        self._bucket_turns = _interleave(
            [sum(own, Fraction()) / size for own, size in zip(shares, self._sizes, strict=True)]
        )
        self._part_turns = [_interleave(own) for own in shares]
        self._epochs = [
            ShuffledEpochs(part.shard_sizes, seed, f"part {number}", block_shards) for number, part in enumerate(parts)
        ]

    def cursor(self, step: int) -> int:
        """Number of samples before global batch `step`."""
        return sum(n * size for n, size in zip(self._bucket_turns.counts(step), self._sizes, strict=True))

    def step(self, cursor: int) -> int:
        """The inverse of `cursor`.

        Raises:
            ValueError: no batch begins at the cursor.
        """
        step = bisect_right(range(cursor + 2), cursor, key=self.cursor) - 1
        if self.cursor(step) != cursor:
            raise ValueError(
                f"no batch begins after {cursor} samples, the nearest before it after {self.cursor(step)}: "
                "the batch sizes differ from those that the cursor was counted with; restore them, or start a new run"
            )
        return step

    def bucket(self, step: int) -> str:
        """The bucket of a global batch, the same on every rank."""
        return self._buckets[self._bucket_turns.turn(step)[0]]

    def addresses(self, step: int, slots: range) -> list[Address]:
        """The samples of some slots of a global batch. Slots beyond its end continue with the bucket's next samples."""
        bucket, earlier = self._bucket_turns.turn(step)
        members, first = self._members[bucket], earlier * self._sizes[bucket]
        start = self.cursor(step)
        if len(members) == 1:  # a faster path for the most common case, with the same result
            places = first + np.arange(slots.start, slots.stop, slots.step)
            numbers = self._epochs[members[0]].samples(places).tolist()
            return [Address(start + slot, members[0], number) for slot, number in zip(slots, numbers, strict=True)]
        taken = [self._part_turns[bucket].turn(first + slot) for slot in slots]
        numbers = np.empty(len(taken), dtype=np.int64)
        owners = np.array([member for member, _ in taken])
        places = np.array([place for _, place in taken], dtype=np.int64)
        for owner in set(owners.tolist()):
            mine = owners == owner
            numbers[mine] = self._epochs[members[owner]].samples(places[mine])
        return [
            Address(start + slot, members[owner], number)
            for slot, owner, number in zip(slots, owners.tolist(), numbers.tolist(), strict=True)
        ]

    def batch_size(self, step: int) -> int:
        """Number of samples in global batch `step`."""
        return self._sizes[self._bucket_turns.turn(step)[0]]


def _interleave(shares: Sequence[Fraction]) -> Interleave:
    """Turns in proportion to fractions, exactly."""
    unit = lcm(*(share.denominator for share in shares))
    return Interleave(tuple(int(share * unit) for share in shares))
