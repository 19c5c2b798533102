"""Settings of the stream of samples."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from data.records import Runtime, Settings


class CacheConfig(Settings):
    """A local cache of shards, for datasets on slow storage."""

    folder: Annotated[Path, Runtime]
    """Folder on a fast local disk where copies of shards are kept; several runs may share it."""
    limit_gib: Annotated[float, Runtime] = Field(gt=0)
    """Largest total size of the copies in GiB; those read least recently are deleted to make room."""

    @property
    def limit_bytes(self) -> int:
        """The limit in bytes."""
        return int(self.limit_gib * 2**30)
