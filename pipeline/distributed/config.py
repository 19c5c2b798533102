"""Settings of the workers."""

from collections.abc import Collection
from typing import Annotated, Self

from pydantic import Field, model_validator

from data.errors import ReelflowError
from data.records import Runtime, Settings


class WorldSizeError(ReelflowError, ValueError):
    """A global batch cannot be shared out evenly; the message names the nearest one that can."""


class WorkersConfig(Settings):
    """How many workers run, and what each may use."""

    num_workers: Annotated[int, Runtime] = Field(default=2, ge=1)
    """TODO"""
    min_workers: Annotated[int | None, Runtime] = Field(default=None, ge=1)
    """A training goes on with so few while the cluster has no more."""
    cpus_per_worker: Annotated[int, Runtime] = Field(default=1, ge=1)
    """TODO"""
    gpus_per_worker: Annotated[float, Runtime] = Field(default=0, ge=0)
    """TODO"""
    max_failures: Annotated[int, Runtime] = Field(default=2, ge=0)
    """Restarts of a training whose worker died."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(
                f"min_workers is {self.min_workers}, but num_workers is {self.num_workers}: use at most that"
            )
        return self

    @property
    def fewest(self) -> int:
        """Workers that a training needs at least."""
        return self.num_workers if self.min_workers is None else self.min_workers

    def startable(self) -> int:
        """Workers that the connected cluster has room for, one at least."""
        import ray

        there = ray.cluster_resources()
        room = [there.get("CPU", 0) // self.cpus_per_worker]
        room += [there.get("GPU", 0) // self.gpus_per_worker] if self.gpus_per_worker else []
        return max(1, min(self.num_workers, *map(int, room)))


def taking_part(num_workers: int, fitting: Collection[int]) -> int:
    """How many of the workers there are take part: the largest number that shares every batch evenly."""
    return max(number for number in fitting if number <= num_workers)
