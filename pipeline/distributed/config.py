"""Settings of the worker processes."""

from collections.abc import Collection, Mapping
from typing import Annotated, Self

from pydantic import Field, model_validator

from data.errors import ReelflowError
from data.records import Runtime, Settings

MAX_WORKERS = 2**16  # all smaller numbers are tried for those that share every batch evenly


class WorldSizeError(ReelflowError, ValueError):
    """A global batch cannot be divided evenly among the workers; the message names the nearest one that can."""


class WorkersConfig(Settings):
    """How many workers run, and the resources of each."""

    num_workers: Annotated[int, Runtime] = Field(default=2, ge=1, le=MAX_WORKERS)
    """Number of worker processes that train or encode; in training each computes a part of every batch."""
    min_workers: Annotated[int | None, Runtime] = Field(default=None, ge=1)
    """Smallest number of workers a training continues with when the cluster has no room for all; None means all."""
    cpus_per_worker: Annotated[int, Runtime] = Field(default=1, ge=1)
    """CPU cores that Ray reserves for each worker, and the number of its compute threads."""
    gpus_per_worker: Annotated[float, Runtime] = Field(default=0, ge=0)
    """GPUs that Ray reserves for each worker; 0 computes on the CPU."""
    max_failures: Annotated[int, Runtime] = Field(default=2, ge=0)
    """Number of times a training is restarted after one of its workers died; 0 never restarts it."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(
                f"min_workers is {self.min_workers}, but num_workers is {self.num_workers}: use at most that"
            )
        return self

    @property
    def num_required(self) -> int:
        """Smallest number of workers that a training can start with."""
        return self.num_workers if self.min_workers is None else self.min_workers

    def num_startable(self) -> int:
        """Number of workers that the connected cluster has room for, at least 1 and at most `num_workers`."""
        import ray

        return max(1, min(self.num_workers, self._room(ray.cluster_resources())))

    def num_groups(self, size: int) -> int:
        """Number of groups of `size` workers on one node each that the connected cluster has room for."""
        import ray

        room = (self._room(node["Resources"]) // size for node in ray.nodes() if node["Alive"])
        return min(self.num_workers // size, sum(room))

    def _room(self, resources: Mapping[str, float]) -> int:
        room = [resources.get("CPU", 0) // self.cpus_per_worker]
        room += [resources.get("GPU", 0) // self.gpus_per_worker] if self.gpus_per_worker else []
        return int(min(room))


def num_participating(num_workers: int, fitting: Collection[int]) -> int:
    """Number of workers that compute: the largest one of `fitting`, which divide every batch evenly."""
    return max(number for number in fitting if number <= num_workers)
