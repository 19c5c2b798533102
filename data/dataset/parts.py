"""Shards of which a machine has the parts that were read: each part comes from a store when it is first read.

    NAME.part           as large as the shard; what has not come yet is a hole
    NAME.part.blocks    a byte for each block of it: 1, it is there
    NAME.part.json      the object that holds the shard; written last

The processes of a machine share these files. A block is marked after it has been written, and two processes that fetch
the same one write the same bytes. No checksum of a whole shard is compared: each payload has one in the index, and
whoever reads a part compares that.
"""

import os
import time
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, ValidationError

from data.errors import DatasetError, ReelflowError, first_line
from data.files.locations import ASK, client_errors, filesystem_of
from data.files.publish import publish_text
from data.records import Record

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

BLOCK_BYTES = 64 << 10
"""Small beside a payload, so that little is fetched that nobody asked for; a payload is one request all the same."""
PAUSES = (1.0, 4.0)
"""Seconds before a request that failed is repeated; the clients of stores repeat many themselves, before that."""
PART, BLOCKS, RECORD = ".part", ".part.blocks", ".part.json"
THERE = b"\1"


class PartError(ReelflowError, RuntimeError):
    """A part of a shard cannot be fetched. No reason to leave out the sample: the next start finds it."""


class PartRecord(Record):
    """NAME.part.json."""

    uri: str
    """Of the object that holds the whole shard and never changes."""
    num_bytes: int = Field(ge=0)
    block_bytes: int = Field(gt=0)


def begin_parts(shard: Path, uri: str, num_bytes: int) -> None:
    """Have a shard come in parts; what is here of the same object stays.

    Args:
        shard: its path, where there is no file.
        uri: of the object that holds it.
    """
    wanted = PartRecord(uri=uri, num_bytes=num_bytes, block_bytes=BLOCK_BYTES)
    if _read_record(shard) == wanted:
        return
    _beside(shard, RECORD).unlink(missing_ok=True)
    shard.parent.mkdir(parents=True, exist_ok=True)
    for path, size in ((_beside(shard, PART), num_bytes), (_beside(shard, BLOCKS), -(-num_bytes // BLOCK_BYTES))):
        path.unlink(missing_ok=True)  # not emptied: a process may have the old one open
        with path.open("wb") as file:
            file.truncate(size)
    publish_text(_beside(shard, RECORD), wanted.model_dump_json())


def num_bytes_of(shard: Path) -> int | None:
    """The size of a shard that comes in parts; None: it does not."""
    record = _read_record(shard)
    return None if record is None else record.num_bytes


class ShardParts:
    """An open shard that comes in parts. Thread-safe.

    Args:
        shard: of `begin_parts`.

    Raises:
        DatasetError: it does not come in parts, or they are damaged.
    """

    def __init__(self, shard: Path) -> None:
        record = _read_record(shard)
        if record is None:
            raise DatasetError(f"{shard} is missing")
        self._shard, self._record = shard, record
        self.descriptor = os.open(_beside(shard, PART), os.O_RDWR)
        self._blocks = os.open(_beside(shard, BLOCKS), os.O_RDWR)
        self._store: tuple[AbstractFileSystem, str] | None = None

    def __del__(self) -> None:
        for name in ("descriptor", "_blocks"):
            if (descriptor := getattr(self, name, None)) is not None:
                os.close(descriptor)

    def bring(self, offset: int, num_bytes: int, *, again: bool = False) -> int:
        """Have a range of the shard here; returns how many bytes were fetched for that.

        Args:
            again: also what is here, which is damaged.

        Raises:
            PartError: the store does not give it.
        """
        size = self._record.block_bytes
        first, end = offset // size, min(-(-(offset + num_bytes) // size), -(-self._record.num_bytes // size))
        here = bytes(end - first) if again else os.pread(self._blocks, end - first, first)
        num_fetched = 0
        for is_here, run in groupby(
            range(first, end), key=lambda block: here[block - first : block - first + 1] == THERE
        ):
            if not is_here:
                blocks = list(run)
                num_fetched += self._fetch(blocks[0], blocks[-1] + 1)
        return num_fetched

    def _fetch(self, first: int, end: int) -> int:
        """Fetch blocks with one request."""
        size = self._record.block_bytes
        start, stop = first * size, min(end * size, self._record.num_bytes)
        content = self._requested(start, stop)
        os.pwrite(self.descriptor, content, start)
        os.pwrite(self._blocks, THERE * (end - first), first)
        return len(content)

    def _requested(self, start: int, stop: int) -> bytes:
        errors = (OSError, *client_errors(self._record.uri))
        for pause in (*PAUSES, None):
            try:
                files, path = self._opened()
                content = files.cat_file(path, start=start, end=stop)
            except errors as error:
                if pause is None or isinstance(error, FileNotFoundError | PermissionError):
                    raise PartError(
                        f"{self._record.uri}, which holds {self._shard}, cannot be read ({first_line(error)}); {ASK}. "
                        "The same command continues"
                    ) from error
                time.sleep(pause)
            else:
                if isinstance(content, bytes) and len(content) == stop - start:
                    return content
                raise PartError(
                    f"{self._record.uri}, which holds {self._shard}, has not the {self._record.num_bytes} bytes that "
                    "it was stored with; push the run again"
                )
        raise AssertionError("the last attempt returns or raises")

    def _opened(self) -> "tuple[AbstractFileSystem, str]":
        if self._store is None:
            self._store = filesystem_of(self._record.uri)
        return self._store


def _beside(shard: Path, suffix: str) -> Path:
    return shard.with_name(f"{shard.name}{suffix}")


def _read_record(shard: Path) -> PartRecord | None:
    try:
        return PartRecord.model_validate_json(_beside(shard, RECORD).read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise DatasetError(f"{_beside(shard, RECORD)} is damaged; delete it, and give the command again") from error
