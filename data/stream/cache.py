"""Copies of shards on a fast local disk, for datasets on slow storage.

A shard is copied when it is first read; the least recently read copies are deleted to make room. The threads and
processes of a machine may share a cache: one of them copies at a time, under a lock, and existing copies are read
without waiting. A copy that is being read is locked as well, because deleting an open file frees no space.
The cache is optional: if it has no room, or its disk fails, the shards themselves are read.
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

SUBFOLDER = "reelflow-shards"  # the cache changes nothing outside of it
LOCK_NAME = "lock"
COPY_SUFFIX = ".copy"
BLOCK_BYTES = 4 << 20


class CacheError(ReelflowError, ValueError):
    """The folder of a cache cannot be used; the message names it and the way out."""


@dataclass(frozen=True)
class _Copy:
    """A copy of a shard in the cache."""

    path: Path
    size: int  # bytes
    used_ns: int  # time of the last read, ns since the epoch


class ShardCache:
    """The copies in one folder, of at most `limit_bytes` together.

    Raises:
        CacheError: the folder is not writable, or its disk has less space than the limit.
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
                f"the shard cache {folder} cannot be written ({error.strerror or error}); name a folder on a "
                "local disk that this user may write to, or remove the cache from the configuration"
            ) from error
        if room < limit_bytes:
            raise CacheError(
                f"the shard cache {folder} may take {limit_bytes / 2**30:.1f} GiB, but its disk has room for "
                f"{room / 2**30:.1f} GiB; lower the limit, or name a folder on a larger disk"
            )

    def open(self, shard: Path) -> int | None:
        """A file descriptor of the copy of a shard, which is made if need be; None: read the shard itself.

        The copy is kept at least until the descriptor is closed.

        Raises:
            OSError: the shard itself is not accessible.
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
                    remove_unpublished(self._folder)  # left by processes that were killed while copying
                    if not self._make_room(size):
                        return None
                    _copy_verified(shard, copy)
                return _open_locked(copy)
        except OSError:
            return None

    def discard(self, shard: Path) -> None:
        """Delete the copy of a shard, which was found to be damaged; errors of the cache's disk are ignored."""
        with suppress(OSError), self._lock():
            self._copy_path(shard).unlink(missing_ok=True)

    def _copy_path(self, shard: Path) -> Path:
        """Path of the copy; it depends on the shard's path, size and modification time: a new shard gets a new copy."""
        state = shard.stat()
        identity = f"{shard.resolve()} {state.st_size} {state.st_mtime_ns}"
        return self._folder / f"{sha256(identity.encode()).hexdigest()}{COPY_SUFFIX}"

    def _lock(self) -> FileLock:
        self._folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self._folder / LOCK_NAME)

    def _copies(self) -> list[_Copy]:
        """Every copy, the least recently used first."""
        states = [(path, path.stat()) for path in self._folder.glob(f"*{COPY_SUFFIX}")]
        return sorted((_Copy(path, s.st_size, s.st_mtime_ns) for path, s in states), key=lambda copy: copy.used_ns)

    def _make_room(self, num_bytes: int) -> bool:
        """Delete copies that no process is reading until `num_bytes` more fit; False if they do not fit."""
        copies = self._copies()
        used = sum(copy.size for copy in copies)
        for copy in copies:
            if used + num_bytes <= self._limit_bytes:
                break
            if _delete_unread(copy.path):
                used -= copy.size
        return used + num_bytes <= self._limit_bytes


def _open_locked(copy: Path) -> int | None:
    """Open a copy, mark it as used and lock it against deletion; None if there is none."""
    try:
        descriptor = os.open(copy, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink:
            os.utime(descriptor)
            return descriptor
    except BlockingIOError:  # it is being deleted
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _delete_unread(copy: Path) -> bool:
    """Delete a copy unless a process is reading it; whether it was deleted."""
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
    """Publish a copy after reading it back and comparing it.

    Raises:
        OSError: reading or writing failed, or what was read back differs from the shard.
    """
    with published(copy) as temporary:
        with shard.open("rb") as source, temporary.open("w+b") as target:
            read = 0
            while block := source.read(BLOCK_BYTES):
                read = crc32(block, read)
                target.write(block)
            target.flush()
            os.fsync(target.fileno())
            os.posix_fadvise(target.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # so that it is read back from the disk
            target.seek(0)
            written = 0
            while block := target.read(BLOCK_BYTES):
                written = crc32(block, written)
        if written != read:
            raise OSError(errno.EIO, "the copy differs from the shard", str(copy))
