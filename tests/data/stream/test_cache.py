"""The cache of shards: its limit holds, what it serves is whole, and it can always be done without."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import ValidationError

from data.dataset.clip import VIDEO_MEMBER
from data.dataset.index import IndexRow, write_index
from data.dataset.reader import PayloadReader
from data.dataset.shards import write_shard
from data.errors import DatasetError
from data.stream.cache import CacheError, ShardCache
from data.stream.config import CacheConfig
from data.stream.loader import Stream, Subset
from testing.records import SMALL, made_up_clip


def payload(number: int) -> bytes:
    return bytes([number]) * 5000


@pytest.fixture
def subset(tmp_path: Path) -> Subset:
    rows = []
    for shard in range(6):
        samples = [(made_up_clip(n), payload(n)) for n in range(shard * 4, shard * 4 + 4)]
        rows += write_shard(tmp_path / "data" / f"shard-{shard}.tar", samples, VIDEO_MEMBER)[1]
    return Subset(tmp_path / "data", rows, SMALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def shard_bytes(subset: Subset) -> int:
    return (subset.dataset_dir / subset.rows[0].shard).stat().st_size


def copies(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.copy"))


def cached_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check(row: IndexRow, content: bytes) -> None:
    assert content == payload(int(row.key, 16))


def test_a_shard_is_copied_once_and_read_from_its_copy(subset, folder):
    cache = ShardCache(folder, 10 * shard_bytes(subset))
    reader = PayloadReader(subset.dataset_dir, verify=True, cache=cache)
    for row in subset.rows[:8]:
        check(row, reader.read(row))
    (first, second) = copies(folder)
    made = {path: path.stat().st_ino for path in (first, second)}
    originals = [(subset.dataset_dir / f"shard-{n}.tar").read_bytes() for n in range(2)]
    assert sorted(path.read_bytes() for path in made) == sorted(originals)
    reader.close()
    again = PayloadReader(subset.dataset_dir, cache=ShardCache(folder, 10 * shard_bytes(subset)))
    original = subset.dataset_dir / "shard-0.tar"
    state = original.stat()
    original.write_bytes(bytes(state.st_size))  # to see where it is read from
    os.utime(original, ns=(state.st_atime_ns, state.st_mtime_ns))
    check(subset.rows[0], again.read(subset.rows[0]))
    assert {path: path.stat().st_ino for path in copies(folder)} == made


def test_a_shard_that_was_made_again_is_copied_again(subset, folder):
    cache = ShardCache(folder, 10 * shard_bytes(subset))
    check(subset.rows[1], PayloadReader(subset.dataset_dir, cache=cache).read(subset.rows[1]))
    original = subset.dataset_dir / "shard-0.tar"
    original.write_bytes(original.read_bytes().replace(payload(1), payload(99)))
    assert PayloadReader(subset.dataset_dir, cache=cache).read(subset.rows[1]) == payload(99)


def test_the_copies_used_least_recently_make_room(subset, folder):
    size = shard_bytes(subset)
    cache = ShardCache(folder, 3 * size + 100)
    paths = [subset.dataset_dir / f"shard-{n}.tar" for n in range(6)]
    held = {}
    for turn, number in enumerate((0, 1, 2, 0, 3, 4)):
        descriptor = cache.open(paths[number])
        assert descriptor is not None
        assert os.pread(descriptor, size, 0) == paths[number].read_bytes()
        os.utime(descriptor, ns=(turn, turn))  # clocks are coarse
        os.close(descriptor)
        assert cached_bytes(folder) <= 3 * size + 100
        held = {path.read_bytes() for path in copies(folder)}
    assert held == {paths[n].read_bytes() for n in (0, 3, 4)}


def test_open_copies_stay_and_the_limit_holds(subset, folder):
    size = shard_bytes(subset)
    cache = ShardCache(folder, 2 * size)
    paths = [subset.dataset_dir / f"shard-{n}.tar" for n in range(3)]
    first, second = cache.open(paths[0]), cache.open(paths[1])
    assert first is not None
    assert second is not None
    assert cache.open(paths[2]) is None  # to be read where it lies
    assert cached_bytes(folder) == 2 * size
    os.close(second)
    third = cache.open(paths[2])
    assert third is not None
    assert os.pread(first, size, 0) == paths[0].read_bytes()
    assert os.pread(third, size, 0) == paths[2].read_bytes()
    os.close(first)
    os.close(third)


def test_a_shard_larger_than_the_limit_is_read_where_it_lies(subset, folder):
    reader = PayloadReader(subset.dataset_dir, cache=ShardCache(folder, shard_bytes(subset) - 1))
    check(subset.rows[0], reader.read(subset.rows[0]))
    assert copies(folder) == []


def test_the_stream_is_the_same_with_a_cache_of_any_size(subset, folder):
    def batches(cache: CacheConfig | None) -> list[list[tuple[str, bytes]]]:
        stream = Stream([subset], {SMALL.name: 4}, seed=3, rank=0, world_size=1, cache=cache)
        made = stream.batches(0, lambda samples: [(s.row.key, bytes(s.payload)) for s in samples], readers=3)
        taken = [next(made) for _ in range(15)]
        made.close()
        return taken

    expected = batches(None)
    for shards in (0.5, 1.5, 3, 10):
        limit = shards * shard_bytes(subset)
        cached = CacheConfig(folder=folder / str(shards), limit_gib=limit / 2**30)
        assert batches(cached) == expected
        assert cached_bytes(cached.folder) <= limit
        assert len(copies(cached.folder)) == min(int(shards), 6)


READ_ALL = """
import sys
from pathlib import Path
from filelock import FileLock
from data.stream.cache import LOCK_NAME, SUBFOLDER, ShardCache
from data.dataset.reader import PayloadReader
from data.dataset.index import read_index
folder, cache, limit = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
for _ in range(20):
    reader = PayloadReader(folder, verify=True, cache=ShardCache(cache, limit))
    for row in read_index(folder):
        assert reader.read(row) == bytes([int(row.key, 16)]) * 5000
        with FileLock(cache / SUBFOLDER / LOCK_NAME):  # nothing is copied or deleted while it is counted
            size = sum(path.stat().st_size for path in cache.rglob("*.copy"))
        assert size <= limit, size
        reader.close()
"""


def test_two_processes_and_their_threads_share_a_cache(subset, folder):
    write_index(subset.dataset_dir, list(subset.rows))
    limit = 3 * shard_bytes(subset)
    command = [sys.executable, "-c", READ_ALL, str(subset.dataset_dir), str(folder), str(limit)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    reader = PayloadReader(subset.dataset_dir, verify=True, cache=ShardCache(folder, limit))
    with ThreadPoolExecutor(4) as pool:
        for row, content in zip(subset.rows * 20, pool.map(reader.read, subset.rows * 20), strict=True):
            check(row, content)
    reader.close()
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert cached_bytes(folder) <= limit
    assert list(folder.rglob(".tmp-*")) == []


KILLED = """
import os, signal, sys
from pathlib import Path
import data.stream.cache
from data.stream.cache import ShardCache
def stop(block, value): os.kill(os.getpid(), signal.SIGKILL)
cache = ShardCache(Path(sys.argv[2]), 10**9)
data.stream.cache.BLOCK_BYTES = 1000
data.stream.cache.crc32 = stop
cache.open(Path(sys.argv[1]))
"""


def test_a_copy_torn_by_a_kill_is_never_served_and_removed(subset, folder):
    shard = subset.dataset_dir / "shard-0.tar"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(shard), str(folder)], check=False)
    assert killed.returncode == -9
    assert len(list(folder.rglob(".tmp-*"))) == 1
    assert copies(folder) == []
    reader = PayloadReader(subset.dataset_dir, verify=True, cache=ShardCache(folder, 10 * shard_bytes(subset)))
    check(subset.rows[0], reader.read(subset.rows[0]))
    assert list(folder.rglob(".tmp-*")) == []
    assert [path.read_bytes() for path in copies(folder)] == [shard.read_bytes()]


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_copy_is_replaced_and_the_sample_read_where_it_lies(subset, folder, damage):
    row, shard = subset.rows[1], subset.dataset_dir / "shard-0.tar"
    reader = PayloadReader(subset.dataset_dir, verify=True, cache=ShardCache(folder, 10 * shard_bytes(subset)))
    check(row, reader.read(row))
    (copy,) = copies(folder)
    if damage == "cut":
        os.truncate(copy, row.offset + 10)
    else:
        copy.write_bytes(copy.read_bytes().replace(payload(1), payload(2)))
    check(row, reader.read(row))
    assert copies(folder) == []
    check(row, reader.read(row))
    assert [path.read_bytes() for path in copies(folder)] == [shard.read_bytes()]


def test_a_damaged_shard_is_told_and_its_copy_kept(subset, folder):
    row, shard = subset.rows[1], subset.dataset_dir / "shard-0.tar"
    shard.write_bytes(shard.read_bytes().replace(payload(1), payload(2)))
    reader = PayloadReader(subset.dataset_dir, verify=True, cache=ShardCache(folder, 10 * shard_bytes(subset)))
    with pytest.raises(DatasetError, match=rf"shard-0\.tar holds other bytes for sample {row.key}"):
        reader.read(row)
    assert len(copies(folder)) == 1


def test_a_copy_that_does_not_come_back_as_written_is_not_published(subset, folder, monkeypatch):
    cache = ShardCache(folder, 10 * shard_bytes(subset))

    def damage(descriptor: int) -> None:
        os.pwrite(descriptor, b"damage", 700)

    monkeypatch.setattr("data.stream.cache.os.fsync", damage)
    assert cache.open(subset.dataset_dir / "shard-0.tar") is None
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["lock"]


def test_a_full_disk_is_no_reason_to_stop(subset, folder, monkeypatch):
    reader = PayloadReader(subset.dataset_dir, cache=ShardCache(folder, 10 * shard_bytes(subset)))

    def full(shard: Path, copy: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data.stream.cache._copy_verified", full)
    check(subset.rows[0], reader.read(subset.rows[0]))
    assert copies(folder) == []


def test_a_folder_that_cannot_be_used_is_told_before_the_first_step(subset, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for cache, reason in (
        (
            CacheConfig(folder=tmp_path / "file", limit_gib=1),
            r"file cannot be written \(Not a directory\); name a folder",
        ),
        (CacheConfig(folder=tmp_path / "cache", limit_gib=1e9), r"may take 1000000000\.0 GiB, but its disk has room"),
    ):
        with pytest.raises(CacheError, match=reason):
            Stream([subset], {SMALL.name: 4}, seed=0, rank=0, world_size=1, cache=cache)
    with pytest.raises(CacheError, match="cannot be written"):
        ShardCache(Path("/proc/reelflow"), 1000)
    with pytest.raises(ValidationError, match="greater than 0"):
        CacheConfig(folder=tmp_path, limit_gib=0)


def test_other_files_of_the_folder_are_left_alone(subset, folder):
    folder.mkdir()
    (folder / "other.copy").write_bytes(b"x" * 100_000)
    (folder / ".tmp-other").write_bytes(b"x")
    cache = ShardCache(folder, shard_bytes(subset))
    for number in range(3):
        descriptor = cache.open(subset.dataset_dir / f"shard-{number}.tar")
        assert descriptor is not None
        os.close(descriptor)
    assert sorted(path.name for path in folder.iterdir()) == [".tmp-other", "other.copy", "reelflow-shards"]
