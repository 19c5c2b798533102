"""The deterministic stream: which sample comes when, and the thread that fetches it.

The state of the stream is one integer, the cursor: how many samples the run has consumed. Position
`i` of the stream belongs to epoch `i // n` and is a fixed place in that epoch's permutation, so global
batch k holds the same samples on one worker or on sixty-four, before and after any restart.
"""

import queue
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from data.shards import IndexRow, PayloadReader

T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """One element of a batch: its place in the run's stream, its index row, and its payload."""

    position: int  # global sample index since the start of the run; what randomness is addressed by
    row: IndexRow
    payload: bytes


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    """The permutation of epoch `epoch`: a pure function of its arguments."""
    return np.random.default_rng([seed, epoch]).permutation(num_samples)


def sample_at(seed: int, position: int, num_samples: int) -> int:
    """Which sample (row of the index) stands at `position` of the endless stream."""
    epoch, place = divmod(position, num_samples)
    return int(epoch_order(seed, epoch, num_samples)[place])


def local_positions(cursor: int, global_batch: int, rank: int, world_size: int) -> range:
    """The positions of the global batch at `cursor` that belong to `rank`: a contiguous slice."""
    micro_batch, remainder = divmod(global_batch, world_size)
    if remainder:
        raise ValueError(f"a global batch of {global_batch} does not divide over {world_size} workers")
    start = cursor + rank * micro_batch
    return range(start, start + micro_batch)


class Stream:
    """Global batches of a dataset, one rank's slice of each, fetched ahead by a thread."""

    def __init__(
        self,
        dataset_dir: Path,
        rows: list[IndexRow],
        *,
        seed: int,
        global_batch: int,
        rank: int,
        world_size: int,
    ) -> None:
        if not rows:
            raise ValueError(f"{dataset_dir} has no samples to train on")
        self._rows = rows
        self._dataset_dir = dataset_dir
        self._seed = seed
        self._global_batch = global_batch
        self._rank = rank
        self._world_size = world_size

    def batches(self, cursor: int, prepare: Callable[[list[Sample]], T], ahead: int = 4) -> Generator[T]:
        """Endless batches from `cursor` on, each passed through `prepare` in the fetching thread.

        An error in the thread is raised here, at the batch it belongs to.
        """
        ready: queue.Queue[T | BaseException] = queue.Queue(maxsize=ahead)
        stopped = threading.Event()

        def put(item: T | BaseException) -> None:
            while not stopped.is_set():
                try:
                    ready.put(item, timeout=0.1)
                except queue.Full:
                    continue
                return

        def fetch() -> None:
            reader = PayloadReader(self._dataset_dir)
            position = cursor
            try:
                while not stopped.is_set():
                    put(prepare(self._read(reader, position)))
                    position += self._global_batch
            except BaseException as error:  # noqa: BLE001 - carried to the consumer, not swallowed
                put(error)
            finally:
                reader.close()

        thread = threading.Thread(target=fetch, name="reelflow-loader", daemon=True)
        thread.start()
        try:
            while True:
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stopped.set()
            thread.join()

    def _read(self, reader: PayloadReader, cursor: int) -> list[Sample]:
        samples = []
        for position in local_positions(cursor, self._global_batch, self._rank, self._world_size):
            row = self._rows[sample_at(self._seed, position, len(self._rows))]
            samples.append(Sample(position, row, reader.read(row)))
        return samples
