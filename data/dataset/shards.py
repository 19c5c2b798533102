"""Shards in the WebDataset format, written and read.

A dataset is a folder:

    shard-b010.tar ...    plain USTAR; a sample is the consecutive members of one key; any WebDataset reader reads it
    index.parquet         a row per sample: location of the payload (shard, offset, size) and metadata
    manifest.json         published last: counts, checksums, fingerprint; without it the folder is not a dataset
    quarantine.jsonl      sources that could not be used, and why
    filtered.jsonl        clips and sources that were left out on purpose, and why
"""

import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path

from pydantic import ValidationError

from data.dataset.clip import CAPTION_MEMBER, OPTIONAL_MEMBERS, RECORD_MEMBER, ClipRecord
from data.dataset.manifest import ShardRecord
from data.dataset.rows import IndexRow
from data.dataset.tarfiles import TarError, read_samples
from data.errors import DatasetError
from data.files.checksums import crc32, file_sha256
from data.files.publish import published

WRITE_BUFFER_BYTES = 4 << 20  # files written in large blocks are read faster: the page cache keeps the blocks


def write_shard(
    path: Path,
    samples: Iterable[tuple[ClipRecord, bytes]],
    payload_member: str,
    before_publish: Callable[[], None] = lambda: None,
) -> tuple[ShardRecord, list[IndexRow]]:
    """Write a shard atomically; equal samples give equal bytes.

    Args:
        samples: record and payload of each.
        payload_member: name of the member that holds the payload, such as `VIDEO_MEMBER`.
        before_publish: called when the shard is written, just before it takes the place of an older one.

    Returns:
        The shard's entry for the manifest, and the index rows of its samples, in order.
    """
    members = ((record, {payload_member: payload}) for record, payload in samples)
    shard, rows = write_members(path, members, (payload_member,), before_publish)
    return shard, rows[payload_member]


def write_members(
    path: Path,
    samples: Iterable[tuple[ClipRecord, Mapping[str, bytes]]],
    payload_members: Sequence[str],
    before_publish: Callable[[], None] = lambda: None,
) -> tuple[ShardRecord, dict[str, list[IndexRow]]]:
    """As `write_shard`, of samples that have several members beside caption and record.

    Args:
        samples: record and members of each, by name.
        payload_members: names of members that every sample has, each of which is the payload of a dataset.

    Returns:
        The shard's entry for the manifest, and by payload the index rows of its samples, in order.
    """
    records: list[ClipRecord] = []
    checksums: dict[str, list[int]] = {name: [] for name in payload_members}
    places: dict[str, tuple[int, int]] = {}
    with published(path) as temporary:
        with (
            temporary.open("wb", buffering=WRITE_BUFFER_BYTES) as file,
            tarfile.open(fileobj=file, mode="w") as tar,
        ):
            for record, members in samples:
                contents = {
                    **members,
                    CAPTION_MEMBER: record.caption.encode(),
                    RECORD_MEMBER: record.model_dump_json().encode(),
                }
                for member in sorted(contents):
                    name = f"{record.key}.{member}"
                    places[name] = _add_member(tar, name, contents[member]), len(contents[member])
                records.append(record)
                for member in payload_members:
                    checksums[member].append(crc32(members[member]))
        shard = ShardRecord(
            name=path.name,
            num_samples=len(records),
            num_bytes=temporary.stat().st_size,
            sha256=file_sha256(temporary),
        )
        before_publish()
    rows = {
        name: [
            _index_row(record, path.name, checksum, places, name)
            for record, checksum in zip(records, checksums[name], strict=True)
        ]
        for name in payload_members
    }
    return shard, rows


def _add_member(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Add a file, as WebDataset's `TarWriter` does, which would import torch into every process that writes.

    Returns:
        Offset of the content in bytes.
    """
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime, entry.mode = len(content), 0, 0o444
    entry.uname = entry.gname = "reelflow"
    tar.addfile(entry, BytesIO(content))
    return tar.offset - -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE  # blocks are padded with zeros


def _index_row(
    record: ClipRecord, shard: str, checksum: int, members: dict[str, tuple[int, int]], payload_member: str
) -> IndexRow:
    """The row of one sample.

    Args:
        checksum: CRC-32 of its payload.
        members: offset and size in bytes of each member of the shard, by name.
    """
    offset, size = members[f"{record.key}.{payload_member}"]
    caption_offset, caption_size = members[f"{record.key}.{CAPTION_MEMBER}"]
    record_offset, record_size = members[f"{record.key}.{RECORD_MEMBER}"]
    return IndexRow(
        key=record.key,
        shard=shard,
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


def read_shard(path: Path, payload_member: str, shard: ShardRecord | None = None) -> Iterator[tuple[ClipRecord, bytes]]:
    """The records and payloads of a shard, in order.

    Args:
        payload_member: as in `write_shard`.
        shard: its entry in the manifest, to verify its checksum first; None: it is not verified.

    Raises:
        DatasetError: it is missing, damaged, or contains anything but samples.
    """
    if not path.is_file():
        raise DatasetError(f"{path} is missing although the manifest names it; make {path.parent} again")
    if shard is not None and file_sha256(path) != shard.sha256:
        raise DatasetError(f"{path} is damaged (its checksum differs from the manifest's); make {path.parent} again")
    try:
        for key, sample in read_samples(
            path, frozenset({payload_member, CAPTION_MEMBER, RECORD_MEMBER}), OPTIONAL_MEMBERS
        ):
            record = ClipRecord.model_validate_json(sample[RECORD_MEMBER])
            if record.key != key:
                raise DatasetError(f"{path}: the record of {key} has the key {record.key!r}; make {path.parent} again")
            yield record, sample[payload_member]
    except TarError as error:
        raise DatasetError(f"{error}; make {path.parent} again") from error
    except ValidationError as error:
        raise DatasetError(f"{path} holds a damaged record ({error}); make {path.parent} again") from error
