"""Random access to the payloads of a dataset's shards."""

import os
from functools import lru_cache
from pathlib import Path

from data.dataset.index import INDEX_NAME, IndexRow, Place
from data.errors import DatasetError
from data.files.checksums import crc32
from data.stream.cache import ShardCache

MAX_OPEN_SHARDS = 128
MAX_OPEN_COPIES = 16  # those that are open cannot make room for others


class _OpenShard:
    """A descriptor that is closed when nobody holds it any more."""

    def __init__(self, descriptor: int, *, is_copy: bool) -> None:
        self.descriptor = descriptor
        self.is_copy = is_copy

    def __del__(self) -> None:
        os.close(self.descriptor)


class PayloadReader:
    """Reads any sample's payload with one positioned read, from any thread; keeps the shards of late open.

    Not through a memory map: an error of the disk, or a shard that is cut while it is mapped, would end the process.

    Args:
        verify: compare each payload with its checksum in the index: a tar has none over its members.
        cache: where to keep copies of the shards, if not to read them where they lie.
    """

    def __init__(self, dataset_dir: Path, *, verify: bool = False, cache: ShardCache | None = None) -> None:
        self._dataset_dir = dataset_dir
        self._verify = verify
        self._cache = cache
        self._open = lru_cache(maxsize=MAX_OPEN_SHARDS if cache is None else MAX_OPEN_COPIES)(self._open_shard)

    def read(self, row: IndexRow) -> bytes:
        """The payload bytes of one sample.

        Raises:
            DatasetError: the shard is missing, shorter than the index says, or holds other bytes.
        """
        content = bytearray(row.size)
        self.read_into(row, memoryview(content))
        return bytes(content)

    def read_into(self, row: Place, buffer: memoryview) -> None:
        """The same into memory of exactly `row.size` bytes, whose content is undefined after an error.

        Raises:
            DatasetError: see `read`.
        """
        shard = self._open(row.shard)
        try:
            self._read_from(shard, row, buffer)
        except (DatasetError, OSError):
            if self._cache is None or not shard.is_copy:
                raise
            self._read_from(
                self._open_original(row.shard), row, buffer
            )  # if it is damaged too, the copy is not to blame
            self._cache.discard(self._dataset_dir / row.shard)
            self._open.cache_clear()

    def _read_from(self, shard: _OpenShard, row: Place, buffer: memoryview) -> None:
        if os.preadv(shard.descriptor, [buffer], row.offset) != row.size:
            raise DatasetError(
                f"{self._dataset_dir / row.shard} is cut short at sample {row.key}; make {self._dataset_dir} again"
            )
        if self._verify and crc32(buffer) != row.crc32:
            raise DatasetError(
                f"{self._dataset_dir / row.shard} holds other bytes for sample {row.key} than were written "
                f"(its checksum differs); make {self._dataset_dir} again"
            )

    def _open_shard(self, name: str) -> _OpenShard:
        path = self._path(name)
        copy = self._cache.open(path) if self._cache is not None else None
        return self._open_original(name) if copy is None else _OpenShard(copy, is_copy=True)

    def _open_original(self, name: str) -> _OpenShard:
        return _OpenShard(os.open(self._path(name), os.O_RDONLY), is_copy=False)

    def _path(self, name: str) -> Path:
        if Path(name).name != name:
            raise DatasetError(f"{INDEX_NAME} names the shard {name!r}, which is not in {self._dataset_dir}")
        path = self._dataset_dir / name
        if not path.is_file():
            raise DatasetError(f"{path} is missing although the index names it; make {self._dataset_dir} again")
        return path

    def close(self) -> None:
        """Close every shard."""
        self._open.cache_clear()
