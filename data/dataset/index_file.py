"""An index as a file that is mapped into memory.

A page is read when a row on it is used, and all processes of a machine share it.

    magic                  8 bytes
    table                  n records of `ROW`: every number, and the code of every label
    ends of each text      n + 1 int64 per text column: where each text begins in its contents, and where the last ends
    by_split, by_group     n int64 each: the rows of each split, and of each group of equal split, bucket and dataset
    contents of each text  UTF-8
    runs                   records of `RUN`: consecutive rows of a group that lie in one shard
    footer                 JSON, see `Footer`
    length of the footer   int64
    magic                  8 bytes

All numbers are little-endian. The file holds what index.parquet holds, of which it is made (`index_build.py`), and can
be deleted at any time.
"""

import mmap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import numpy as np
import pyarrow as pa
from jaxtyping import Int
from pydantic import Field, ValidationError

from data.dataset.rows import DISTINCT_TEXTS, LABELS, NUMBERS, IndexRow
from data.errors import DatasetError
from data.records import Record

MAGIC = b"rflidx01"
NUMBER_TYPES = {int: "<i8", float: "<f8"}
FIXED = (*NUMBERS, *LABELS)
"""Fields of `ROW`: eight bytes each, then four bytes each."""
ROW = np.dtype([(name, NUMBER_TYPES[NUMBERS[name]] if name in NUMBERS else "<i4") for name in FIXED])
RUN = np.dtype([("shard", "<i4"), ("num_rows", "<i8"), ("num_bytes", "<i8")])
"""Rows of a group that follow one another in a shard: code of the shard, their number, and where the last byte of
their payloads ends.
"""
NUMBER = np.dtype("<i8")


class Span(Record):
    """Consecutive elements."""

    first: int = Field(ge=0)
    length: int = Field(ge=0)

    @property
    def as_slice(self) -> slice:
        """For an array."""
        return slice(self.first, self.first + self.length)


class Group(Record):
    """The rows of one split, bucket and dataset."""

    split: str
    bucket: str
    dataset: str
    rows: Span  # of the section `by_group`
    runs: Span  # of the section `runs`


class Footer(Record):
    """What the file holds."""

    made_from: str  # fingerprint of index.parquet
    num_rows: int = Field(ge=0)
    labels: dict[str, list[str]]  # the values of each text column with few values, by code
    splits: dict[str, Span]  # of the section `by_split`
    groups: list[Group]  # sorted by split, bucket and dataset
    sections: dict[str, Span]  # in bytes


class IndexFile:
    """An open file."""

    def __init__(self, memory: mmap.mmap, footer: Footer) -> None:
        self._memory, self.footer = memory, footer
        self.table = self._section("table", ROW)
        """Records of `ROW`; codes in place of labels."""
        self.by_split = self._section("by_split", NUMBER)
        self.by_group = self._section("by_group", NUMBER)
        self.runs = self._section("runs", RUN)
        self.ends = {name: self._section(ends_of(name), NUMBER) for name in DISTINCT_TEXTS}
        self._contents = {name: self._section(content_of(name), np.dtype("u1")).data for name in DISTINCT_TEXTS}
        self._columns = {name: self.table[name] for name in FIXED}
        self._shards = footer.labels["shard"]
        self._locations = self.table[["shard", "offset", "size", "crc32"]]
        sizes = {len(self.table), len(self.by_split), len(self.by_group), *(len(e) - 1 for e in self.ends.values())}
        if sizes != {footer.num_rows} or set(footer.labels) != set(LABELS):
            raise ValueError("its sections contradict its number of rows")

    @classmethod
    def open(cls, path: Path, made_from: str) -> Self | None:
        """The file at a path; None where there is none, or not a whole one that was made from that index.

        Raises:
            OSError: it cannot be read.
        """
        try:
            with path.open("rb") as file:
                memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            length = int.from_bytes(memory[-16:-8], "little")
            if memory[:8] != MAGIC or memory[-8:] != MAGIC or length > len(memory):
                return None
            footer = Footer.model_validate_json(memory[-16 - length : -16])
            return cls(memory, footer) if footer.made_from == made_from else None
        except (FileNotFoundError, KeyError, ValidationError, ValueError):  # also of an empty file
            return None

    def _section(self, name: str, kind: np.dtype) -> np.ndarray:
        place = self.footer.sections[name]
        if place.length % kind.itemsize:
            raise ValueError(f"the section {name} is cut short")
        return np.frombuffer(self._memory, kind, place.length // kind.itemsize, place.first)

    def row(self, number: int) -> IndexRow:
        """A row, in the order of index.parquet."""
        cells = dict(zip(FIXED, self.table.item(number), strict=True))
        for name in LABELS:
            cells[name] = self.footer.labels[name][cells[name]]
        for name in DISTINCT_TEXTS:
            cells[name] = self.text(name, number)
        return IndexRow(**cells)

    def location(self, number: int) -> "MappedLocation":
        """Where the payload of a row is, in a fraction of the time that the whole row takes."""
        shard, offset, size, checksum = self._locations.item(number)
        return MappedLocation(self._shards[shard], offset, size, checksum, self, number)

    def cell(self, number: int, name: str) -> Any:  # noqa: ANN401 - the type of the field
        """One field of a row."""
        if name in DISTINCT_TEXTS:
            return self.text(name, number)
        cell = self._columns[name].item(number)
        return self.footer.labels[name][cell] if name in LABELS else cell

    def text(self, name: str, number: int) -> str:
        """The text of a row in a column of `DISTINCT_TEXTS`.

        Raises:
            DatasetError: it is damaged.
        """
        ends = self.ends[name]
        try:
            return str(self._contents[name][ends.item(number) : ends.item(number + 1)], "utf-8")
        except UnicodeDecodeError as error:
            raise DatasetError(f"the {name} of row {number} of the index is damaged: delete index.mmap") from error

    def values(self, name: str, numbers: Int[np.ndarray, " m"]) -> list:
        """The values of one field for some rows."""
        if name in DISTINCT_TEXTS:
            return self._texts(name, numbers)
        cells = self.table[name][_compact(numbers)].tolist()
        return [self.footer.labels[name][code] for code in cells] if name in LABELS else cells

    def _texts(self, name: str, numbers: Int[np.ndarray, " m"]) -> list[str]:
        chosen = _compact(numbers)
        if not isinstance(chosen, slice):
            return [self.text(name, number) for number in numbers.tolist()]
        ends = self.ends[name][chosen.start : chosen.stop + 1].tolist()
        content = self._contents[name]
        try:
            return [str(content[begin:end], "utf-8") for begin, end in pairwise(ends)]
        except UnicodeDecodeError as error:
            raise DatasetError(f"a {name} of the index is damaged: delete index.mmap") from error

    def arrow(self, name: str) -> pa.LargeStringArray:
        """A column of `DISTINCT_TEXTS`, not copied."""
        buffers = [None, pa.py_buffer(self.ends[name]), pa.py_buffer(self._contents[name])]
        return cast("pa.LargeStringArray", pa.Array.from_buffers(pa.large_string(), self.footer.num_rows, buffers))

    def grouped(
        self, numbers: Int[np.ndarray, " m"], names: tuple[str, ...]
    ) -> Iterator[tuple[tuple[str, ...], Int[np.ndarray, " k"]]]:
        """Which of some rows have equal labels: places in `numbers`, ascending."""
        codes = [self._columns[name][_compact(numbers)] for name in names]
        return grouped(codes, [self.footer.labels[name] for name in names])


class MappedLocation(NamedTuple):
    """A `PayloadLocation` in an index; its key, which only messages need, is looked up when it is asked for."""

    shard: str
    offset: int
    size: int
    crc32: int
    file: IndexFile
    number: int  # of the row

    @property
    def key(self) -> str:
        """Of the sample."""
        return self.file.text("key", self.number)


def grouped(
    codes: list[np.ndarray], labels: list[list[str]]
) -> Iterator[tuple[tuple[str, ...], Int[np.ndarray, " k"]]]:
    """The places of equal codes in some columns, ascending, with the labels that the codes stand for."""
    together = np.ravel_multi_index(tuple(codes), tuple(map(len, labels)))
    order = np.argsort(together, kind="stable")
    starts = np.flatnonzero(np.diff(together[order], prepend=-1))
    for here in np.split(order, starts[1:]):
        yield tuple(values[column[here[0]]] for values, column in zip(labels, codes, strict=True)), here


def ends_of(text: str) -> str:
    """Name of the section of the ends of a text column."""
    return f"ends of {text}"


def content_of(text: str) -> str:
    """Name of the section of the contents of a text column."""
    return f"content of {text}"


def _compact(numbers: Int[np.ndarray, " m"]) -> slice | np.ndarray:
    """Consecutive ascending numbers as a slice, any others as they are."""
    if len(numbers) and (np.diff(numbers) == 1).all():
        return slice(int(numbers[0]), int(numbers[-1]) + 1)
    return numbers
