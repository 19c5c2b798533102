"""The order of the samples of a training run, as a pure function of (seed, position).

Every position is computed directly, without replaying what came before, so a run resumes at any position at once, on
any number of workers. Three orders are nested.

- Turns (`Interleave`): buckets alternate by turns, and within a bucket datasets alternate by samples, in proportion to
  their weights.
- Epochs (`ShuffledEpochs`): the samples of one dataset in one bucket are drawn without replacement, in a new order each
  epoch. Shards are shuffled, and samples are shuffled within blocks of shards, so that reads stay local.
- Batches (`BatchPlan`): a turn takes its bucket's next samples. It may span the end of an epoch, so no sample is
  dropped. Global batch k is one turn; or, where buckets are mixed, the turns that together have the tokens of a step.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import lcm
from typing import NamedTuple

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
        if not len(positions):
            return positions.copy()
        first, last = int(positions.min()), int(positions.max())
        epoch, place = divmod(first, self.num_samples)
        _, starts = self._shards(epoch)
        block = int(np.searchsorted(starts, place, side="right")) - 1
        end = starts[block + 1] if block + 1 < len(starts) else self.num_samples
        if last - first < end - place:  # all are in one block: a faster path for the most common case
            return self._block(epoch, block)[positions - (first - place + starts[block])]
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
class TokenBudget:
    """Steps that mix buckets: each takes turns, of any bucket, until it has its tokens."""

    per_step: int
    of_sample: Mapping[str, int]
    """Tokens of a sample of each bucket, in the unit of `per_step`."""


class Address(NamedTuple):
    """A slot of a turn: its position in the run, and its sample."""

    position: int  # number of samples before it since the start of the run
    part: int
    sample: int  # number within the part, through its shards


class BatchPlan:
    """The global batches of a run, each of one turn of a bucket; or, with a budget, of several turns.

    With a budget of T tokens a step, step k begins with the first turn that has at least k T tokens before it. So every
    step has T tokens, but for a part of one turn at each end, and over any number of steps every bucket has its share.

    Args:
        turn_sizes: number of samples in a turn of each bucket.
        budget: None: a step is a turn.

    Raises:
        ValueError: a part has no samples or no share, or its bucket has no turn size; a turn has more tokens than the
            budget of a step.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        turn_sizes: Mapping[str, int],
        seed: int,
        block_shards: int = BLOCK_SHARDS,
        budget: TokenBudget | None = None,
    ) -> None:
        for number, part in enumerate(parts):
            if sum(part.shard_sizes) < 1 or part.share <= 0:
                raise ValueError(
                    f"part {number} of the data has {sum(part.shard_sizes)} samples and share {part.share}"
                )
            if part.bucket not in turn_sizes:
                raise ValueError(f"no batch size for bucket {part.bucket}; there are {', '.join(turn_sizes)}")
        self._buckets = sorted({part.bucket for part in parts})
        self._sizes = [turn_sizes[bucket] for bucket in self._buckets]
        self._budget = budget
        self._tokens = [] if budget is None else [turn_sizes[name] * budget.of_sample[name] for name in self._buckets]
        if budget is not None and max(self._tokens) > budget.per_step:
            raise ValueError(f"a turn has {max(self._tokens)} tokens, more than the {budget.per_step} of a step")
        self._members = [[i for i, part in enumerate(parts) if part.bucket == bucket] for bucket in self._buckets]
        shares = [[Fraction(parts[i].share) for i in members] for members in self._members]
        self._bucket_turns = _interleave(
            [sum(own, Fraction()) / size for own, size in zip(shares, self._sizes, strict=True)]
        )
        self._part_turns = [_interleave(own) for own in shares]
        self._epochs = [
            ShuffledEpochs(part.shard_sizes, seed, f"part {number}", block_shards) for number, part in enumerate(parts)
        ]

    def turns(self, step: int) -> range:
        """The turns of global batch `step`, at least one."""
        return range(self._first_turn(step), self._first_turn(step + 1))

    def _first_turn(self, step: int) -> int:
        if self._budget is None:
            return step
        tokens = step * self._budget.per_step
        most = -(-tokens // min(self._tokens))  # turns that have so many tokens whatever their buckets are
        return bisect_left(range(most), tokens, key=lambda turn: self._total(self._tokens, turn))

    def _total(self, of_buckets: list[int], turn: int) -> int:
        """The sum over all turns before `turn` of what a turn of each bucket has."""
        return sum(n * each for n, each in zip(self._bucket_turns.counts(turn), of_buckets, strict=True))

    def cursor(self, step: int) -> int:
        """Number of samples before global batch `step`."""
        return self._total(self._sizes, self._first_turn(step))

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

    def num_samples(self, step: int) -> dict[str, int]:
        """How many samples of each of its buckets a global batch has, the same on every rank."""
        numbers: Counter[str] = Counter()
        for turn in self.turns(step):
            numbers[self.bucket(turn)] += self.turn_size(turn)
        return dict(numbers)

    def batch_size(self, step: int) -> int:
        """Number of samples in global batch `step`."""
        return self.cursor(step + 1) - self.cursor(step)

    def bucket(self, turn: int) -> str:
        """The bucket that has a turn."""
        return self._buckets[self._bucket_turns.turn(turn)[0]]

    def turn_size(self, turn: int) -> int:
        """Number of samples of a turn."""
        return self._sizes[self._bucket_turns.turn(turn)[0]]

    def addresses(self, turn: int, slots: range) -> list[Address]:
        """The samples of some slots of a turn. Slots beyond its end continue with the bucket's next samples."""
        bucket, earlier = self._bucket_turns.turn(turn)
        members, first = self._members[bucket], earlier * self._sizes[bucket]
        start = self._total(self._sizes, turn)
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


def _interleave(shares: Sequence[Fraction]) -> Interleave:
    """Turns in proportion to fractions, exactly."""
    unit = lcm(*(share.denominator for share in shares))
    return Interleave(tuple(int(share * unit) for share in shares))
