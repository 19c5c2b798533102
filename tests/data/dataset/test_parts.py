"""Shards that come in parts: the bytes of whole ones, and no more fetched than was asked for."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from data.dataset import parts
from data.dataset.clip import VIDEO_MEMBER
from data.dataset.parts import PartError, begin_parts
from data.dataset.reader import PayloadReader
from data.dataset.rows import IndexRow
from data.dataset.shards import write_shard
from data.errors import DatasetError
from data.stream.loader import Stream, Subset
from testing.records import SMALL, made_up_clip

NUM_SHARDS, PER_SHARD = 4, 16


class Counted:
    """Requests to a store for parts of objects: how many, and of how many bytes."""

    def __init__(self, kind: Any, monkeypatch) -> None:
        self.num_requests, self.num_bytes, self.num_failures = 0, 0, 0
        real = kind.cat_file

        def cat_file(files: Any, path: str, start: int, end: int) -> bytes:
            self.num_requests += 1
            if self.num_failures:
                self.num_failures -= 1
                raise ConnectionError("it went away")
            content = real(files, path, start=start, end=end)
            self.num_bytes += len(content)
            return content

        monkeypatch.setattr(kind, "cat_file", cat_file)


@pytest.fixture
def whole(tmp_path) -> Subset:
    rows: list[IndexRow] = []
    for shard in range(NUM_SHARDS):
        numbers = range(shard * PER_SHARD, (shard + 1) * PER_SHARD)
        samples = [(made_up_clip(n), os.urandom(20_000 + 100 * n)) for n in numbers]
        rows += write_shard(tmp_path / "whole" / f"shard-{shard:05d}.tar", samples, VIDEO_MEMBER)[1]
    return Subset(tmp_path / "whole", rows, SMALL)


@pytest.fixture
def store(whole, request, monkeypatch) -> Iterator[str]:
    """The URI of a folder with the shards, in blocks that are small beside their payloads."""
    monkeypatch.setattr(parts, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(parts, "PAUSES", (0.0, 0.0))
    uri = f"memory://{request.node.originalname}"
    files, root = fsspec.url_to_fs(uri)
    for path in whole.dataset_dir.iterdir():
        files.pipe_file(f"{root}/{path.name}", path.read_bytes())
    yield uri
    files.rm(root, recursive=True)


@pytest.fixture
def counted(store, monkeypatch) -> Counted:
    return Counted(type(fsspec.url_to_fs(store)[0]), monkeypatch)  # each thread has an object of its own


def begin(folder: Path, whole: Subset, store: str) -> Subset:
    """The same dataset on another machine, which has nothing of its shards."""
    for path in whole.dataset_dir.iterdir():
        begin_parts(folder / path.name, f"{store}/{path.name}", path.stat().st_size)
    return replace(whole, dataset_dir=folder)


def test_what_is_read_has_the_bytes_of_the_shard_and_is_fetched_once(whole, store, counted, tmp_path):
    here = begin(tmp_path / "here", whole, store)
    chosen = [here.rows[number] for number in (3, 4, 40)]
    readers = [PayloadReader(here.dataset_dir) for _ in range(2)]  # as of two processes of a machine
    for row in chosen:
        payloads = [reader.read(row) for reader in (*readers, PayloadReader(whole.dataset_dir))]
        assert payloads[0] == payloads[1] == payloads[2]
    assert counted.num_requests == 3
    assert sum(row.size for row in chosen) <= counted.num_bytes <= sum(row.size + 2 * 1000 for row in chosen)
    begin(tmp_path / "here", whole, store)  # a restart
    assert PayloadReader(here.dataset_dir).read(chosen[0]) == payloads_of(whole, [chosen[0]])[0]
    assert counted.num_requests == 3


def payloads_of(subset: Subset, rows: list[IndexRow]) -> list[bytes]:
    reader = PayloadReader(subset.dataset_dir)
    return [reader.read(row) for row in rows]


def test_a_rank_that_reads_half_of_a_dataset_fetches_about_half_of_it(whole, store, counted, tmp_path):
    """An epoch in steps of 8, of which each of two machines reads 4, in the order and with the bytes of whole ones."""
    num_bytes = sum(path.stat().st_size for path in whole.dataset_dir.iterdir())
    fetched = []
    for rank in range(2):
        before = counted.num_bytes
        here = begin(tmp_path / f"machine-{rank}", whole, store)
        seen = []
        for subset in (here, whole):
            stream = Stream([subset], {SMALL.name: 8}, seed=5, rank=rank, world_size=2)
            batches = stream.batches(0, list, readers=2)
            read = [sample for _ in range(len(whole.rows) // 8) for sample in next(batches)]
            seen.append([(sample.position, sample.row.key, bytes(sample.payload)) for sample in read])
            batches.close()
        assert seen[0] == seen[1]
        assert len(seen[0]) == len(whole.rows) // 2
        fetched.append((counted.num_bytes - before) / num_bytes)
    assert all(0.4 < share < 0.75 for share in fetched), fetched  # with what was read ahead of the next epoch
    assert counted.num_requests <= 2 * (len(whole.rows) // 2 + 4 * 4)


def test_damage_here_is_fetched_again_and_damage_in_the_store_is_a_damaged_sample(whole, store, counted, tmp_path):
    here = begin(tmp_path / "here", whole, store)
    row, reader = here.rows[3], PayloadReader(here.dataset_dir)
    expected = reader.read(row)
    part = here.dataset_dir / f"{row.shard}.part"
    with part.open("r+b") as file:
        file.seek(row.offset)
        file.write(bytes(row.size))
    assert reader.read(row) == expected
    assert counted.num_requests == 2
    files, root = fsspec.url_to_fs(store)
    files.pipe_file(f"{root}/{row.shard}", bytes(files.size(f"{root}/{row.shard}")))
    with pytest.raises(DatasetError, match=r"shard-00000\.tar holds other bytes for sample"):
        reader.read(here.rows[9])


@pytest.mark.parametrize("num_failures", [2, 3])
def test_a_store_that_fails_is_asked_again_and_never_costs_a_sample(whole, store, counted, tmp_path, num_failures):
    here = begin(tmp_path / "here", whole, store)
    batches = Stream([here], {SMALL.name: 2}, seed=0, rank=0, world_size=1).batches(0, list, readers=0)
    counted.num_failures = num_failures
    if num_failures == 2:
        assert len(next(batches)) == 2
        return
    with pytest.raises(PartError, match=r"memory://\S+, which holds \S+tar, cannot be read \(it went away\)"):
        next(batches)


def test_another_shard_of_the_same_name_begins_anew(whole, store, counted, tmp_path):
    here = begin(tmp_path / "here", whole, store)
    row = here.rows[3]
    payloads_of(here, [row])
    files, root = fsspec.url_to_fs(store)
    files.copy(f"{root}/{row.shard}", f"{root}/newer")
    begin_parts(here.dataset_dir / row.shard, f"{store}/newer", files.size(f"{root}/newer"))
    assert payloads_of(here, [row]) == payloads_of(whole, [row])
    assert counted.num_requests == 2


def test_a_shard_that_is_neither_here_nor_comes_in_parts_is_missing(whole, store, tmp_path):
    here = begin(tmp_path / "here", whole, store)
    (here.dataset_dir / "shard-00002.tar.part.json").unlink()
    with pytest.raises(DatasetError, match=r"shard-00002\.tar is missing although the index names it"):
        Stream([here], {SMALL.name: 2}, seed=0, rank=0, world_size=1)
    with pytest.raises(DatasetError, match=r"shard-00002\.tar is missing although the index names it"):
        payloads_of(here, [here.rows[40]])
