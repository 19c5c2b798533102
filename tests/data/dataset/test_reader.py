"""Shards and their index: every sample has an address."""

import gc
import os
import zlib
from pathlib import Path

import pytest
import webdataset as wds

from data.dataset.buckets import Bucket
from data.dataset.clip import VIDEO_MEMBER, ClipRecord
from data.dataset.reader import PayloadReader
from data.dataset.shards import write_shard
from data.errors import DatasetError
from testing.records import made_up_clip


def record(number: int) -> ClipRecord:
    return made_up_clip(number, Bucket()).model_copy(update={"caption": f"caption {number}, ünïcode"})


def payload(number: int) -> bytes:
    return bytes([number % 256]) * (500 + 37 * number)


@pytest.fixture
def dataset(tmp_path: Path):
    rows = []
    for shard in range(2):
        numbers = range(shard * 8, shard * 8 + 8)
        rows += write_shard(tmp_path / f"shard-{shard}.tar", [(record(n), payload(n)) for n in numbers], VIDEO_MEMBER)[
            1
        ]
    return tmp_path, rows


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves files to the garbage collector
def test_index_and_stock_webdataset_agree(dataset):
    folder, rows = dataset
    by_index = {row.key: PayloadReader(folder).read(row) for row in rows}
    urls = [str(folder / f"shard-{shard}.tar") for shard in range(2)]
    by_webdataset = {s["__key__"]: s["mp4"] for s in wds.compat.WebDataset(urls, shardshuffle=False)}
    gc.collect()  # its files, while their warnings are ignored
    assert by_index == by_webdataset == {record(n).key: payload(n) for n in range(16)}


def test_a_cut_or_missing_shard_is_named(dataset):
    folder, rows = dataset
    os.truncate(folder / "shard-0.tar", rows[3].offset + 5)
    with pytest.raises(DatasetError, match=r"shard-0\.tar is cut short"):
        PayloadReader(folder).read(rows[3])
    (folder / "shard-1.tar").unlink()
    with pytest.raises(DatasetError, match=r"shard-1\.tar is missing"):
        PayloadReader(folder).read(rows[9])


def test_every_member_is_one_range_read_away(dataset):
    folder, rows = dataset
    for number, row in enumerate(rows):
        content = (folder / row.shard).read_bytes()
        assert content[row.offset : row.offset + row.size] == payload(number)
        assert content[row.caption_offset : row.caption_offset + row.caption_size].decode() == row.caption
        stored = content[row.record_offset : row.record_offset + row.record_size]
        assert ClipRecord.model_validate_json(stored) == record(number)
        assert row.crc32 == zlib.crc32(payload(number))
        assert (row.end_seconds, row.num_frames, row.height, row.fps) == (17 / 8, 17, 64, 8)


def test_a_changed_byte_is_found_when_asked_for(dataset):
    folder, rows = dataset
    row = rows[3]
    with (folder / row.shard).open("r+b") as file:
        file.seek(row.offset + 7)
        file.write(b"!")
    assert len(PayloadReader(folder).read(row)) == row.size
    verifying = PayloadReader(folder, verify=True)
    assert verifying.read(rows[2]) == payload(2)
    with pytest.raises(DatasetError, match=rf"shard-0\.tar holds other bytes for sample {row.key}"):
        verifying.read(row)
