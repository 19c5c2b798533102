"""Shards and their index: every sample has an address."""

import os
import zlib
from pathlib import Path

import pytest
import webdataset as wds

from data.dataset.buckets import Bucket
from data.dataset.clip import VIDEO_MEMBER, ClipRecord
from data.dataset.manifest import SCHEMA_VERSION, read_manifest
from data.dataset.reader import PayloadReader
from data.dataset.shards import read_shard, write_shard
from data.errors import DatasetError
from data.files.publish import publish_text, published, remove_unpublished
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


def test_index_and_stock_webdataset_agree(dataset):
    folder, rows = dataset
    by_index = {row.key: PayloadReader(folder).read(row) for row in rows}
    urls = [str(folder / f"shard-{shard}.tar") for shard in range(2)]
    by_webdataset = {s["__key__"]: s["mp4"] for s in wds.WebDataset(urls, shardshuffle=False)}
    assert by_index == by_webdataset == {record(n).key: payload(n) for n in range(16)}


def test_shards_are_reproducible_to_the_byte(tmp_path):
    samples = [(record(n), payload(n)) for n in range(3)]
    one, _ = write_shard(tmp_path / "a.tar", samples, VIDEO_MEMBER)
    two, _ = write_shard(tmp_path / "b.tar", samples, VIDEO_MEMBER)
    assert one.sha256 == two.sha256
    assert [r for r, _ in read_shard(tmp_path / "a.tar", VIDEO_MEMBER)] == [record(n) for n in range(3)]


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


def test_manifest_errors(tmp_path):
    with pytest.raises(DatasetError, match="not a finished dataset"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"schema_version": 99}', encoding="utf-8")
    with pytest.raises(DatasetError, match="schema 99 is newer"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"schema_version": 1}', encoding="utf-8")
    with pytest.raises(DatasetError, match=f"schema 1 is older than this program's {SCHEMA_VERSION}; run the stage"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(DatasetError, match="damaged"):
        read_manifest(tmp_path)


def test_publishing_is_all_or_nothing(tmp_path):
    target = tmp_path / "file.txt"
    publish_text(target, "old")

    def fail_halfway() -> None:
        with published(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail_halfway()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
    (tmp_path / ".tmp-leftover").write_text("x")
    (tmp_path / ".tmp-folder").mkdir()
    remove_unpublished(tmp_path)
    assert list(tmp_path.iterdir()) == [target]
