"""WebDataset shards with an index beside them.

A dataset is a folder:

    shard-00000.tar ...   plain USTAR, one sample = members of one key in a row; any WebDataset reader takes it
    index.parquet         one row per sample: where its payload lies (shard, offset, size) and what it is
    manifest.json         published last: counts, checksums, fingerprint; without it the folder is not a dataset
    quarantine.jsonl      which sources could not be used, and why
    filtered.jsonl        which clips and sources were left out on purpose, and why
"""

import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from isal.isal_zlib import crc32
from pydantic import BaseModel, ConfigDict, ValidationError

from data.buckets import Bucket
from data.cache import ShardCache
from data.clip import CAPTION_MEMBER, RECORD_MEMBER, ClipRecord, Split
from data.index import Index, IndexRow, Place
from data.ledger import LedgerCounts, Reason, Rejection
from data.publish import publish_text, published
from data.tarfiles import TarError, read_samples

SCHEMA_VERSION = 5
MANIFEST_NAME = "manifest.json"
INDEX_NAME = "index.parquet"
QUARANTINE_NAME = "quarantine.jsonl"
FILTERED_NAME = "filtered.jsonl"
MAX_OPEN_SHARDS = 128
MAX_OPEN_COPIES = 16  # those that are open cannot make room for others
WRITE_BUFFER_BYTES = 4 << 20  # the page cache holds a file in pieces of the size of the writes: large ones read faster


class DatasetError(ValueError):
    """A dataset folder that cannot be read; the message names the file and the way out."""


class ShardRecord(BaseModel):
    """One shard, as listed in the manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    num_samples: int
    num_bytes: int
    sha256: str


class LatentStats(BaseModel):
    """Mean and standard deviation of each latent channel, measured over the training split."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: list[float]
    std: list[float]

    @property
    def num_channels(self) -> int:
        """Channels of a latent."""
        return len(self.mean)


class TextEncoderRecord(BaseModel):
    """The frozen encoder that has read the captions of a latent dataset."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: str  # where it was
    fingerprint: str  # of its files
    max_tokens: int
    width: int  # of an embedding


class BucketRecord(BaseModel):
    """How many samples have one shape."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bucket: Bucket
    num_samples: int
    num_train: int  # of them, in the training split

    @property
    def num_validation(self) -> int:
        """Of them, in the validation split."""
        return self.num_samples - self.num_train


class Manifest(BaseModel):
    """What a dataset folder holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    kind: str  # "clips" or "latents"
    fingerprint: str  # of the contents: the shards' checksums
    buckets: list[BucketRecord]  # that with most samples first
    num_samples: int
    shards: list[ShardRecord]
    ledger: LedgerCounts | None = None  # of clips: what became of their sources
    filtered: dict[Reason, int] = {}  # clips and whole sources left out, by filter
    latent_stats: LatentStats | None = None
    text_encoder: TextEncoderRecord | None = None  # of latents; None: captions are read by the DiT, as bytes
    num_cut_captions: int = 0  # by the text encoder, which reads the first max_tokens


def write_shard(
    path: Path, samples: Iterable[tuple[ClipRecord, bytes]], payload_member: str
) -> tuple[ShardRecord, list[IndexRow]]:
    """Write one shard atomically and say where everything in it is. Equal samples give equal bytes."""
    from webdataset.writer import TarWriter  # imports torch, 120 MiB that workers which only cut clips do without

    records: list[ClipRecord] = []
    checksums: list[int] = []
    with published(path) as temporary:
        with (
            temporary.open("wb", buffering=WRITE_BUFFER_BYTES) as file,
            TarWriter(file, mtime=0, user="reelflow", group="reelflow") as writer,
        ):
            for record, payload in samples:
                sample = {
                    "__key__": record.key,
                    payload_member: payload,
                    CAPTION_MEMBER: record.caption.encode(),
                    RECORD_MEMBER: record.model_dump_json().encode(),
                }
                writer.write(sample)
                records.append(record)
                checksums.append(crc32(payload))
        with tarfile.open(temporary) as tar:
            places = {member.name: (member.offset_data, member.size) for member in tar}
        shard = ShardRecord(
            name=path.name,
            num_samples=len(records),
            num_bytes=temporary.stat().st_size,
            sha256=file_sha256(temporary),
        )
    rows = []
    for record, checksum in zip(records, checksums, strict=True):
        offset, size = places[f"{record.key}.{payload_member}"]
        caption_offset, caption_size = places[f"{record.key}.{CAPTION_MEMBER}"]
        record_offset, record_size = places[f"{record.key}.{RECORD_MEMBER}"]
        row = IndexRow(
            key=record.key,
            shard=path.name,
            offset=offset,
            size=size,
            crc32=checksum,
            caption_offset=caption_offset,
            caption_size=caption_size,
            record_offset=record_offset,
            record_size=record_size,
            caption=record.caption,
            dataset=record.dataset,
            bucket=record.bucket.name,
            split=record.split,
            source=record.source,
            start_seconds=record.start_seconds,
            end_seconds=record.start_seconds + record.num_frames / record.fps,
            decoder=record.decoder,
            variant=record.variant,
            num_frames=record.num_frames,
            height=record.height,
            width=record.width,
            fps=record.fps,
            source_height=record.source_height,
            source_width=record.source_width,
        )
        rows.append(row)
    return shard, rows


def read_shard(path: Path, payload_member: str, shard: ShardRecord | None = None) -> Iterator[tuple[ClipRecord, bytes]]:
    """The samples of one shard, in order.

    Args:
        shard: what the manifest says of it, if its checksum shall be compared first.

    Raises:
        DatasetError: it is missing, not what the manifest says, or holds anything but samples.
    """
    if not path.is_file():
        raise DatasetError(f"{path} is missing although the manifest names it; make {path.parent} again")
    if shard is not None and file_sha256(path) != shard.sha256:
        raise DatasetError(f"{path} is damaged (its checksum differs from the manifest's); make {path.parent} again")
    try:
        for key, sample in read_samples(path, frozenset({payload_member, CAPTION_MEMBER, RECORD_MEMBER})):
            record = ClipRecord.model_validate_json(sample[RECORD_MEMBER])
            if record.key != key:
                raise DatasetError(f"{path}: the record of {key} calls itself {record.key!r}; make {path.parent} again")
            yield record, sample[payload_member]
    except TarError as error:
        raise DatasetError(f"{error}; make {path.parent} again") from error
    except ValidationError as error:
        raise DatasetError(f"{path} holds a damaged record ({error}); make {path.parent} again") from error


def file_sha256(path: Path) -> str:
    """Checksum of a file's contents, as hexadecimal digits."""
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def count_buckets(rows: Iterable[IndexRow]) -> list[BucketRecord]:
    """How many samples each shape has, that with most of them first."""
    counts: Counter[tuple[str, Split]] = Counter()
    shapes: dict[str, Bucket] = {}
    for row in rows:
        counts[row.bucket, row.split] += 1
        shapes.setdefault(row.bucket, shape_of(row))
    records = [
        BucketRecord(
            bucket=shape,
            num_samples=counts[name, "train"] + counts[name, "validation"],
            num_train=counts[name, "train"],
        )
        for name, shape in shapes.items()
    ]
    return sorted(records, key=lambda record: (-record.num_samples, record.bucket.name))


def shape_of(row: IndexRow) -> Bucket:
    """The shape of a sample."""
    return Bucket(num_frames=row.num_frames, height=row.height, width=row.width, fps=row.fps)


def content_fingerprint(shards: Iterable[ShardRecord]) -> str:
    """One name for everything in a dataset."""
    return sha256("\n".join(shard.sha256 for shard in shards).encode()).hexdigest()[:20]


def write_index(dataset_dir: Path, rows: Iterable[IndexRow]) -> None:
    """Publish the index of a dataset."""
    table = pa.Table.from_pylist([asdict(row) for row in rows])
    with published(dataset_dir / INDEX_NAME) as temporary:
        pq.write_table(table, temporary)


def write_rejections(path: Path, rejections: Iterable[Rejection]) -> None:
    """Publish a list of what was left out: one JSON object per line."""
    publish_text(path, "".join(rejection.model_dump_json() + "\n" for rejection in rejections))


def read_rejections(path: Path) -> list[Rejection]:
    """What `write_rejections` wrote; nothing where there is no such file."""
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    return [Rejection.model_validate_json(line) for line in lines if line]


def read_index(dataset_dir: Path, split: Split | None = None) -> Index:
    """Every sample of a dataset, or of one split of it, in order of the shards."""
    wanted = None if split is None else [("split", "=", split)]
    return Index.of(pq.read_table(dataset_dir / INDEX_NAME, filters=wanted))


def read_manifest(dataset_dir: Path) -> Manifest:
    """The manifest of a finished dataset.

    Raises:
        DatasetError: it is missing (the folder was never finished), unreadable, or of a newer schema.
    """
    path = dataset_dir / MANIFEST_NAME
    if not path.is_file():
        raise DatasetError(f"{dataset_dir} holds no {MANIFEST_NAME}: it is not a finished dataset; make it first")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content.get("schema_version", 0) if isinstance(content, dict) else 0
        if version != SCHEMA_VERSION:
            way_out = "use a newer reelflow" if version > SCHEMA_VERSION else f"run the stage that makes {dataset_dir}"
            age = "newer" if version > SCHEMA_VERSION else "older"
            raise DatasetError(f"{path}: schema {version} is {age} than this program's {SCHEMA_VERSION}; {way_out}")
        manifest = Manifest.model_validate(content)
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise DatasetError(f"{path} is damaged ({error}); delete {dataset_dir} and run the stage again") from error
    for shard in manifest.shards:
        if Path(shard.name).name != shard.name:
            raise DatasetError(f"{path}: the shard {shard.name!r} is not in {dataset_dir}; run the stage again")
    return manifest


class _OpenShard:
    """A descriptor that is closed when nobody holds it any more."""

    def __init__(self, descriptor: int, *, is_copy: bool) -> None:
        self.descriptor = descriptor
        self.is_copy = is_copy

    def __del__(self) -> None:
        os.close(self.descriptor)


class PayloadReader:
    """Reads any sample's payload with one positioned read, from any thread; keeps the shards of late open.

    Not through a memory map: an error of the disk, or a shard that is cut while it is mapped, would end the process.

    Args:
        verify: compare each payload with its checksum in the index: a tar has none over its members.
        cache: where to keep copies of the shards, if not to read them where they lie.
    """

    def __init__(self, dataset_dir: Path, *, verify: bool = False, cache: ShardCache | None = None) -> None:
        self._dataset_dir = dataset_dir
        self._verify = verify
        self._cache = cache
        self._open = lru_cache(maxsize=MAX_OPEN_SHARDS if cache is None else MAX_OPEN_COPIES)(self._open_shard)

    def read(self, row: IndexRow) -> bytes:
        """The payload bytes of one sample.

        Raises:
            DatasetError: the shard is missing, shorter than the index says, or holds other bytes.
        """
        content = bytearray(row.size)
        self.read_into(row, memoryview(content))
        return bytes(content)

    def read_into(self, row: Place, buffer: memoryview) -> None:
        """The same into memory of exactly `row.size` bytes, whose content is undefined after an error.

        Raises:
            DatasetError: see `read`.
        """
        shard = self._open(row.shard)
        try:
            self._read_from(shard, row, buffer)
        except (DatasetError, OSError):
            if self._cache is None or not shard.is_copy:
                raise
            self._read_from(
                self._open_original(row.shard), row, buffer
            )  # if it is damaged too, the copy is not to blame
            self._cache.discard(self._dataset_dir / row.shard)
            self._open.cache_clear()

    def _read_from(self, shard: _OpenShard, row: Place, buffer: memoryview) -> None:
        if os.preadv(shard.descriptor, [buffer], row.offset) != row.size:
            raise DatasetError(
                f"{self._dataset_dir / row.shard} is cut short at sample {row.key}; make {self._dataset_dir} again"
            )
        if self._verify and crc32(buffer) != row.crc32:
            raise DatasetError(
                f"{self._dataset_dir / row.shard} holds other bytes for sample {row.key} than were written "
                f"(its checksum differs); make {self._dataset_dir} again"
            )

    def _open_shard(self, name: str) -> _OpenShard:
        path = self._path(name)
        copy = self._cache.open(path) if self._cache is not None else None
        return self._open_original(name) if copy is None else _OpenShard(copy, is_copy=True)

    def _open_original(self, name: str) -> _OpenShard:
        return _OpenShard(os.open(self._path(name), os.O_RDONLY), is_copy=False)

    def _path(self, name: str) -> Path:
        if Path(name).name != name:
            raise DatasetError(f"{INDEX_NAME} names the shard {name!r}, which is not in {self._dataset_dir}")
        path = self._dataset_dir / name
        if not path.is_file():
            raise DatasetError(f"{path} is missing although the index names it; make {self._dataset_dir} again")
        return path

    def close(self) -> None:
        """Close every shard."""
        self._open.cache_clear()
