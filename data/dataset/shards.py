"""WebDataset shards with an index beside them.

A dataset is a folder:

    shard-00000.tar ...   plain USTAR, one sample = members of one key in a row; any WebDataset reader takes it
    index.parquet         one row per sample: where its payload lies (shard, offset, size) and what it is
    manifest.json         published last: counts, checksums, fingerprint; without it the folder is not a dataset
    quarantine.jsonl      which sources could not be used, and why
    filtered.jsonl        which clips and sources were left out on purpose, and why
"""

import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import ValidationError

from data.dataset.clip import CAPTION_MEMBER, RECORD_MEMBER, ClipRecord
from data.dataset.index import IndexRow
from data.dataset.manifest import ShardRecord
from data.dataset.tarfiles import TarError, read_samples
from data.errors import DatasetError
from data.files.checksums import crc32, file_sha256
from data.files.publish import published

WRITE_BUFFER_BYTES = 4 << 20  # the page cache holds a file in pieces of the size of the writes: large ones read faster


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
