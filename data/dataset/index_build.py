"""index.parquet as a file that can be mapped (`index_file.py`), made in one pass over each column.

Memory: one batch of rows, the distinct labels, and a few bytes per shard.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from data.dataset.index_file import (
    FIXED,
    MAGIC,
    NUMBER,
    NUMBER_TYPES,
    ROW,
    RUN,
    Footer,
    Group,
    Span,
    content_of,
    ends_of,
    grouped,
)
from data.dataset.rows import DISTINCT_TEXTS, LABELS, NAMES, NUMBERS
from data.files.publish import published

BATCH_ROWS = 2**15
ALIGNMENT = 64  # bytes


def build_index_file(parquet: pq.ParquetFile, path: Path, made_from: str) -> None:
    """Publish the file atomically.

    Args:
        made_from: fingerprint of the index.

    Raises:
        OSError: it cannot be written.
        pa.ArrowException, ValueError: the index is damaged.
    """
    num_rows = parquet.metadata.num_rows
    missing = [name for name in NAMES if name not in parquet.schema_arrow.names]
    if missing and num_rows:  # an index without rows may have no columns either
        raise ValueError(f"it lacks {', '.join(missing)}")
    with published(path) as temporary, temporary.open("w+b") as file:
        layout = _Layout(file)
        table = layout.reserve("table", num_rows * ROW.itemsize)
        ends = {name: layout.reserve(ends_of(name), (num_rows + 1) * NUMBER.itemsize) for name in DISTINCT_TEXTS}
        by_split = layout.reserve("by_split", num_rows * NUMBER.itemsize)
        by_group = layout.reserve("by_group", num_rows * NUMBER.itemsize)
        labels = _write_table(parquet, file, table) if num_rows else {name: [] for name in LABELS}
        for name in DISTINCT_TEXTS:
            layout.append(content_of(name), _write_texts(parquet, name, file, layout.end, ends[name], num_rows))
        file.flush()
        rows = np.memmap(file, ROW, "r", table.first, (num_rows,)) if num_rows else np.empty(0, ROW)
        splits = _sort(rows, ("split",), labels, file, by_split)
        groups = _sort(rows, ("split", "bucket", "dataset"), labels, file, by_group)
        runs = np.concatenate([np.empty(0, RUN), *(group.runs for group in groups.values())])
        file.seek(layout.end)
        file.write(runs.tobytes())
        layout.append("runs", runs.nbytes)
        footer = Footer(
            made_from=made_from,
            num_rows=num_rows,
            labels=labels,
            splits={split: group.rows for (split,), group in splits.items()},
            groups=_groups(groups),
            sections=layout.sections,
        ).model_dump_json()
        content = footer.encode()
        file.write(content + len(content).to_bytes(8, "little") + MAGIC)


class _Layout:
    """Where the sections of the file begin."""

    def __init__(self, file: IO[bytes]) -> None:
        file.write(MAGIC)
        self.sections: dict[str, Span] = {}
        self.end = ALIGNMENT

    def reserve(self, name: str, num_bytes: int) -> Span:
        """A place at the end, which is written later."""
        self.append(name, num_bytes)
        return self.sections[name]

    def append(self, name: str, num_bytes: int) -> None:
        """Note what was written at the end."""
        self.sections[name] = Span(first=self.end, length=num_bytes)
        self.end += -(-num_bytes // ALIGNMENT) * ALIGNMENT


def _batches(parquet: pq.ParquetFile, names: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    """The rows in order. Each row group has a reader of its own: one for all keeps what it decoded until its end."""
    for group in range(parquet.num_row_groups):
        for batch in parquet.iter_batches(BATCH_ROWS, row_groups=[group], columns=list(names)):
            for name in names:
                if batch.column(name).null_count:
                    raise ValueError(f"it has rows without {name}")
            yield batch


def _write_table(parquet: pq.ParquetFile, file: IO[bytes], place: Span) -> dict[str, list[str]]:
    """Write the records of `ROW`; returns the values of each column of labels, by code."""
    codes: dict[str, dict[str, int]] = {name: {} for name in LABELS}
    file.seek(place.first)
    for batch in _batches(parquet, FIXED):
        rows = np.empty(len(batch), ROW)
        for name, kind in NUMBERS.items():
            rows[name] = batch.column(name).cast(pa.from_numpy_dtype(np.dtype(NUMBER_TYPES[kind]))).to_numpy()
        for name in LABELS:
            column = batch.column(name).cast(pa.string())
            column.validate(full=True)  # finds text that is not UTF-8
            labels = column.dictionary_encode()
            known = codes[name]
            here = np.array([known.setdefault(text, len(known)) for text in labels.dictionary.to_pylist()], np.int32)
            rows[name] = here[labels.indices.to_numpy()]
        file.write(rows.tobytes())
    return {name: list(known) for name, known in codes.items()}


def _write_texts(
    parquet: pq.ParquetFile, name: str, file: IO[bytes], content_begin: int, ends_place: Span, num_rows: int
) -> int:
    """Write the contents of a text column, and its ends; returns the number of bytes of the contents."""
    file.seek(ends_place.first)
    file.write(bytes(NUMBER.itemsize))
    written, num_bytes = 1, 0
    for batch in _batches(parquet, (name,)) if num_rows else ():
        column = batch.column(name).cast(pa.large_string())
        column.validate(full=True)
        _, ends_buffer, content = column.buffers()
        ends = np.frombuffer(ends_buffer, NUMBER)[column.offset : column.offset + len(column) + 1]
        file.seek(content_begin + num_bytes)
        file.write(memoryview(content or b"")[int(ends[0]) : int(ends[-1])])
        file.seek(ends_place.first + written * NUMBER.itemsize)
        file.write((ends[1:] - ends[0] + num_bytes).tobytes())
        written, num_bytes = written + len(column), num_bytes + int(ends[-1] - ends[0])
    return num_bytes


@dataclass
class _Rows:
    """The rows with equal labels, while they are written."""

    rows: Span
    num_written: int = 0
    pieces: list[np.ndarray] = field(default_factory=list)

    def add_runs(self, runs: np.ndarray) -> None:
        """Runs of further rows; the first of them may continue the last one so far."""
        last = self.pieces[-1][-1:] if self.pieces else runs[:0]
        if len(last) and last["shard"][0] == runs["shard"][0]:
            last["num_rows"] += runs["num_rows"][0]
            last["num_bytes"] = max(last["num_bytes"][0], runs["num_bytes"][0])
            runs = runs[1:]
        if len(runs):
            self.pieces.append(runs.copy())

    @property
    def runs(self) -> np.ndarray:
        """All runs."""
        return np.concatenate(self.pieces)


def _sort(
    table: np.ndarray, names: tuple[str, ...], labels: dict[str, list[str]], file: IO[bytes], place: Span
) -> dict[tuple[str, ...], _Rows]:
    """Write the numbers of the rows of each group of equal labels, the groups sorted by their labels."""
    values, counts = [labels[name] for name in names], defaultdict[tuple[str, ...], int](int)
    for _, rows in _chunks(table):
        for key, here in grouped([rows[name] for name in names], values):
            counts[key] += len(here)
    groups, first = {}, 0
    for key in sorted(counts):
        groups[key] = _Rows(Span(first=first, length=counts[key]))
        first += counts[key]
    for start, rows in _chunks(table):
        for key, here in grouped([rows[name] for name in names], values):
            group = groups[key]
            file.seek(place.first + (group.rows.first + group.num_written) * NUMBER.itemsize)
            file.write((start + here).astype(NUMBER).tobytes())
            group.num_written += len(here)
            group.add_runs(runs_of(rows["shard"][here], (rows["offset"] + rows["size"])[here]))
    return groups


def _chunks(table: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(table), BATCH_ROWS):
        yield start, np.asarray(table[start : start + BATCH_ROWS])


def runs_of(shards: Int[np.ndarray, " m"], ends: Int[np.ndarray, " m"]) -> np.ndarray:
    """Records of `RUN` of some rows.

    Args:
        shards: the codes of their shards.
        ends: where their payloads end in their shards.
    """
    starts = np.flatnonzero(np.diff(shards, prepend=-1))
    runs = np.empty(len(starts), RUN)
    runs["shard"] = shards[starts]
    runs["num_rows"] = np.diff(starts, append=len(shards))
    runs["num_bytes"] = np.maximum.reduceat(ends, starts) if len(starts) else 0
    return runs


def _groups(groups: dict[tuple[str, ...], _Rows]) -> list[Group]:
    found, first = [], 0
    for (split, bucket, dataset), group in groups.items():
        runs = Span(first=first, length=len(group.runs))
        found.append(Group(split=split, bucket=bucket, dataset=dataset, rows=group.rows, runs=runs))
        first += runs.length
    return found
