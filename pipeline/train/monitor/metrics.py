"""Metrics of a training: one line of `metrics.jsonl` per logged step, and the same values on dashboards."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from data.files.jsonl import read_jsonl
from pipeline.train.monitor.sinks import JsonLinesSink, Sink, TensorBoardSink
from pipeline.train.time_bins import bin_means

METRICS_NAME = "metrics.jsonl"
TENSORBOARD_NAME = "tensorboard"


def mean_over_ranks(losses: dict[str, Tensor], world_size: int) -> dict[str, float]:
    """The mean of each loss over all workers, and over the samples of each time bin. Collective."""
    names = sorted(losses)
    values = torch.stack([losses[name].float() for name in names])
    dist.all_reduce(values)
    return bin_means(dict(zip(names, (values / world_size).tolist(), strict=True)))


class DataWait:
    """Measures the time that this rank waits for its data."""

    def __init__(self) -> None:
        self._since, self._waited = time.monotonic(), 0.0
        self.total_seconds = 0.0  # since this object was made

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Count the time of the block as waiting."""
        started = time.monotonic()
        yield
        waited = time.monotonic() - started
        self._waited += waited
        self.total_seconds += waited

    def share(self) -> float:
        """The fraction of the time since the last call that was spent waiting, in [0, 1]."""
        now = time.monotonic()
        share = self._waited / (now - self._since)
        self._since, self._waited = now, 0.0
        return share


class Metrics:
    """Sends the values and clips of a training to `metrics.jsonl` and to dashboards. Rank 0 only.

    Args:
        first_step: the step that training resumes from; later lines are removed, because these steps run again.
        more_sinks: dashboards in addition to TensorBoard.
    """

    def __init__(self, run_dir: Path, first_step: int, more_sinks: Sequence[Sink] = ()) -> None:
        self._lines = JsonLinesSink(run_dir / METRICS_NAME, first_step)
        self._dashboards: list[Sink] = [TensorBoardSink(run_dir / TENSORBOARD_NAME, first_step), *more_sinks]

    def log_step(self, step: int, values: dict[str, float]) -> None:
        """Record the values of one logged step, in `metrics.jsonl` and on dashboards."""
        for sink in (self._lines, *self._dashboards):
            sink.add_scalars(step, values)

    def add_scalars(self, step: int, values: dict[str, float]) -> None:
        """Record values on dashboards only, because they have a file of their own."""
        for sink in self._dashboards:
            sink.add_scalars(step, values)

    def add_video(self, step: int, name: str, gif: bytes, shape: tuple[int, ...]) -> None:
        """Record a video on dashboards, as `Sink.add_video`."""
        for sink in self._dashboards:
            sink.add_video(step, name, gif, shape)

    def close(self) -> None:
        """Close all sinks."""
        for sink in (self._lines, *self._dashboards):
            sink.close()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, without one that is being written; none where training has not started."""
    return read_jsonl(run_dir / METRICS_NAME, dict[str, Any], skip_damaged=True)
