"""The deterministic stream: the samples of each batch, read ahead by threads, in the order of `data/plan`.

The state of the stream is one integer, the cursor: how many samples the run has consumed. Global batch k holds the same
samples on one worker or on sixty-four, with one reader or many, before and after any restart.
"""

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TypeVar

from data.dataset.buckets import Bucket
from data.dataset.index import IndexRow, Place, chosen, place_of, shape_of, values
from data.dataset.reader import PayloadReader
from data.errors import DatasetError
from data.stream.buffers import BufferPool
from data.stream.cache import ShardCache
from data.stream.config import CacheConfig
from data.stream.plan import Address, BatchPlan, Part

T = TypeVar("T")
MAX_SUBSTITUTES = 8


@dataclass(frozen=True)
class Sample:
    """One element of a batch: its place in the run's stream, which sample it is, and its payload."""

    position: int  # global sample index since the start of the run; what randomness is addressed by
    rows: Sequence[IndexRow]
    number: int  # in `rows`
    payload: bytes | memoryview  # of memory that is this batch's own

    @property
    def row(self) -> IndexRow:
        """What is known of the sample; made when it is asked for."""
        return self.rows[self.number]


@dataclass(frozen=True)
class Subset:
    """Samples of one dataset that share a bucket, shard by shard."""

    dataset_dir: Path
    rows: Sequence[IndexRow]
    bucket: Bucket
    weight: float = 1.0  # how often each sample is seen, beside those of other subsets

    def part(self) -> Part:
        """What the plan needs to know."""
        sizes = tuple(sum(1 for _ in shard) for _, shard in groupby(values(self.rows, "shard")))
        return Part(self.bucket.name, sizes, self.weight * len(self.rows))


def subsets_of(dataset_dir: Path, rows: Sequence[IndexRow], weights: Mapping[str, float]) -> list[Subset]:
    """Samples of a dataset by shape and, in a mix, by the dataset they come from.

    Args:
        rows: in order of the shards.
        weights: of the datasets of the mix, by name; 1 where none is given.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for number, group in enumerate(zip(values(rows, "bucket"), values(rows, "dataset"), strict=True)):
        groups.setdefault(group, []).append(number)
    return [
        Subset(dataset_dir, chosen(rows, groups[group]), shape_of(rows[groups[group][0]]), weights.get(group[1], 1.0))
        for group in sorted(groups)
    ]


@dataclass(frozen=True)
class SkippedSample:
    """A sample that could not be read; another took its place in the batch."""

    position: int
    key: str
    reason: str


def local_slots(batch_size: int, rank: int, world_size: int) -> range:
    """The slots of a global batch that belong to `rank`: a contiguous slice.

    Raises:
        ValueError: the batch does not divide over the workers.
    """
    micro_batch, remainder = divmod(batch_size, world_size)
    if remainder:
        raise ValueError(f"a global batch of {batch_size} does not divide over {world_size} workers")
    return range(rank * micro_batch, (rank + 1) * micro_batch)


def check_shards(subset: Subset) -> None:
    """Look at every shard before the first step, rather than find out in the night.

    Raises:
        DatasetError: a subset is empty, or a shard is missing or shorter than its index says.
    """
    if not subset.rows:
        raise DatasetError(f"{subset.dataset_dir} has no samples to train on")
    places = zip(*(values(subset.rows, name) for name in ("shard", "offset", "size")), strict=True)
    for shard, here in groupby(places, key=itemgetter(0)):
        path, needed = subset.dataset_dir / shard, max(offset + size for _, offset, size in here)
        if not path.is_file():
            raise DatasetError(f"{path} is missing although the index names it; make {subset.dataset_dir} again")
        if path.stat().st_size < needed:
            raise DatasetError(
                f"{path} is cut short: the index needs {needed} bytes, it has {path.stat().st_size}; "
                f"make {subset.dataset_dir} again"
            )


class Stream:
    """Global batches of some subsets, one rank's slice of each, read ahead.

    A sample that turns out unreadable is replaced by the one that its slot would hold one batch later (of that bucket),
    which every rank can tell alone, and is told by `take_skipped`.

    Raises:
        CacheError: see `ShardCache`.
        DatasetError: see `check_shards`.
        ValueError: a batch does not divide over the workers, or see `BatchPlan`.
    """

    def __init__(
        self,
        subsets: Sequence[Subset],
        batch_sizes: Mapping[str, int],
        *,
        seed: int,
        rank: int,
        world_size: int,
        cache: CacheConfig | None = None,
    ) -> None:
        for subset in subsets:
            check_shards(subset)
        for batch_size in batch_sizes.values():
            local_slots(batch_size, rank, world_size)
        self._subsets = subsets
        self._rank, self._world_size = rank, world_size
        self.plan = BatchPlan([subset.part() for subset in subsets], dict(batch_sizes), seed)
        self._cache = None if cache is None else ShardCache(cache.folder, cache.limit_bytes)
        self._memory = BufferPool()
        self.buckets = {subset.bucket.name: subset.bucket for subset in subsets}
        self._skipped: deque[SkippedSample] = deque()

    def batches(
        self, cursor: int, prepare: Callable[[list[Sample]], T], readers: int = 1, ahead: int = 4
    ) -> Generator[T]:
        """Endless batches from `cursor` on, each passed through `prepare` in the thread that read it.

        An error in a thread is raised here, at the batch it belongs to.

        Args:
            readers: threads; 0 reads in the caller's. ahead: batches kept ready.
        """
        step = self.plan.step(cursor)
        opened = [PayloadReader(subset.dataset_dir, verify=True, cache=self._cache) for subset in self._subsets]

        def make(number: int) -> T:
            return prepare(self._read(opened, number))

        pool = ThreadPoolExecutor(max(1, readers), thread_name_prefix="reelflow-loader")
        waiting: deque[Future[T]] = deque()
        try:
            while True:
                if readers == 0:
                    yield make(step)
                    step += 1
                    continue
                while len(waiting) < max(ahead, readers):
                    waiting.append(pool.submit(make, step))
                    step += 1
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
            for reader in opened:
                reader.close()

    def rows(self, step: int) -> list[IndexRow]:
        """The samples of this rank's slice of a global batch, whether or not they can be read."""
        slots = local_slots(self.plan.batch_size(step), self._rank, self._world_size)
        return [self._subsets[address.part].rows[address.sample] for address in self.plan.addresses(step, slots)]

    def take_skipped(self) -> list[SkippedSample]:
        """What was skipped since the last call."""
        return [self._skipped.popleft() for _ in range(len(self._skipped))]

    def _read(self, readers: list[PayloadReader], step: int) -> list[Sample]:
        """The samples of a batch, in one piece of memory in the order of their slots (but for substitutes)."""
        slots = local_slots(self.plan.batch_size(step), self._rank, self._world_size)
        addresses = self.plan.addresses(step, slots)
        places = [place_of(self._subsets[address.part].rows, address.sample) for address in addresses]
        memory, samples = self._memory.take(sum(place.size for place in places)), []
        for slot, address, place in zip(slots, addresses, places, strict=True):
            payload, memory = memory[: place.size], memory[place.size :]
            samples.append(self._read_or_substitute(readers, step, slot, address, place, payload))
        return samples

    def _read_or_substitute(
        self,
        readers: list[PayloadReader],
        step: int,
        slot: int,
        address: Address,
        place: Place,
        payload: memoryview,
    ) -> Sample:
        position, reason = address.position, ""
        for _ in range(MAX_SUBSTITUTES):
            try:
                readers[address.part].read_into(place, payload)
                return Sample(position, self._subsets[address.part].rows, address.sample, payload)
            except DatasetError as error:
                reason = str(error)
                self._skipped.append(SkippedSample(position, place.key, reason))
            slot += self.plan.batch_size(step)
            (address,) = self.plan.addresses(step, range(slot, slot + 1))
            place = place_of(self._subsets[address.part].rows, address.sample)
            payload = self._memory.take(place.size)
        raise DatasetError(f"{MAX_SUBSTITUTES} samples in a row cannot be read, the last one because {reason}")
