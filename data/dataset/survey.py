"""Statistics of a dataset, computed from the columns of its index without a Python object per sample."""

from collections import Counter
from dataclasses import dataclass, fields
from itertools import pairwise
from math import floor, log10
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.curation.ledger import FILTERED_NAME, QUARANTINE_NAME, Rejection
from data.dataset.index_places import INDEX_NAME, opened_parquet
from data.dataset.manifest import Manifest, read_manifest
from data.dataset.rows import IndexRow
from data.errors import DatasetError
from data.files.jsonl import JsonLineError, iterate_jsonl

MAX_BARS = 12
LABEL_DIGITS = 3  # after the decimal point
TOLERANCE = 1e-6  # of a bar's width, for rounding errors at the edges of bars
BATCH_ROWS = 2**16
SHAPE = ("num_frames", "height", "width", "fps", "source_height", "source_width")
COLUMNS = pa.schema(
    [
        pa.field("caption", pa.large_string(), nullable=False),
        pa.field("caption_size", pa.int64(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("decoder", pa.string(), nullable=False),
        pa.field("num_frames", pa.int64(), nullable=False),
        pa.field("height", pa.int64(), nullable=False),
        pa.field("width", pa.int64(), nullable=False),
        pa.field("fps", pa.float64(), nullable=False),
        pa.field("source_height", pa.int64(), nullable=False),
        pa.field("source_width", pa.int64(), nullable=False),
    ]
)


@dataclass(frozen=True)
class HistogramBar:
    """A bar of a histogram."""

    label: str
    count: int


@dataclass(frozen=True)
class Histogram:
    """How many clips have which value. The counts of all bars add up to the number of clips."""

    name: str
    measure: str  # quantity of the labels, with the unit
    bars: tuple[HistogramBar, ...]


@dataclass(frozen=True)
class Exclusions:
    """The entries of one file of the ledger that share a reason."""

    file: str
    count: int
    example: Rejection  # the first one


@dataclass(frozen=True)
class Survey:
    """Statistics of a dataset."""

    dataset_dir: Path
    manifest: Manifest
    splits: dict[str, int]
    decoders: dict[str, int]
    captions: dict[str, int]  # the most common ones, with their number of clips
    num_captions: int  # distinct captions
    histograms: tuple[Histogram, ...]
    left_out: tuple[Exclusions, ...]  # by file, the most common reason first

    @property
    def num_bytes(self) -> int:
        """Total size of the shards in bytes."""
        return sum(shard.num_bytes for shard in self.manifest.shards)


def survey_dataset(dataset_dir: Path) -> Survey:
    """Compute the statistics of a finished dataset.

    Raises:
        DatasetError: the manifest, the index or the ledger is missing, damaged, or they contradict each other.
    """
    manifest = read_manifest(dataset_dir)
    index = _read_columns(dataset_dir, manifest)
    num_captions, captions = _most_common(index["caption"], 3)
    return Survey(
        dataset_dir=dataset_dir,
        manifest=manifest,
        splits=_most_common(index["split"])[1],
        decoders=_most_common(index["decoder"])[1],
        captions=captions,
        num_captions=num_captions,
        histograms=(
            Histogram("length", "seconds", numeric_bars(index["num_frames"].to_numpy() / index["fps"].to_numpy())),
            Histogram("size", "height x width in pixels", _size_bars(index, "height", "width")),
            Histogram(
                "source", "height x width in pixels, before cutting", _size_bars(index, "source_height", "source_width")
            ),
            Histogram("caption", "length in bytes", numeric_bars(index["caption_size"].to_numpy())),
        ),
        left_out=(*_left_out(dataset_dir, FILTERED_NAME), *_left_out(dataset_dir, QUARANTINE_NAME)),
    )


def pick_rows(dataset_dir: Path, number: int) -> list[IndexRow]:
    """Up to `number` rows of the index, evenly spaced from the first to the last.

    Raises:
        DatasetError: the index is missing or damaged.
    """
    names = [field.name for field in fields(IndexRow)]
    rows, start = [], 0
    with opened_parquet(dataset_dir) as file:
        num_rows = file.metadata.num_rows
        wanted = np.unique(np.linspace(0, num_rows - 1, min(number, num_rows)).astype(np.int64))
        for batch in file.iter_batches(BATCH_ROWS, columns=names):
            here = wanted[(wanted >= start) & (wanted < start + len(batch))] - start
            rows += [IndexRow(**row) for row in batch.take(pa.array(here)).to_pylist()]
            start += len(batch)
    return rows


def numeric_bars(values: np.ndarray) -> tuple[HistogramBar, ...]:
    """A bar for each distinct value if there are at most `MAX_BARS`, otherwise for intervals of equal, round width.

    Outliers share the last bar, if the largest value is over twice as far from the smallest as the 99th percentile.

    Args:
        values: (n,), finite; whole numbers as integers.
    """
    values = values.round(LABEL_DIGITS)  # so that no two bars have the same label
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= MAX_BARS:
        return tuple(HistogramBar(_number(value), int(count)) for value, count in zip(distinct, counts, strict=True))
    whole = np.issubdtype(values.dtype, np.integer)
    low, usual, high = float(distinct[0]), float(np.percentile(values, 99)), float(distinct[-1])
    top = usual if usual > low and high - low > 2 * (usual - low) else high
    step = _round_step((top - low) / (MAX_BARS - 2), whole)
    # A value within the rounding error below an edge belongs to the bar above it.
    edges = np.arange(floor(low / step + TOLERANCE), floor(top / step + TOLERANCE) + 2) * step
    places = np.maximum(np.searchsorted(edges - TOLERANCE * step, values, side="right") - 1, 0)
    totals = np.bincount(places, minlength=len(edges)).tolist()
    labels = [f"{_number(a)} to {_number(b - 1 if whole else b)}" for a, b in pairwise(edges)]
    bars = [HistogramBar(label, count) for label, count in zip(labels, totals[:-1], strict=True)]
    return (*bars, HistogramBar(f"{_number(edges[-1])} and more", totals[-1])) if totals[-1] else tuple(bars)


def _round_step(width: float, whole: bool) -> float:
    """The smallest of ..., 0.2, 0.5, 1, 2, 5, 10, ... that is at least `width`; at least 1 if `whole`."""
    power = 10.0 ** floor(log10(width))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= width)
    return max(step, 1.0) if whole else step


def _number(value: float) -> str:
    return f"{round(float(value), LABEL_DIGITS):.15g}"


def _size_bars(index: pa.Table, height: str, width: str) -> tuple[HistogramBar, ...]:
    """The most common sizes, from small to large, and one bar for all others.

    Args:
        height, width: names of the columns.
    """
    groups = index.group_by([height, width]).aggregate([([], "count_all")]).to_pylist()
    sizes = sorted((-group["count_all"], group[height], group[width]) for group in groups)
    shown = sizes if len(sizes) <= MAX_BARS else sizes[: MAX_BARS - 1]
    by_area = sorted(shown, key=lambda size: (size[1] * size[2], size[1]))
    bars = [HistogramBar(f"{high} x {wide}", -count) for count, high, wide in by_area]
    rest = sizes[len(shown) :]
    if rest:
        bars.append(HistogramBar(f"{len(rest)} others", -sum(count for count, _, _ in rest)))
    return tuple(bars)


def _most_common(column: pa.ChunkedArray, limit: int | None = None) -> tuple[int, dict[str, int]]:
    """The number of distinct values, and how often the most common ones occur; ties in order of first occurrence."""
    counted = column.combine_chunks().value_counts()
    values, counts = counted.field("values"), counted.field("counts").to_numpy()
    order = np.argsort(-counts, kind="stable")[:limit]
    return len(values), dict(zip(values.take(pa.array(order)).to_pylist(), counts[order].tolist(), strict=True))


def _left_out(dataset_dir: Path, name: str) -> list[Exclusions]:
    """The entries of a file of the ledger by reason; none where there is no such file."""
    counts, examples = Counter[str](), dict[str, Rejection]()
    try:
        for rejection in iterate_jsonl(dataset_dir / name, Rejection):
            counts[rejection.reason] += 1
            examples.setdefault(rejection.reason, rejection)
    except JsonLineError as error:
        raise DatasetError(f"{error}; make {dataset_dir} again") from error
    return [Exclusions(name, number, examples[reason]) for reason, number in counts.most_common()]


def _read_columns(dataset_dir: Path, manifest: Manifest) -> pa.Table:
    """The columns that the statistics need.

    Raises:
        DatasetError: they are damaged, or contradict the manifest.
    """
    path = dataset_dir / INDEX_NAME
    with opened_parquet(dataset_dir) as file:
        num_rows = file.metadata.num_rows
        # An index without rows has no columns either: their types are inferred from the rows.
        table = _cast(file) if num_rows else COLUMNS.empty_table()
    if num_rows != manifest.num_samples:
        raise DatasetError(
            f"{path} has {num_rows} rows, but the manifest counts {manifest.num_samples} samples; "
            f"make {dataset_dir} again"
        )
    if not all((table[name].to_numpy() > 0).all() for name in SHAPE):
        raise DatasetError(f"{path} has a clip without a shape (0 or less); make {dataset_dir} again")
    return table


def _cast(file: pq.ParquetFile) -> pa.Table:
    missing = set(COLUMNS.names) - set(file.schema_arrow.names)
    if missing:
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    table = file.read(columns=COLUMNS.names).select(COLUMNS.names).cast(COLUMNS)
    table.validate(full=True)  # finds text that is not UTF-8
    return table
