"""The index of a dataset in memory: columns, from which a row is made when it is asked for.

A million samples take about two hundred bytes each, where records of them would take a kilobyte each.
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
class Place:
    """Where the payload of a sample lies."""

    key: str
    shard: str
    offset: int  # of the payload inside the shard, bytes
    size: int
    crc32: int  # of the payload, as zip files have it


@dataclass(frozen=True)
class IndexRow(Place):
    """One sample of a dataset: its address and its metadata."""

    caption_offset: int
    caption_size: int
    record_offset: int
    record_size: int
    caption: str
    dataset: str  # of a mix, the one its source belongs to
    bucket: str  # name of its shape
    split: Split
    source: str
    start_seconds: float  # of the clip in its source
    end_seconds: float
    decoder: Decoder
    variant: str  # how it was augmented; empty: not at all
    num_frames: int
    height: int
    width: int
    fps: float
    source_height: int  # of the source's frames, as shown
    source_width: int


PLACE_NAMES = tuple(field.name for field in fields(Place))
NAMES = tuple(field.name for field in fields(IndexRow))
NUMBERS = {name: kind for name, kind in get_type_hints(IndexRow).items() if kind in (int, float)}
OWN_TEXTS = frozenset({"key", "caption", "source"})  # of each row its own; the others are a few, repeated


@dataclass(frozen=True)
class Labels:
    """A column of a few texts, repeated."""

    names: list[str]
    codes: Int[np.ndarray, " n"]  # index into `names`

    def item(self, number: int) -> str:
        """The text of a row."""
        return self.names[self.codes.item(number)]


@dataclass(frozen=True)
class Texts:
    """A column of texts of their own."""

    array: pa.LargeStringArray
    ends: Int[np.ndarray, " n+1"]  # where each text begins in `content`, and where the last one ends
    content: memoryview  # of all texts, UTF-8; read from here, as a scalar of Arrow costs ten times as much

    @classmethod
    def of(cls, array: pa.LargeStringArray) -> Self:
        """A column, of an array without missing texts."""
        _, ends, content = array.buffers()
        begin = array.offset
        places = np.frombuffer(ends, np.int64)[begin : begin + len(array) + 1] if ends else np.zeros(1, np.int64)
        return cls(array, places, memoryview(content or b""))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).of, (self.array,)  # the rest are views of it

    def item(self, number: int) -> str:
        """The text of a row."""
        return str(self.content[self.ends.item(number) : self.ends.item(number + 1)], "utf-8")


Column = np.ndarray | Labels | Texts


class Index(Sequence[IndexRow]):
    """Rows by number, and whole columns without making rows."""

    def __init__(self, columns: dict[str, Column], length: int) -> None:
        self._columns, self._length = columns, length

    @classmethod
    def of(cls, table: pa.Table) -> Self:
        """The rows of a table with a column for each field of `IndexRow`; an empty one may have no columns."""
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

    def place(self, number: int) -> Place:
        """Where the payload of a row lies, at a third of the price of the row."""
        cells: list[Any] = [self._columns[name].item(number) for name in PLACE_NAMES]
        return Place(*cells)

    def take(self, numbers: Int[np.ndarray, " m"]) -> Self:
        """Some rows, in the order given."""
        return type(self)({name: _taken(column, numbers) for name, column in self._columns.items()}, len(numbers))

    def values(self, name: str) -> list[Any]:
        """A field of every row."""
        if self._length == 0:
            return []
        column = self._columns[name]
        if isinstance(column, Labels):
            return np.array(column.names, object)[column.codes].tolist()
        return column.array.to_pylist() if isinstance(column, Texts) else column.tolist()


def place_of(rows: Sequence[IndexRow], number: int) -> Place:
    """Where a payload lies, of an index without making a row."""
    return rows.place(number) if isinstance(rows, Index) else rows[number]


def values(rows: Sequence[IndexRow], name: str) -> list[Any]:
    """A field of every row, of an index without making rows."""
    return rows.values(name) if isinstance(rows, Index) else [getattr(row, name) for row in rows]


def chosen(rows: Sequence[IndexRow], numbers: Iterable[int]) -> Sequence[IndexRow]:
    """Some rows, in the order given: of an index an index, of a list a list."""
    if isinstance(rows, Index):
        return rows.take(np.fromiter(numbers, np.int64))
    return [rows[number] for number in numbers]


def _column(name: str, values: pa.ChunkedArray) -> Column:
    if name in NUMBERS:
        return values.to_numpy().astype(NUMBERS[name], copy=False)
    if name in OWN_TEXTS:
        return Texts.of(cast("pa.LargeStringArray", _joined(values.cast(pa.large_string()))))
    labels = cast("pa.DictionaryArray", _joined(values.dictionary_encode()))
    return Labels(labels.dictionary.to_pylist(), labels.indices.to_numpy().astype(np.int32))


def _taken(column: Column, numbers: Int[np.ndarray, " m"]) -> Column:
    if isinstance(column, Labels):
        return Labels(column.names, column.codes[numbers])
    return Texts.of(column.array.take(pa.array(numbers))) if isinstance(column, Texts) else column[numbers]


def _joined(values: pa.ChunkedArray) -> pa.Array:
    """In one piece."""
    joined = values.combine_chunks()
    return pa.concat_arrays(joined.chunks) if isinstance(joined, pa.ChunkedArray) else joined


def shape_of(row: IndexRow) -> Bucket:
    """The shape of a sample."""
    return Bucket(num_frames=row.num_frames, height=row.height, width=row.width, fps=row.fps)


def write_index(dataset_dir: Path, rows: Iterable[IndexRow]) -> None:
    """Publish the index of a dataset."""
    table = pa.Table.from_pylist([asdict(row) for row in rows])
    with published(dataset_dir / INDEX_NAME) as temporary:
        pq.write_table(table, temporary)


def read_index(dataset_dir: Path, split: Split | None = None) -> Index:
    """Every sample of a dataset, or of one split of it, in order of the shards."""
    wanted = None if split is None else [("split", "=", split)]
    return Index.of(pq.read_table(dataset_dir / INDEX_NAME, filters=wanted))
