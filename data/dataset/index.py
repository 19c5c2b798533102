"""The index of a dataset: one row per sample, published as Parquet and read from a file that is mapped into memory.

A process holds neither rows nor columns: a row is made when it is asked for. See `index_file.py`.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby, islice
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, Self, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int

from data.dataset.clip import Split
from data.dataset.index_build import runs_of
from data.dataset.index_file import Group, IndexFile, Span
from data.dataset.index_places import INDEX_NAME, open_index_file
from data.dataset.rows import NAMES, NUMBERS, IndexRow, PayloadLocation
from data.errors import DatasetError
from data.files.publish import published

CHUNK_ROWS = 2**16
GROUP_ROWS = 2**16  # of a row group of the Parquet file
WRITE_ROWS = 1024  # row objects that are held at once while they are written
ARROW_TYPES = {int: pa.int64(), float: pa.float64(), str: pa.string()}
SCHEMA = pa.schema([(name, ARROW_TYPES[NUMBERS.get(name, str)]) for name in NAMES])


class ShardRun(NamedTuple):
    """Rows that follow one another in a shard."""

    shard: str
    num_rows: int
    num_bytes: int  # where the last byte of their payloads ends


class Index(Sequence[IndexRow]):
    """Rows of the index of a dataset. Pickled as the folder and which rows they are, without their contents.

    Args:
        numbers: of the rows in the file; None: all.
        whole: the split or the group that they are, if they are one.
    """

    def __init__(
        self,
        dataset_dir: Path,
        file: IndexFile,
        numbers: Int[np.ndarray, " n"] | None = None,
        whole: str | Group | None = None,
    ) -> None:
        self._dataset_dir, self._file, self._numbers, self._whole = dataset_dir, file, numbers, whole
        self._length = file.footer.num_rows if numbers is None else len(numbers)

    def __reduce__(self) -> tuple[Any, ...]:
        rows = self._numbers if self._whole is None else self._whole
        return _reopened, (self._dataset_dir, self._file.footer.made_from, rows)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, number: int) -> IndexRow: ...
    @overload
    def __getitem__(self, number: slice) -> Self: ...
    def __getitem__(self, number: int | slice) -> IndexRow | Self:
        if isinstance(number, slice):
            return self.take(np.arange(*number.indices(self._length)))
        return self._file.row(self._place(number))

    def _place(self, number: int) -> int:
        """The number in the file of row `number`."""
        if self._numbers is not None:
            return self._numbers.item(number)
        if not -self._length <= number < self._length:
            raise IndexError(f"no row {number} in an index of {self._length}")
        return number % self._length

    def location(self, number: int) -> PayloadLocation:
        """The location of a row's payload, without making the row."""
        return self._file.location(self._place(number))

    def cell(self, number: int, name: str) -> Any:  # noqa: ANN401 - the type of the field
        """One field of a row, without making the row."""
        return self._file.cell(self._place(number), name)

    def take(self, numbers: Int[np.ndarray, " m"]) -> Self:
        """The rows with these numbers, in this order."""
        return type(self)(self._dataset_dir, self._file, numbers if self._numbers is None else self._numbers[numbers])

    def chunks(self, name: str) -> Iterator[list[Any]]:
        """The values of one field for all rows, in lists of at most `CHUNK_ROWS`."""
        return (self._file.values(name, numbers) for numbers in self._chunks())

    def each(self, name: str) -> Iterator[Any]:
        """The values of one field for all rows, read in chunks."""
        return chain.from_iterable(self.chunks(name))

    def order(self, name: str) -> Int[np.ndarray, " n"]:
        """The numbers of the rows sorted by a text of `DISTINCT_TEXTS`, equal ones in their order."""
        texts = self._file.arrow(name)
        chosen = texts if self._numbers is None else texts.take(pa.array(self._numbers))
        order = pc.call_function("array_sort_indices", [chosen])  # stable
        return order.to_numpy().astype(np.int64)

    def values(self, name: str) -> list[Any]:
        """The values of one field for all rows, at once."""
        return list(self.each(name))

    def _chunks(self) -> Iterator[Int[np.ndarray, " m"]]:
        for start in range(0, self._length, CHUNK_ROWS):
            stop = min(start + CHUNK_ROWS, self._length)
            yield np.arange(start, stop) if self._numbers is None else self._numbers[start:stop]

    def by_group(self) -> "dict[tuple[str, str], Index]":
        """The rows of each bucket and dataset, sorted by their names."""
        if isinstance(self._whole, str):
            groups = [group for group in self._file.footer.groups if group.split == self._whole]
            return {(group.bucket, group.dataset): _part(self._dataset_dir, self._file, group) for group in groups}
        found: dict[tuple[str, str], list[np.ndarray]] = {}
        for start, numbers in zip(range(0, self._length, CHUNK_ROWS), self._chunks(), strict=True):
            for (bucket, dataset), here in self._file.grouped(numbers, ("bucket", "dataset")):
                found.setdefault((bucket, dataset), []).append(start + here)
        return {group: self.take(np.concatenate(found[group])) for group in sorted(found)}

    def shard_runs(self) -> list[ShardRun]:
        """The rows, as runs of consecutive ones that lie in one shard."""
        if isinstance(self._whole, Group):
            runs = self._file.runs[self._whole.runs.as_slice]
        else:
            table = self._file.table if self._numbers is None else self._file.table[self._numbers]
            runs = runs_of(table["shard"], table["offset"] + table["size"])
        shards = self._file.footer.labels["shard"]
        columns = (runs[name].tolist() for name in ("shard", "num_rows", "num_bytes"))
        return [ShardRun(shards[shard], *rest) for shard, *rest in zip(*columns, strict=True)]


def location_of(rows: Sequence[IndexRow], number: int) -> PayloadLocation:
    """The location of a row's payload; of an `Index`, without making the row object."""
    return rows.location(number) if isinstance(rows, Index) else rows[number]


def cell_of(rows: Sequence[IndexRow], number: int, name: str) -> Any:  # noqa: ANN401 - the type of the field
    """One field of a row; of an `Index`, without making the row object."""
    return rows.cell(number, name) if isinstance(rows, Index) else getattr(rows[number], name)


def values(rows: Sequence[IndexRow], name: str) -> Iterable[Any]:
    """The values of one field for all rows; of an `Index`, chunk by chunk and without making row objects."""
    return rows.each(name) if isinstance(rows, Index) else map(attrgetter(name), rows)


def by_group(rows: Sequence[IndexRow]) -> dict[tuple[str, str], Sequence[IndexRow]]:
    """The rows of each bucket and dataset, sorted by their names."""
    if isinstance(rows, Index):
        return dict(rows.by_group())
    groups: dict[tuple[str, str], list[IndexRow]] = {}
    for row in rows:
        groups.setdefault((row.bucket, row.dataset), []).append(row)
    return {group: groups[group] for group in sorted(groups)}


def shard_runs(rows: Sequence[IndexRow]) -> list[ShardRun]:
    """The rows, as runs of consecutive ones that lie in one shard."""
    if isinstance(rows, Index):
        return rows.shard_runs()
    runs = [list(run) for _, run in groupby(rows, attrgetter("shard"))]
    return [ShardRun(run[0].shard, len(run), max(row.offset + row.size for row in run)) for run in runs]


def write_index(dataset_dir: Path, rows: Iterable[IndexRow]) -> None:
    """Publish the index of a dataset atomically, and the file that maps it; the rows are taken one batch at a time."""
    remaining = iter(rows)
    with published(dataset_dir / INDEX_NAME) as temporary, pq.ParquetWriter(temporary, SCHEMA) as writer:
        batches: list[pa.RecordBatch] = []
        while some := list(islice(remaining, WRITE_ROWS)):
            columns = [pa.array([getattr(row, field.name) for row in some], field.type) for field in SCHEMA]
            batches.append(pa.RecordBatch.from_arrays(columns, schema=SCHEMA))
            if WRITE_ROWS * len(batches) >= GROUP_ROWS:
                writer.write_table(pa.Table.from_batches(batches))
                batches.clear()
        writer.write_table(pa.Table.from_batches(batches, SCHEMA))
    open_index_file(dataset_dir)


def read_index(dataset_dir: Path, split: Split | None = None) -> Index:
    """The index of a dataset, in the order of the shards.

    Args:
        split: only the samples of this split; None: all.

    Raises:
        DatasetError: the index is missing or damaged.
    """
    return _part(dataset_dir, open_index_file(dataset_dir), split)


def _part(dataset_dir: Path, file: IndexFile, whole: str | Group | None) -> Index:
    """All rows, or those of a split or a group."""
    if whole is None:
        return Index(dataset_dir, file)
    if isinstance(whole, Group):
        return Index(dataset_dir, file, file.by_group[whole.rows.as_slice], whole)
    rows = file.footer.splits.get(whole, Span(first=0, length=0))
    return Index(dataset_dir, file, file.by_split[rows.as_slice], whole)


def _reopened(dataset_dir: Path, made_from: str, rows: np.ndarray | str | Group | None) -> Index:
    """An index that was pickled.

    Raises:
        DatasetError: the dataset has been made again since.
    """
    file = open_index_file(dataset_dir)
    if file.footer.made_from != made_from:
        raise DatasetError(f"{dataset_dir / INDEX_NAME} changed while it was in use; start again")
    return Index(dataset_dir, file, rows) if isinstance(rows, np.ndarray) else _part(dataset_dir, file, rows)
