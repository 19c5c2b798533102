"""Settings of the stream of samples."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class CacheConfig(BaseModel):
    """Where copies of shards go, and how much of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: Path  # on a disk of this machine; several runs may share it
    limit_gib: float = Field(gt=0)

    @property
    def limit_bytes(self) -> int:
        """The limit in bytes."""
        return int(self.limit_gib * 2**30)
