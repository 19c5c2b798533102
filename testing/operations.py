"""The operations of a network, counted once: counting them takes longer than the tiny trainings that log them."""

import json
from typing import Any

from data.dataset.buckets import Bucket
from pipeline.train.monitor import throughput

_known: dict[tuple[str, Bucket], int] = {}
_count = throughput.flops_per_clip


def count_operations_once() -> None:
    """From now on, trainings in this process count those of a task with the same settings once for each bucket."""
    throughput.flops_per_clip = _counted_once


def _counted_once(task: Any, bucket: Bucket) -> int:  # noqa: ANN401 - a task of training
    key = (f"{type(task)} {json.dumps(task.metadata(), sort_keys=True, default=str)}", bucket)
    if key not in _known:
        _known[key] = _count(task, bucket)
    return _known[key]
