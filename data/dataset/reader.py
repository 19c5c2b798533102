"""Random access to the payloads of a dataset's shards."""

import os
from functools import lru_cache
from pathlib import Path

from data.dataset.index_places import INDEX_NAME
from data.dataset.parts import ShardParts, num_bytes_of
from data.dataset.rows import IndexRow, PayloadLocation
from data.errors import DatasetError
from data.files.checksums import crc32
from data.stream.cache import ShardCache

MAX_OPEN_SHARDS = 128
MAX_OPEN_COPIES = 16  # of the cache, which cannot delete a copy while it is open


class _OpenShard:
    """A file descriptor that is closed when the last reference to the object is gone."""

    def __init__(self, descriptor: int, *, is_copy: bool) -> None:
        self.descriptor = descriptor
        self.is_copy = is_copy

    def __del__(self) -> None:
        os.close(self.descriptor)


class PayloadReader:
    """Reads the payload of any sample with one positioned read. Thread-safe; recently used shards stay open.

    Of a shard that comes in parts (`parts.py`) the parts that are read are fetched, and each payload is verified.

    Shards are not memory-mapped: a disk error, or a shard truncated while mapped, would kill the process (SIGBUS).

    Args:
        verify: compare each payload with its checksum in the index; tar files have no checksums of their contents.
        cache: where local copies of the shards are made and read; None: the shards themselves are read.
    """

    def __init__(self, dataset_dir: Path, *, verify: bool = False, cache: ShardCache | None = None) -> None:
        self._dataset_dir = dataset_dir
        self._verify = verify
        self._cache = cache
        self._open = lru_cache(maxsize=MAX_OPEN_SHARDS if cache is None else MAX_OPEN_COPIES)(self._open_shard)

    def read(self, row: IndexRow) -> bytes:
        """The payload of one sample.

        Raises:
            DatasetError: the shard is missing, shorter than the index says, or the checksum differs.
            PartError: a part of it cannot be fetched.
        """
        content = bytearray(row.size)
        self.read_into(row, memoryview(content))
        return bytes(content)

    def read_into(self, location: PayloadLocation, buffer: memoryview) -> None:
        """Read a payload into a buffer of exactly `location.size` bytes; its content is undefined after an error.

        Raises:
            DatasetError: as `read`.
        """
        shard = self._open(location.shard)
        if isinstance(shard, ShardParts):
            self._read_part(shard, location, buffer)
            return
        try:
            self._read_from(shard, location, buffer)
        except (DatasetError, OSError):
            if self._cache is None or not shard.is_copy:
                raise
            # If this read fails too, the shard itself is damaged and the copy is kept.
            self._read_from(self._open_original(location.shard), location, buffer)
            self._cache.discard(self._dataset_dir / location.shard)
            self._open.cache_clear()

    def _read_part(self, shard: ShardParts, location: PayloadLocation, buffer: memoryview) -> None:
        """Read what may have to come first; once more from the store where what is here is damaged."""
        for again in (False, True):
            shard.bring(location.offset, location.size, again=again)
            try:
                self._read_from(shard, location, buffer)
            except DatasetError:
                if again:
                    raise
            else:
                return

    def _read_from(self, shard: _OpenShard | ShardParts, location: PayloadLocation, buffer: memoryview) -> None:
        if os.preadv(shard.descriptor, (buffer,), location.offset) != len(buffer):
            raise DatasetError(
                f"{self._dataset_dir / location.shard} is cut short at sample {location.key}; "
                f"make {self._dataset_dir} again"
            )
        if (self._verify or isinstance(shard, ShardParts)) and crc32(buffer) != location.crc32:
            raise DatasetError(
                f"{self._dataset_dir / location.shard} holds other bytes for sample {location.key} than were written "
                f"(its checksum differs); make {self._dataset_dir} again"
            )

    def _open_shard(self, name: str) -> _OpenShard | ShardParts:
        path = self._path(name)
        if not path.exists():
            return ShardParts(path)
        copy = self._cache.open(path) if self._cache is not None else None
        return self._open_original(name) if copy is None else _OpenShard(copy, is_copy=True)

    def _open_original(self, name: str) -> _OpenShard:
        return _OpenShard(os.open(self._path(name), os.O_RDONLY), is_copy=False)

    def _path(self, name: str) -> Path:
        if Path(name).name != name:
            raise DatasetError(f"{INDEX_NAME} names the shard {name!r}, which is not in {self._dataset_dir}")
        path = self._dataset_dir / name
        if not path.is_file() and (path.exists() or num_bytes_of(path) is None):
            raise DatasetError(f"{path} is missing although the index names it; make {self._dataset_dir} again")
        return path

    def close(self) -> None:
        """Close every shard."""
        self._open.cache_clear()
