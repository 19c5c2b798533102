"""Shards, index and the deterministic stream: every sample accounted for."""

import os
import zlib
from collections import Counter
from pathlib import Path

import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st

from data.clip import VIDEO_MEMBER, ClipRecord
from data.loader import Stream, local_positions, sample_at
from data.publish import publish_text, published, remove_unpublished
from data.shards import DatasetError, PayloadReader, read_manifest, read_shard, write_shard


def record(number: int) -> ClipRecord:
    return ClipRecord(
        key=f"{number:020x}",
        source=f"{number}.mp4",
        start_seconds=0.0,
        caption=f"caption {number}, ünïcode",
        split="train",
        decoder="decord",
        num_frames=17,
        height=64,
        width=64,
        fps=8,
    )


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
    with pytest.raises(DatasetError, match="schema 1 is older than this program's 2; run the stage"):
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


def test_every_epoch_holds_every_sample_once():
    for epoch in range(3):
        seen = Counter(sample_at(5, epoch * 37 + place, 37) for place in range(37))
        assert seen == Counter(range(37))
    orders = {tuple(sample_at(5, epoch * 37 + place, 37) for place in range(37)) for epoch in range(3)}
    assert len(orders) == 3  # another order each time


@settings(deadline=None, max_examples=60)
@given(
    num_samples=st.integers(1, 200),
    micro_batch=st.integers(1, 4),
    world_size=st.integers(1, 8),
    start=st.integers(0, 30),
    seed=st.integers(0, 1000),
)
def test_global_batches_do_not_depend_on_the_world(num_samples, micro_batch, world_size, start, seed):
    """Batch k is the same on one worker or many, from the start or from any cursor."""
    global_batch = micro_batch * world_size
    for step in range(start, start + 3):
        cursor = step * global_batch
        together = [p for rank in range(world_size) for p in local_positions(cursor, global_batch, rank, world_size)]
        assert together == list(local_positions(cursor, global_batch, 0, 1))
        assert [sample_at(seed, p, num_samples) for p in together] == [
            sample_at(seed, p, num_samples) for p in range(cursor, cursor + global_batch)
        ]


def test_stream_resumes_at_any_cursor(dataset):
    folder, rows = dataset

    def keys(cursor: int, rank: int, world_size: int, num_batches: int) -> list[list[str]]:
        stream = Stream(folder, rows, seed=3, global_batch=4, rank=rank, world_size=world_size)
        batches = stream.batches(cursor, lambda samples: [s.row.key for s in samples])
        taken = [next(batches) for _ in range(num_batches)]
        batches.close()
        return taken

    whole = keys(0, 0, 1, 10)
    assert keys(12, 0, 1, 7) == whole[3:]
    halves = [a + b for a, b in zip(keys(0, 0, 2, 10), keys(0, 1, 2, 10), strict=True)]
    assert halves == whole
    assert Counter(key for batch in whole[:4] for key in batch) == Counter(row.key for row in rows)


def test_an_error_in_the_fetching_thread_reaches_the_loop(dataset):
    folder, rows = dataset

    def fail(samples):
        raise ValueError("cannot prepare")

    stream = Stream(folder, rows, seed=3, global_batch=4, rank=0, world_size=1)
    with pytest.raises(ValueError, match="cannot prepare"):
        next(stream.batches(0, fail))


def test_a_batch_must_divide_over_the_workers():
    with pytest.raises(ValueError, match="does not divide over 3 workers"):
        local_positions(0, 8, 0, 3)
