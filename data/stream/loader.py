"""The deterministic stream of batches, in the order of `BatchPlan`, read ahead by threads.

Its state is one integer, the cursor: how many samples the run has consumed. Global batch k contains the same samples
for any number of workers and reader threads, and after any restart.
"""

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple, TypeVar

from data.dataset.buckets import Bucket
from data.dataset.index import by_group, cell_of, location_of, shard_runs
from data.dataset.parts import num_bytes_of
from data.dataset.reader import PayloadReader
from data.dataset.rows import IndexRow, shape_of
from data.errors import DatasetError
from data.stream.buffers import BufferPool
from data.stream.cache import ShardCache
from data.stream.config import CacheConfig
from data.stream.plan import Address, BatchPlan, Part, TokenBudget

T = TypeVar("T")
MAX_SUBSTITUTES = 8


class Sample(NamedTuple):
    """An element of a batch: its position in the stream, its row and its payload."""

    position: int  # global sample index since the start of the run; addresses all randomness of the sample
    rows: Sequence[IndexRow]
    number: int  # of its row in `rows`
    payload: bytes | memoryview  # in memory that only this batch uses

    @property
    def row(self) -> IndexRow:
        """The metadata of the sample; the row object is made when it is asked for."""
        return self.rows[self.number]

    @property
    def caption(self) -> str:
        """The caption, without making the row."""
        return cell_of(self.rows, self.number, "caption")

    @property
    def bucket(self) -> str:
        """The name of the shape, without making the row."""
        return cell_of(self.rows, self.number, "bucket")

    @property
    def fps(self) -> float:
        """The frame rate, without making the row."""
        return cell_of(self.rows, self.number, "fps")


@dataclass(frozen=True)
class Subset:
    """Samples of one dataset that share a bucket, in the order of the shards."""

    dataset_dir: Path
    rows: Sequence[IndexRow]
    bucket: Bucket
    weight: float = 1.0  # how often each sample is seen, relative to a sample of a subset of weight 1

    def part(self) -> Part:
        """The description of the subset that `BatchPlan` takes."""
        sizes = tuple(run.num_rows for run in shard_runs(self.rows))
        return Part(self.bucket.name, sizes, self.weight * len(self.rows))


def subsets_of(dataset_dir: Path, rows: Sequence[IndexRow], weights: Mapping[str, float]) -> list[Subset]:
    """The samples of a dataset, grouped by shape and, in a mix, by the dataset that they come from.

    Args:
        rows: in the order of the shards.
        weights: of the datasets of the mix, by name; 1 if none is given.
    """
    return [
        Subset(dataset_dir, group, shape_of(group[0]), weights.get(dataset, 1.0))
        for (_, dataset), group in by_group(rows).items()
    ]


@dataclass(frozen=True)
class SkippedSample:
    """A sample that could not be read and was replaced in its batch."""

    position: int
    key: str
    reason: str


def local_slots(batch_size: int, rank: int, world_size: int) -> range:
    """The slots of a turn of a global batch that belong to `rank`: a contiguous range.

    Raises:
        ValueError: the batch size is not a multiple of the number of workers.
    """
    micro_batch, remainder = divmod(batch_size, world_size)
    if remainder:
        raise ValueError(f"a global batch of {batch_size} does not divide over {world_size} workers")
    return range(rank * micro_batch, (rank + 1) * micro_batch)


def check_shards(subsets: Sequence[Subset]) -> None:
    """Check before the first step that every shard exists and has the size that the index implies.

    Raises:
        DatasetError: a subset is empty, or a shard is missing or too short.
    """
    needed: dict[tuple[Path, str], int] = {}
    for subset in subsets:
        if not subset.rows:
            raise DatasetError(f"{subset.dataset_dir} has no samples to train on")
        for run in shard_runs(subset.rows):
            shard = (subset.dataset_dir, run.shard)
            needed[shard] = max(needed.get(shard, 0), run.num_bytes)
    for (folder, name), num_bytes in needed.items():
        path = folder / name
        try:
            state = path.stat()
            size = state.st_size if S_ISREG(state.st_mode) else None
        except FileNotFoundError:
            size = num_bytes_of(path)
        if size is None:
            raise DatasetError(f"{path} is missing although the index names it; make {folder} again")
        if size < num_bytes:
            raise DatasetError(
                f"{path} is cut short: the index needs {num_bytes} bytes, it has {size}; make {folder} again"
            )


class Stream:
    """This rank's part of every global batch of some subsets, read ahead: an equal part of every turn of it.

    A sample that cannot be read is replaced by the sample of the same slot one turn (of that bucket) later, which
    needs no communication between ranks. `take_skipped` reports it.

    Args:
        turn_sizes, budget: as `BatchPlan`.

    Raises:
        CacheError: as `ShardCache`.
        DatasetError: as `check_shards`.
        ValueError: as `local_slots` and `BatchPlan`.
    """

    def __init__(
        self,
        subsets: Sequence[Subset],
        turn_sizes: Mapping[str, int],
        *,
        seed: int,
        rank: int,
        world_size: int,
        cache: CacheConfig | None = None,
        budget: TokenBudget | None = None,
    ) -> None:
        check_shards(subsets)
        for size in turn_sizes.values():
            local_slots(size, rank, world_size)
        self._subsets = subsets
        self._rank, self._world_size = rank, world_size
        self.plan = BatchPlan([subset.part() for subset in subsets], turn_sizes, seed, budget=budget)
        self._cache = None if cache is None else ShardCache(cache.folder, cache.limit_bytes)
        self._memory = BufferPool()
        self.buckets = {subset.bucket.name: subset.bucket for subset in subsets}
        self._skipped: deque[SkippedSample] = deque()
        self._not_taken: list[SkippedSample] = []
        self.num_samples = sum(len(subset.rows) for subset in subsets)

    def batches(
        self, cursor: int, prepare: Callable[[list[Sample]], T], readers: int = 1, ahead: int = 4
    ) -> Generator[T]:
        """Endless batches from `cursor` on, each converted by `prepare` in the thread that read it.

        An error in a thread is raised here, in place of the batch it belongs to.

        Args:
            readers: number of threads; 0 reads in the thread of the caller.
            ahead: number of batches that are read ahead.
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
        """The rows of this rank's part of a global batch, whether or not they can be read."""
        return [self._subsets[address.part].rows[address.sample] for _, _, address in self._own(step)]

    def _own(self, step: int) -> list[tuple[int, int, Address]]:
        """Turn, slot and address of the samples of this rank's part of a global batch."""
        own = []
        for turn in self.plan.turns(step):
            slots = local_slots(self.plan.turn_size(turn), self._rank, self._world_size)
            addresses = self.plan.addresses(turn, slots)
            own += [(turn, slot, address) for slot, address in zip(slots, addresses, strict=True)]
        return own

    def has_skipped(self, cursor: int) -> bool:
        """Whether `take_skipped` would return any sample."""
        self._not_taken += [self._skipped.popleft() for _ in range(len(self._skipped))]
        return any(sample.position < cursor for sample in self._not_taken)

    def take_skipped(self, cursor: int) -> list[SkippedSample]:
        """The samples before position `cursor` that were skipped since the last call, by position.

        Batches that were read ahead, which depends on timing, are left for a later call.
        """
        self.has_skipped(cursor)
        taken = sorted((s for s in self._not_taken if s.position < cursor), key=lambda sample: sample.position)
        self._not_taken = [sample for sample in self._not_taken if sample.position >= cursor]
        return taken

    def _read(self, readers: list[PayloadReader], step: int) -> list[Sample]:
        """The samples of a batch; their payloads are consecutive in one buffer, except those of substitutes."""
        own, subsets = self._own(step), self._subsets
        locations = [location_of(subsets[address.part].rows, address.sample) for _, _, address in own]
        memory, begin, samples = self._memory.take(sum(location.size for location in locations)), 0, []
        for (turn, slot, address), location in zip(own, locations, strict=True):
            position, part, number = address
            payload = memory[begin : begin + location.size]
            begin += location.size
            try:
                readers[part].read_into(location, payload)
                samples.append(Sample(position, subsets[part].rows, number, payload))
            except DatasetError as error:
                self._skipped.append(SkippedSample(position, location.key, str(error)))
                samples.append(self._substitute(readers, turn, slot, position))
        return samples

    def _substitute(self, readers: list[PayloadReader], turn: int, slot: int, position: int) -> Sample:
        """The first sample that can be read of those that would take the slot later."""
        reason = self._skipped[-1].reason
        for _ in range(MAX_SUBSTITUTES - 1):
            slot += self.plan.turn_size(turn)
            (address,) = self.plan.addresses(turn, range(slot, slot + 1))
            rows = self._subsets[address.part].rows
            location = location_of(rows, address.sample)
            payload = self._memory.take(location.size)
            try:
                readers[address.part].read_into(location, payload)
                return Sample(position, rows, address.sample, payload)
            except DatasetError as error:
                reason = str(error)
                self._skipped.append(SkippedSample(position, location.key, reason))
        raise DatasetError(f"{MAX_SUBSTITUTES} samples in a row cannot be read, the last one because {reason}")
