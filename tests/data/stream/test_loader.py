"""The stream of samples: resumed at any cursor, on any world size, with damaged samples replaced."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import pytest

from data.dataset.buckets import (
    batch_sizes,
)
from data.dataset.clip import VIDEO_MEMBER
from data.dataset.reader import PayloadReader
from data.dataset.shards import write_shard
from data.errors import DatasetError
from data.stream.loader import Sample, Stream, Subset, subsets_of
from data.stream.plan import BatchPlan, TokenBudget
from testing.records import SMALL, made_up_clip
from testing.shapes import SQUARE, STILL


def test_weights_say_how_often_each_sample_is_seen(tmp_path):
    """Two datasets in two buckets; in any stretch of the run, a clip of weight 3 comes three times as often."""
    samples = []
    for number in range(48):
        record = made_up_clip(number, (SQUARE, STILL)[number % 2])
        samples.append((record.model_copy(update={"dataset": "few" if number < 12 else "many"}), bytes([number])))
    rows = write_shard(tmp_path / "shard-00000.tar", samples, VIDEO_MEMBER)[1]
    subsets = subsets_of(tmp_path, rows, {"few": 3.0})
    assert [(s.bucket.name, s.rows[0].dataset, len(s.rows), s.weight) for s in subsets] == [
        (STILL.name, "few", 6, 3.0),
        (STILL.name, "many", 18, 1.0),
        (SQUARE.name, "few", 6, 3.0),
        (SQUARE.name, "many", 18, 1.0),
    ]
    sizes = batch_sizes([subset.bucket for subset in subsets], 4, 2)
    assert sizes == {SQUARE.name: 4, STILL.name: 12}
    stream = Stream(subsets, sizes, seed=0, rank=0, world_size=1)
    batches = stream.batches(0, list, readers=0)
    seen: Counter[str] = Counter()
    num_steps = 9 + 3  # 36 turns of each bucket's weighted clips: 12 of 3 x 6 + 18 and 4 each, or 12 each
    for batch in (next(batches) for _ in range(num_steps)):
        assert len({sample.row.bucket for sample in batch}) == 1
        assert len(batch) == sizes[batch[0].row.bucket]
        seen.update(sample.row.key for sample in batch)
    few, many = ({seen[row.key] for row in rows if row.dataset == name} for name in ("few", "many"))
    assert few == {3}
    assert many == {1}


def test_the_cursor_counts_clips_of_unequal_batches(tmp_path):
    samples = [(made_up_clip(number, (SQUARE, STILL)[number % 2]), b"x") for number in range(20)]
    rows = write_shard(tmp_path / "shard-00000.tar", samples, VIDEO_MEMBER)[1]
    subsets = subsets_of(tmp_path, rows, {})
    sizes = {SQUARE.name: 2, STILL.name: 6}
    plan = BatchPlan([subset.part() for subset in subsets], sizes, seed=0)
    assert [plan.step(plan.cursor(step)) for step in range(50)] == list(range(50))
    assert [plan.cursor(step + 1) - plan.cursor(step) for step in range(50)] == [plan.batch_size(s) for s in range(50)]


@pytest.fixture
def subset(tmp_path: Path) -> Subset:
    rows = []
    for shard in range(4):
        samples = [(made_up_clip(n), bytes([n]) * (500 + 37 * n)) for n in range(shard * 8, shard * 8 + 8)]
        rows += write_shard(tmp_path / f"shard-{shard}.tar", samples, VIDEO_MEMBER)[1]
    return Subset(tmp_path, rows, SMALL)


def keys(subset: Subset, cursor: int, num_batches: int, rank=0, world_size=1, readers=1) -> list[list[str]]:
    stream = Stream([subset], {SMALL.name: 8}, seed=3, rank=rank, world_size=world_size)
    batches = stream.batches(cursor, lambda samples: [sample.row.key for sample in samples], readers)
    taken = [next(batches) for _ in range(num_batches)]
    batches.close()
    return taken


def test_stream_resumes_at_any_cursor_on_any_world_with_any_readers(subset):
    whole = keys(subset, 0, 12)
    for epoch in range(3):
        assert Counter(chain.from_iterable(whole[4 * epoch : 4 * epoch + 4])) == Counter(row.key for row in subset.rows)
    for readers in (0, 1, 4):
        for world_size in (1, 2, 4, 8):
            ranks = [keys(subset, 40, 7, rank, world_size, readers) for rank in range(world_size)]
            assert [list(chain.from_iterable(pieces)) for pieces in zip(*ranks, strict=True)] == whole[5:]


def test_stream_brings_the_payload_of_each_key(subset):
    stream = Stream([subset], {SMALL.name: 8}, seed=0, rank=0, world_size=1)
    batches = stream.batches(0, list, readers=2)
    for sample in next(batches):
        number = int(sample.row.key, 16)
        assert sample.payload == bytes([number]) * (500 + 37 * number)
    batches.close()


def test_an_error_in_a_reading_thread_reaches_the_loop(subset):
    def fail(samples):
        raise ValueError("cannot prepare")

    stream = Stream([subset], {SMALL.name: 8}, seed=3, rank=0, world_size=1)
    for readers in (0, 1):
        with pytest.raises(ValueError, match="cannot prepare"):
            next(stream.batches(0, fail, readers))


def test_a_cut_or_missing_shard_is_found_before_the_first_batch(subset):
    shard = subset.dataset_dir / "shard-2.tar"
    os.truncate(shard, 3000)
    with pytest.raises(DatasetError, match=r"shard-2\.tar is cut short: the index needs \d+ bytes, it has 3000"):
        Stream([subset], {SMALL.name: 8}, seed=3, rank=0, world_size=1)
    shard.unlink()
    with pytest.raises(DatasetError, match=r"shard-2\.tar is missing although the index names it"):
        Stream([subset], {SMALL.name: 8}, seed=3, rank=0, world_size=1)
    with pytest.raises(DatasetError, match="has no samples to train on"):
        Stream([Subset(subset.dataset_dir, [], SMALL)], {SMALL.name: 8}, seed=3, rank=0, world_size=1)


def num_open_files_of(folder: Path) -> int:
    """Others of this process come and go meanwhile, such as those of Ray's threads."""
    opened = (os.path.realpath(descriptor) for descriptor in Path("/proc/self/fd").iterdir())
    return sum(Path(path).is_relative_to(folder.resolve()) for path in opened)


def test_many_threads_read_more_shards_than_may_be_open(subset, monkeypatch):
    monkeypatch.setattr("data.dataset.reader.MAX_OPEN_SHARDS", 1)
    reader = PayloadReader(subset.dataset_dir)
    with ThreadPoolExecutor(4) as pool:
        for row, payload in zip(subset.rows * 5, pool.map(reader.read, subset.rows * 5), strict=True):
            assert payload == bytes([int(row.key, 16)]) * (500 + 37 * int(row.key, 16))
    assert num_open_files_of(subset.dataset_dir) == 1
    reader.close()
    assert num_open_files_of(subset.dataset_dir) == 0


def test_a_flipped_bit_is_found_skipped_and_replaced(subset):
    row = subset.rows[9]
    with (subset.dataset_dir / row.shard).open("r+b") as shard:
        shard.seek(row.offset + 100)
        shard.write(b"\xff")
    stream = Stream([subset], {SMALL.name: 8}, seed=3, rank=0, world_size=1)
    batches = stream.batches(0, lambda samples: [sample.row.key for sample in samples], readers=0)
    read = [key for _ in range(4) for key in next(batches)]
    assert len(read) == 32
    assert row.key not in read
    (skipped,) = stream.take_skipped(32)
    assert skipped.key == row.key
    assert "its checksum differs" in skipped.reason


def test_an_unreadable_sample_is_replaced_alike_on_any_world(subset, monkeypatch):
    bad = {subset.rows[5].key, subset.rows[20].key}
    read = PayloadReader.read_into

    def refuse(self, row, buffer):
        if row.key in bad:
            raise DatasetError(f"{row.key} is damaged")
        return read(self, row, buffer)

    healthy = keys(subset, 0, 8)
    monkeypatch.setattr(PayloadReader, "read_into", refuse)
    damaged = keys(subset, 0, 8)
    assert not bad & {key for batch in damaged for key in batch}
    changed = [
        (a, b) for old, new in zip(healthy, damaged, strict=True) for a, b in zip(old, new, strict=True) if a != b
    ]
    assert {a for a, _ in changed} == bad
    assert len(changed) == 4  # each is met once in each of the two epochs
    halves = [keys(subset, 0, 8, rank, 2) for rank in range(2)]
    assert [list(chain.from_iterable(pieces)) for pieces in zip(*halves, strict=True)] == damaged
    stream = Stream([subset], {SMALL.name: 8}, seed=3, rank=0, world_size=1)
    batches = stream.batches(0, len, readers=0)
    assert [next(batches) for _ in range(4)] == [8] * 4
    assert {skipped.key for skipped in stream.take_skipped(32)} == bad
    assert stream.take_skipped(32) == []
    bad |= {row.key for row in subset.rows}
    with pytest.raises(DatasetError, match="8 samples in a row cannot be read"):
        next(stream.batches(0, len, readers=0))


def test_mixed_batches_are_shared_evenly_on_any_world_and_resumed_at_any_step(tmp_path, monkeypatch):
    """Each rank has equally many clips of each bucket, and together they are the batch; with a damaged sample too."""
    samples = [(made_up_clip(number, (SQUARE, STILL)[number % 4 == 0]), bytes([number])) for number in range(48)]
    rows = write_shard(tmp_path / "shard-00000.tar", samples, VIDEO_MEMBER)[1]
    subsets = subsets_of(tmp_path, rows, {})
    tokens = {bucket.name: bucket.num_latent_positions for bucket in (SQUARE, STILL)}
    budget = TokenBudget(12 * tokens[SQUARE.name], tokens)

    def batches(start: int, rank: int, world_size: int) -> list[list[Sample]]:
        sizes = dict.fromkeys(tokens, 4)
        stream = Stream(subsets, sizes, seed=3, rank=rank, world_size=world_size, budget=budget)
        taken = stream.batches(stream.plan.cursor(start), list, readers=0)
        return [next(taken) for _ in range(6 - start)]

    whole = batches(0, 0, 1)
    seen = Counter(sample.row.key for batch in whole for sample in batch)
    assert max(seen.values()) - min(seen.values()) <= 1
    for start, world_size in ((0, 2), (3, 4), (5, 1)):
        ranks = [batches(start, rank, world_size) for rank in range(world_size)]
        for expected, *pieces in zip(whole[start:], *ranks, strict=True):
            assert Counter(s.row.key for piece in pieces for s in piece) == Counter(s.row.key for s in expected)
            assert {s.position: s.row.key for s in expected} == {s.position: s.row.key for p in pieces for s in p}
            counts = [Counter(sample.row.bucket for sample in piece) for piece in pieces]
            assert all(count == counts[0] for count in counts)
            assert len(counts[0]) == 2

    bad, read = whole[0][0].row.key, PayloadReader.read_into

    def refuse(self, row, buffer):
        if row.key == bad:
            raise DatasetError(f"{row.key} is damaged")
        return read(self, row, buffer)

    monkeypatch.setattr(PayloadReader, "read_into", refuse)
    replaced = {s.position: s.row for s in batches(0, 0, 1)[0]}
    assert bad not in {row.key for row in replaced.values()}
    assert replaced == {s.position: s.row for rank in range(4) for s in batches(0, rank, 4)[0]}
    assert Counter(row.bucket for row in replaced.values()) == Counter(s.row.bucket for s in whole[0])
