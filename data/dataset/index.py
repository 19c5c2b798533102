"""The index of a dataset: one row per sample, stored as Parquet and held in memory as columns.

A row object is made when it is asked for. A sample takes about 200 bytes, a row object would take about 1000.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self, cast, get_type_hints, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from data.dataset.buckets import Bucket
from data.dataset.clip import Decoder, Split
from data.files.publish import published

INDEX_NAME = "index.parquet"


@dataclass(frozen=True)
class PayloadLocation:
    """Where the payload of a sample is stored."""

    key: str
    shard: str
    offset: int  # of the payload from the start of the shard, bytes
    size: int  # of the payload, bytes
    crc32: int  # of the payload


@dataclass(frozen=True)
class IndexRow(PayloadLocation):
    """A sample of a dataset: its location and its metadata."""

    caption_offset: int
    caption_size: int
    record_offset: int
    record_size: int
    caption: str
    dataset: str  # name of its dataset in a mix; empty where there is no mix
    bucket: str  # name of its shape, such as 17x64x64@8
    split: Split
    source: str
    start_seconds: float  # of the clip in its source, after its first frame
    end_seconds: float
    decoder: Decoder
    variant: str  # how it was augmented; empty if it was not
    num_frames: int
    height: int
    width: int
    fps: float
    source_height: int  # square pixels, after the rotation and mirroring that the file asks for
    source_width: int


LOCATION_NAMES = tuple(field.name for field in fields(PayloadLocation))
NAMES = tuple(field.name for field in fields(IndexRow))
NUMBERS = {name: kind for name, kind in get_type_hints(IndexRow).items() if kind in (int, float)}
DISTINCT_TEXTS = frozenset({"key", "caption", "source"})  # mostly distinct; other text columns repeat a few values


@dataclass(frozen=True)
class Labels:
    """A text column with few distinct values."""

    names: list[str]
    codes: Int[np.ndarray, " n"]  # index into `names`

    def item(self, number: int) -> str:
        """The text in row `number`."""
        return self.names[self.codes.item(number)]


@dataclass(frozen=True)
class Texts:
    """A text column with mostly distinct values."""

    array: pa.LargeStringArray
    ends: Int[np.ndarray, " n+1"]  # start of each text in `content`, then the end of the last one
    content: memoryview  # all texts, UTF-8; slicing it takes a tenth of the time of an Arrow scalar

    @classmethod
    def of(cls, array: pa.LargeStringArray) -> Self:
        """The column of an array without nulls."""
        _, ends, content = array.buffers()
        begin = array.offset
        own_ends = np.frombuffer(ends, np.int64)[begin : begin + len(array) + 1] if ends else np.zeros(1, np.int64)
        return cls(array, own_ends, memoryview(content or b""))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).of, (self.array,)  # the other fields are views of it

    def item(self, number: int) -> str:
        """The text in row `number`."""
        return str(self.content[self.ends.item(number) : self.ends.item(number + 1)], "utf-8")


Column = np.ndarray | Labels | Texts


class Index(Sequence[IndexRow]):
    """Rows by number, and whole columns without row objects."""

    def __init__(self, columns: dict[str, Column], length: int) -> None:
        self._columns, self._length = columns, length

    @classmethod
    def of(cls, table: pa.Table) -> Self:
        """The rows of a table with a column for each field of `IndexRow`; a table without rows may have no columns."""
        if table.num_rows == 0:
            return cls({}, 0)
        return cls({name: _column(name, table.column(name)) for name in NAMES}, table.num_rows)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, number: int) -> IndexRow: ...
    @overload
    def __getitem__(self, number: slice) -> Self: ...
    def __getitem__(self, number: int | slice) -> IndexRow | Self:
        if isinstance(number, slice):
            return self.take(np.arange(self._length)[number])
        if not -self._length <= number < self._length:
            raise IndexError(f"no row {number} in an index of {self._length}")
        number %= self._length
        cells: list[Any] = [column.item(number) for column in self._columns.values()]
        return IndexRow(*cells)

    def location(self, number: int) -> PayloadLocation:
        """The location of a row's payload, in a third of the time that the whole row takes."""
        cells: list[Any] = [self._columns[name].item(number) for name in LOCATION_NAMES]
        return PayloadLocation(*cells)

    def take(self, numbers: Int[np.ndarray, " m"]) -> Self:
        """The rows with these numbers, in this order."""
        return type(self)({name: _taken(column, numbers) for name, column in self._columns.items()}, len(numbers))

    def values(self, name: str) -> list[Any]:
        """The values of one field for all rows."""
        if self._length == 0:
            return []
        column = self._columns[name]
        if isinstance(column, Labels):
            return np.array(column.names, object)[column.codes].tolist()
        return column.array.to_pylist() if isinstance(column, Texts) else column.tolist()


def location_of(rows: Sequence[IndexRow], number: int) -> PayloadLocation:
    """The location of a row's payload; of an `Index`, without making the row object."""
    return rows.location(number) if isinstance(rows, Index) else rows[number]


def values(rows: Sequence[IndexRow], name: str) -> list[Any]:
    """The values of one field for all rows; of an `Index`, without making row objects."""
    return rows.values(name) if isinstance(rows, Index) else [getattr(row, name) for row in rows]


def chosen(rows: Sequence[IndexRow], numbers: Iterable[int]) -> Sequence[IndexRow]:
    """The rows with these numbers, in this order, in the same kind of container."""
    if isinstance(rows, Index):
        return rows.take(np.fromiter(numbers, np.int64))
    return [rows[number] for number in numbers]


def _column(name: str, values: pa.ChunkedArray) -> Column:
    if name in NUMBERS:
        return values.to_numpy().astype(NUMBERS[name], copy=False)
    if name in DISTINCT_TEXTS:
        return Texts.of(cast("pa.LargeStringArray", _joined(values.cast(pa.large_string()))))
    labels = cast("pa.DictionaryArray", _joined(values.dictionary_encode()))
    return Labels(labels.dictionary.to_pylist(), labels.indices.to_numpy().astype(np.int32))


def _taken(column: Column, numbers: Int[np.ndarray, " m"]) -> Column:
    if isinstance(column, Labels):
        return Labels(column.names, column.codes[numbers])
    return Texts.of(column.array.take(pa.array(numbers))) if isinstance(column, Texts) else column[numbers]


def _joined(values: pa.ChunkedArray) -> pa.Array:
    """The chunks of a column as one array."""
    joined = values.combine_chunks()
    return pa.concat_arrays(joined.chunks) if isinstance(joined, pa.ChunkedArray) else joined


def shape_of(row: IndexRow) -> Bucket:
    """The shape of a sample."""
    return Bucket(num_frames=row.num_frames, height=row.height, width=row.width, fps=row.fps)


def write_index(dataset_dir: Path, rows: Iterable[IndexRow]) -> None:
    """Publish the index of a dataset atomically."""
    table = pa.Table.from_pylist([asdict(row) for row in rows])
    with published(dataset_dir / INDEX_NAME) as temporary:
        pq.write_table(table, temporary)


def read_index(dataset_dir: Path, split: Split | None = None) -> Index:
    """The index of a dataset, in the order of the shards.

    Args:
        split: only the samples of this split; None: all.
    """
    wanted = None if split is None else [("split", "=", split)]
    return Index.of(pq.read_table(dataset_dir / INDEX_NAME, filters=wanted))
