"""Copies of shards on a fast disk, for datasets whose own storage is slow.

A shard is copied when it is first read, and the copies read least recently make room for the next. Any number of
threads and processes of one machine share a cache: one of them copies at a time, under a lock, and none waits to read
what is there. A copy being read is locked too, so that no room is counted as free while an open file still holds it.
The cache is never needed: where it has no room, or its disk fails, shards are read where they lie.
"""

import errno
import fcntl
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from filelock import FileLock

from data.errors import ReelflowError
from data.files.checksums import crc32
from data.files.publish import published, remove_unpublished

SUBFOLDER = "reelflow-shards"  # nothing beside it is ever touched
LOCK_NAME = "lock"
COPY_SUFFIX = ".copy"
BLOCK_BYTES = 4 << 20


class CacheError(ReelflowError, ValueError):
    """A cache that cannot be used; the message names the folder and the way out."""


@dataclass(frozen=True)
class _Copy:
    """A file of the cache."""

    path: Path
    size: int
    used_ns: int


class ShardCache:
    """The copies in one folder, at most `limit_bytes` of them.

    Raises:
        CacheError: the folder cannot be written, or its disk has less room than the limit.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder.absolute() / SUBFOLDER
        self._limit_bytes = limit_bytes
        try:
            with self._lock():
                with published(self._folder / "probe") as probe:
                    probe.touch()
                (self._folder / "probe").unlink()
                remove_unpublished(self._folder)
                room = sum(copy.size for copy in self._copies()) + shutil.disk_usage(self._folder).free
        except OSError as error:
            raise CacheError(
                f"the shard cache {folder} cannot be written ({error.strerror or error}); name a folder of a local "
                "disk that this user may write to, or leave the cache out"
            ) from error
        if room < limit_bytes:
            raise CacheError(
                f"the shard cache {folder} may take {limit_bytes / 2**30:.1f} GiB, but its disk has room for "
                f"{room / 2**30:.1f} GiB; lower the limit, or name a folder of a larger disk"
            )

    def open(self, shard: Path) -> int | None:
        """A descriptor of the copy of a shard, made now if need be; None where the shard is to be read where it lies.

        The copy stays at least until the descriptor is closed.

        Raises:
            OSError: the shard itself cannot be looked at.
        """
        copy = self._copy_path(shard)
        size = shard.stat().st_size
        if size > self._limit_bytes:
            return None
        try:
            if (descriptor := _open_locked(copy)) is not None:
                return descriptor
            with self._lock():
                if not copy.exists():
                    remove_unpublished(self._folder)  # of processes that were killed while they copied
                    if not self._make_room(size):
                        return None
                    _copy_verified(shard, copy)
                return _open_locked(copy)
        except OSError:
            return None

    def discard(self, shard: Path) -> None:
        """Forget the copy of a shard: it was found to be damaged. On a disk that fails it may stay."""
        with suppress(OSError), self._lock():
            self._copy_path(shard).unlink(missing_ok=True)

    def _copy_path(self, shard: Path) -> Path:
        """Named after what is copied: a shard that was made again has another."""
        state = shard.stat()
        identity = f"{shard.resolve()} {state.st_size} {state.st_mtime_ns}"
        return self._folder / f"{sha256(identity.encode()).hexdigest()}{COPY_SUFFIX}"

    def _lock(self) -> FileLock:
        self._folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self._folder / LOCK_NAME)

    def _copies(self) -> list[_Copy]:
        """Every copy, the one used least recently first."""
        states = [(path, path.stat()) for path in self._folder.glob(f"*{COPY_SUFFIX}")]
        return sorted((_Copy(path, s.st_size, s.st_mtime_ns) for path, s in states), key=lambda copy: copy.used_ns)

    def _make_room(self, num_bytes: int) -> bool:
        """Delete copies that nobody reads until `num_bytes` more fit; False where they do not."""
        copies = self._copies()
        used = sum(copy.size for copy in copies)
        for copy in copies:
            if used + num_bytes <= self._limit_bytes:
                break
            if _delete_unread(copy.path):
                used -= copy.size
        return used + num_bytes <= self._limit_bytes


def _open_locked(copy: Path) -> int | None:
    """Open a copy for reading, mark it as used, and keep it from being deleted; None where there is none."""
    try:
        descriptor = os.open(copy, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink:
            os.utime(descriptor)
            return descriptor
    except BlockingIOError:  # being deleted
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _delete_unread(copy: Path) -> bool:
    descriptor = os.open(copy, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        copy.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _copy_verified(shard: Path, copy: Path) -> None:
    """Publish a copy that was read back and compared.

    Raises:
        OSError: it cannot be read or written, or came back otherwise than it was written.
    """
    with published(copy) as temporary:
        with shard.open("rb") as source, temporary.open("w+b") as target:
            read = 0
            while block := source.read(BLOCK_BYTES):
                read = crc32(block, read)
                target.write(block)
            target.flush()
            os.fsync(target.fileno())
            os.posix_fadvise(target.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # read back from the disk, not from memory
            target.seek(0)
            written = 0
            while block := target.read(BLOCK_BYTES):
                written = crc32(block, written)
        if written != read:
            raise OSError(errno.EIO, "the copy differs from the shard", str(copy))
