"""Settings of the stream of samples."""

from pathlib import Path

from pydantic import Field

from data.records import Settings


class CacheConfig(Settings):
    """Where copies of shards go, and how much of them."""

    folder: Path
    """On a disk of this machine; several runs may share it."""
    limit_gib: float = Field(gt=0)
    """TODO"""

    @property
    def limit_bytes(self) -> int:
        """The limit in bytes."""
        return int(self.limit_gib * 2**30)
