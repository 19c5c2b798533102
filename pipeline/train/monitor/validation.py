"""Validation during training: the loss on held-out clips, whose noise, times and captions never change.

`validation.jsonl` gets one line per bucket, time bin and kind of weights (trained or averaged). Every clip is a batch
of its own and the means are taken in the order of the clips, so the result does not depend on the number of workers.
"""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from heapq import nsmallest
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any, Protocol

import torch

from data.dataset.index import CHUNK_ROWS, IndexRow, read_index, values
from data.dataset.reader import PayloadReader
from data.errors import DatasetError
from data.files.jsonl import publish_jsonl, read_jsonl
from pipeline.distributed.collectives import from_every_rank, from_rank_zero
from pipeline.engine.ema import ShardedEma, averaged_weights
from pipeline.engine.zero import ZeroTrainer
from pipeline.run.weight_names import MASTER_IN_VALIDATION
from pipeline.train.monitor.metrics import Metrics
from pipeline.train.time_bins import NUM_TIME_BINS, bin_means

VALIDATION_NAME = "validation.jsonl"


class ValidatedTask(Protocol):
    """What validation needs from a task."""

    @property
    def dataset_dir(self) -> Path:
        """The dataset with the validation split."""
        ...

    def validation_batch(self, row: IndexRow, payload: bytes) -> Any:  # noqa: ANN401 - the task's own batch type
        """A batch of one clip; a pure function of the task's seed, the row and the payload."""
        ...


@dataclass(frozen=True)
class ValidationRow:
    """One line of validation.jsonl."""

    step: int
    weights: str  # "raw", "ema" (the first average) or an average's name
    bucket: str
    time_bin: int | None  # None: the mean over all times, which are uniform for a flow
    loss: float
    num_clips: int


def held_out(rows: Sequence[IndexRow], max_clips: int) -> list[IndexRow]:
    """The clips to validate on: the first of every bucket by key, then the second of every bucket, and so on."""
    buckets: dict[str, list[tuple[str, int]]] = defaultdict(list)
    places = zip(values(rows, "bucket"), values(rows, "key"), range(len(rows)), strict=True)
    while some := list(islice(places, CHUNK_ROWS)):
        for bucket, key, number in some:
            buckets[bucket].append((key, number))
        buckets = defaultdict(list, {bucket: nsmallest(max_clips, found) for bucket, found in buckets.items()})
    turns = chain.from_iterable(zip_longest(*(buckets[bucket] for bucket in sorted(buckets))))
    return [rows[turn[1]] for turn in islice((turn for turn in turns if turn is not None), max_clips)]


def read_validation(run_dir: Path) -> list[ValidationRow]:
    """The lines so far, without one that is being written; none where nothing was validated."""
    return read_jsonl(run_dir / VALIDATION_NAME, ValidationRow, skip_damaged=True)


class Validation:
    """Validates; each rank computes a part of the clips. Constructed and called by all ranks.

    Clips that cannot be read are left out. Lines of steps after `first_step` are removed from the file, because these
    steps run again.

    Args:
        every_steps: None validates only before the first step and after the last.
        weights: names of the weights to validate.
    """

    def __init__(
        self,
        task: ValidatedTask,
        trainer: ZeroTrainer,
        ema: ShardedEma,
        run_dir: Path,
        metrics: Metrics | None,
        *,
        first_step: int,
        last_step: int,
        every_steps: int | None,
        max_clips: int,
        weights: Sequence[str],
    ) -> None:
        self._task, self._trainer, self._ema = task, trainer, ema
        self._last_step, self._every_steps, self._weights = last_step, every_steps, weights
        self._path, self._metrics = run_dir / VALIDATION_NAME, metrics
        rows = held_out(read_index(task.dataset_dir, "validation"), max_clips)
        rank, world_size = trainer.data_rank, trainer.data_world_size
        reader = PayloadReader(task.dataset_dir, verify=True)
        unreadable = [row.key for row in rows[rank::world_size] if not _readable(reader, row)]
        left_out = set(chain.from_iterable(from_every_rank(unreadable)))
        self.note = f"{len(left_out)} of {len(rows)} validation clips cannot be read and are left out" * bool(left_out)
        """For the user; empty if all clips can be read."""
        rows = [row for row in rows if row.key not in left_out]
        # All ranks run equally many forward passes, because ZeRO-3 gathers parameters inside forward: the first clips
        # are computed again where the number of clips is no multiple of the number of ranks.
        turns = range(rank, -(-len(rows) // world_size) * world_size, world_size)
        self._clips = [(turn, rows[turn % len(rows)]) for turn in turns]
        self._payloads = {row.key: reader.read(row) for _, row in self._clips}
        self._rows = rows
        reader.close()
        self._lines: list[ValidationRow] = []
        if metrics is not None and rows:
            self._lines = [line for line in read_validation(run_dir) if line.step <= first_step]
            self._publish()
        self._validated_before = from_rank_zero(bool(self._lines))

    def due(self, step: int) -> bool:
        """Whether to validate after `step` updates; step 0 only if it has not been validated before."""
        if not self._rows:
            return False
        if step == 0:
            return not self._validated_before
        return step == self._last_step or (self._every_steps is not None and step % self._every_steps == 0)

    def run(self, step: int) -> None:
        """Validate all kinds of weights and publish their lines together. Collective."""
        lines = []
        for weights in self._weights:
            swapped = (
                nullcontext()
                if weights == MASTER_IN_VALIDATION
                else averaged_weights(self._trainer, self._ema, weights)
            )
            with swapped:
                lines += self._measure(step, weights)
        if self._metrics is not None:
            self._lines += lines
            self._publish()
            self._metrics.add_scalars(step, {_tag(line): line.loss for line in lines})

    def _measure(self, step: int, weights: str) -> list[ValidationRow]:
        own = []
        for turn, row in self._clips:
            batch = self._task.validation_batch(row, self._payloads[row.key]).to(self._trainer.device)
            losses = self._trainer.evaluate(batch)
            values = torch.stack([loss.float() for loss in losses.values()]).tolist()
            own.append((turn, bin_means(dict(zip(losses, values, strict=True)))))
        everyone = dict(chain.from_iterable(from_every_rank(own)))
        cells: dict[tuple[str, int | None], list[float]] = defaultdict(list)
        for turn, row in enumerate(self._rows):
            for time_bin in (None, *range(NUM_TIME_BINS)):
                loss = everyone[turn].get("total" if time_bin is None else f"loss_t{time_bin}")
                if loss is not None:
                    cells[row.bucket, time_bin].append(loss)
        return [
            ValidationRow(step, weights, bucket, time_bin, sum(losses) / len(losses), len(losses))
            for (bucket, time_bin), losses in cells.items()
        ]

    def _publish(self) -> None:
        publish_jsonl(self._path, self._lines)


def _readable(reader: PayloadReader, row: IndexRow) -> bool:
    try:
        reader.read(row)
    except DatasetError:
        return False
    return True


def _tag(line: ValidationRow) -> str:
    """Name of the curve on dashboards that a line belongs to."""
    time = "all" if line.time_bin is None else f"t{line.time_bin}"
    return f"validation_{line.weights}/{line.bucket}/{time}"
