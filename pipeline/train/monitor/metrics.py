"""What a training tells about itself: one line of `metrics.jsonl` per logged step, and the same in TensorBoard."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from data.files.publish import publish_text
from data.stream.loader import SkippedSample
from pipeline.train.monitor.wandb_run import WandbRun
from pipeline.train.time_bins import bin_means

METRICS_NAME = "metrics.jsonl"
SKIPPED_NAME = "skipped.jsonl"


def mean_over_ranks(losses: dict[str, Tensor], world_size: int) -> dict[str, float]:
    """Average each loss over all workers, and over the samples of each bin of time; called by all."""
    names = sorted(losses)
    values = torch.stack([losses[name].float() for name in names])
    dist.all_reduce(values)
    return bin_means(dict(zip(names, (values / world_size).tolist(), strict=True)))


class DataWait:
    """Which share of the time this rank waits for its data."""

    def __init__(self) -> None:
        self._since, self._waited = time.monotonic(), 0.0
        self.total_seconds = 0.0  # since it was made

    @contextmanager
    def measured(self) -> Iterator[None]:
        """The block waits for data."""
        begun = time.monotonic()
        yield
        waited = time.monotonic() - begun
        self._waited += waited
        self.total_seconds += waited

    def share(self) -> float:
        """The share since the last call."""
        now = time.monotonic()
        share = self._waited / (now - self._since)
        self._since, self._waited = now, 0.0
        return share


class MetricsWriter:
    """One JSON line per logged step, and the same numbers for TensorBoard and, where it is wanted, W&B."""

    def __init__(self, run_dir: Path, first_step: int, wandb_run: WandbRun | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = run_dir / METRICS_NAME
        kept = [row for row in read_metrics(run_dir) if row["step"] <= first_step]  # later ones are run again
        publish_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = self._path.open("a", encoding="utf-8")
        self._wandb_run = wandb_run
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record one step."""
        self._file.write(json.dumps({"step": step, "time": time.time(), **values}) + "\n")
        self._file.flush()
        self.show(step, values)

    def show(self, step: int, values: dict[str, float]) -> None:
        """Draw values that have a file of their own."""
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if self._wandb_run is not None:
            self._wandb_run.show(step, values)

    def film(self, step: int, name: str, gif: bytes, shape: tuple[int, ...]) -> None:
        """Show a moving picture.

        Args:
            shape: of the frames, (t h w c).
        """
        # SummaryWriter.add_video does the same through a package more
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        _, height, width, channels = shape
        image = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=gif)
        writer = self._board.file_writer
        assert writer is not None
        writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)
        if self._wandb_run is not None:
            self._wandb_run.film(step, name, gif)

    def skip(self, samples: list[SkippedSample]) -> None:
        """List samples that could not be read."""
        if samples:
            with self._path.with_name(SKIPPED_NAME).open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(asdict(sample)) + "\n" for sample in samples)

    def close(self) -> None:
        """Flush everything."""
        self._file.close()
        self._board.close()
        if self._wandb_run is not None:
            self._wandb_run.close()


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """What training has logged so far; a line that is being written is left out."""
    return read_lines(run_dir / METRICS_NAME)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line, up to a line that is being written; none where there is no file."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
