"""Validation while training: held-out clips, each with noise, times and a caption of its own that never change.

`validation.jsonl` gets a line per bucket and bin of time, of the raw weights and of their averages. A clip is always
computed alone, and the sums are taken in the order of the clips, so the number of workers plays no part.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any, Protocol

import torch

from data.dataset.index import IndexRow, read_index, values
from data.dataset.reader import PayloadReader
from data.errors import DatasetError
from data.files.publish import publish_text
from pipeline.distributed.collectives import from_every_rank, from_rank_zero
from pipeline.engine.ema import ShardedEma, averaged_weights
from pipeline.engine.zero import ZeroTrainer
from pipeline.run.weight_names import RAW
from pipeline.train.monitor.metrics import MetricsWriter, read_lines
from pipeline.train.time_bins import NUM_TIME_BINS, bin_means

VALIDATION_NAME = "validation.jsonl"


class ValidatedTask(Protocol):
    """What validation needs to know of a network."""

    @property
    def dataset_dir(self) -> Path:
        """The dataset, of which the validation split is taken."""
        ...

    def validation_batch(self, row: IndexRow, payload: bytes) -> Any:  # noqa: ANN401 - the task's own batch type
        """One clip, made from nothing but the seed, the row and the payload."""
        ...


@dataclass(frozen=True)
class ValidationRow:
    """One line of validation.jsonl."""

    step: int
    weights: str  # "raw", "ema" (the first average) or an average's name
    bucket: str
    time_bin: int | None  # None: at all times; of a flow, uniform ones
    loss: float
    num_clips: int


def held_out(rows: Sequence[IndexRow], max_clips: int) -> list[IndexRow]:
    """The clips to validate on: the first of every bucket by key, then the second of each, and so on."""
    buckets: dict[str, list[int]] = defaultdict(list)
    places = zip(values(rows, "bucket"), values(rows, "key"), range(len(rows)), strict=True)
    for bucket, _, number in sorted(places):
        buckets[bucket].append(number)
    turns = chain.from_iterable(zip_longest(*buckets.values()))
    return [rows[number] for number in islice((turn for turn in turns if turn is not None), max_clips)]


def read_validation(run_dir: Path) -> list[ValidationRow]:
    """What validation has found so far."""
    return [ValidationRow(**line) for line in read_lines(run_dir / VALIDATION_NAME)]


class Validation:
    """This rank's share of the clips. Made and called by all ranks.

    Clips that cannot be read are left out. The file's lines of steps after `first_step` are dropped: they come again.

    Args:
        every_steps: None means only before the first step and after the last.
        weights: which ones to validate.
    """

    def __init__(
        self,
        task: ValidatedTask,
        trainer: ZeroTrainer,
        ema: ShardedEma,
        run_dir: Path,
        metrics: MetricsWriter | None,
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
        rows = [row for row in rows if row.key not in left_out]
        # Every rank gets equally many, the first ones again if need be: at stage 3 a forward pass is for all.
        turns = range(rank, -(-len(rows) // world_size) * world_size, world_size)
        self._clips = [(turn, rows[turn % len(rows)]) for turn in turns]
        self._payloads = {row.key: reader.read(row) for _, row in self._clips}
        self._rows = rows
        reader.close()
        self._lines: list[ValidationRow] = []
        if metrics is not None and rows:
            self._lines = [line for line in read_validation(run_dir) if line.step <= first_step]
            self._publish()
        self._begun = from_rank_zero(bool(self._lines))

    def due(self, step: int) -> bool:
        """Whether to validate after `step` updates; step 0 of a run that goes on was validated when it began."""
        if not self._rows:
            return False
        if step == 0:
            return not self._begun
        return step == self._last_step or (self._every_steps is not None and step % self._every_steps == 0)

    def run(self, step: int) -> None:
        """Validate all weights and write the lines, all at once."""
        lines = []
        for weights in self._weights:
            place = nullcontext() if weights == RAW else averaged_weights(self._trainer, self._ema, weights)
            with place:
                lines += self._measure(step, weights)
        if self._metrics is not None:
            self._lines += lines
            self._publish()
            self._metrics.show(step, {_tag(line): line.loss for line in lines})

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
        publish_text(self._path, "".join(json.dumps(asdict(line)) + "\n" for line in self._lines))


def _readable(reader: PayloadReader, row: IndexRow) -> bool:
    try:
        reader.read(row)
    except DatasetError:
        return False
    return True


def _tag(line: ValidationRow) -> str:
    """The curve of TensorBoard that a line belongs to."""
    time = "all" if line.time_bin is None else f"t{line.time_bin}"
    return f"validation_{line.weights}/{line.bucket}/{time}"
