"""Previews: clips of fixed prompts and seeds, sampled during training to show what the loss does not."""

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from data.dataset.buckets import Bucket
from data.dataset.index import read_index
from data.files.publish import publish_bytes
from data.records import Frames
from data.video.codec import encode_clip
from data.video.previews import encode_gif
from pipeline.checkpoint.record import checkpoint_name
from pipeline.distributed.collectives import from_every_rank
from pipeline.engine.ema import ShardedEma, averaged_weights
from pipeline.engine.zero import ZeroTrainer
from pipeline.sample.requests import PromptRequest
from pipeline.train.monitor.metrics import Metrics

PREVIEWS_NAME = "samples"
NUM_PROMPTS = 4


class Previewer(Protocol):
    """Samples clips with the network that is being trained."""

    @property
    def bucket(self) -> Bucket:
        """The shape of the clips."""
        ...

    def clip(self, evaluate: Callable[[Any], dict[str, Tensor]], prompt: str, seed: int) -> Frames:
        """One clip, uint8 (t h w 3). The number of calls of `evaluate` does not depend on the prompt."""
        ...


class PreviewedTask(Protocol):
    """What previews need from a task."""

    @property
    def dataset_dir(self) -> Path:
        """The dataset, whose captions are used as prompts."""
        ...

    def previewer(self, device: torch.device) -> Previewer | None:
        """The previewer; None if the network generates no clips."""
        ...


def fixed_prompts(dataset_dir: Path) -> list[str]:
    """The first distinct captions of the validation split; of the training split if the former is empty."""
    rows = read_index(dataset_dir, "validation") or read_index(dataset_dir, "train")
    found: dict[str, None] = {}
    for caption in rows.each("caption"):
        found[caption] = None
        if len(found) == NUM_PROMPTS:
            break
    return list(found)


class Previews:
    """Samples previews; each rank samples a part of the prompts. Constructed and called by all ranks.

    Args:
        every_steps: None turns previews off.
        weights: the average that clips are sampled with.
    """

    def __init__(
        self,
        task: PreviewedTask,
        trainer: ZeroTrainer,
        ema: ShardedEma,
        run_dir: Path,
        metrics: Metrics | None,
        every_steps: int | None,
        weights: str,
    ) -> None:
        self._trainer, self._ema, self._metrics, self._weights = trainer, ema, metrics, weights
        self._folder, self._every_steps = run_dir / PREVIEWS_NAME, every_steps
        self._previewer = None if every_steps is None else task.previewer(trainer.device)
        self._prompts = [] if self._previewer is None else fixed_prompts(task.dataset_dir)

    def due(self, step: int) -> bool:
        """Whether to sample after `step` updates."""
        return bool(self._prompts) and self._every_steps is not None and step > 0 and step % self._every_steps == 0

    def run(self, step: int) -> None:
        """Sample with averaged weights; rank 0 writes the clips of all ranks. Collective."""
        assert self._previewer is not None
        rank, world_size = self._trainer.data_rank, self._trainer.data_world_size
        num_prompts = len(self._prompts)
        own: list[tuple[int, Frames]] = []
        with averaged_weights(self._trainer, self._ema, self._weights):
            # All ranks run equally many forward passes, because ZeRO-3 gathers parameters inside forward; a clip that
            # two ranks sample for that reason is the same on both.
            for turn in range(rank, -(-num_prompts // world_size) * world_size, world_size):
                number = turn % num_prompts
                own.append((number, self._previewer.clip(self._trainer.evaluate, self._prompts[number], number)))
        clips = dict(chain.from_iterable(from_every_rank(own)))
        if self._metrics is not None:
            for number, frames in sorted(clips.items()):
                self._write(step, number, frames, self._metrics)

    def _write(self, step: int, number: int, frames: Frames, metrics: Metrics) -> None:
        assert self._previewer is not None
        bucket, prompt = self._previewer.bucket, self._prompts[number]
        request = PromptRequest(id=f"{number:02}", prompt=prompt, seed=number, guidance_scale=0.0, bucket=bucket.name)
        path = self._folder / checkpoint_name(step) / request.file_name
        publish_bytes(path, encode_clip(frames, bucket.fps))
        metrics.add_video(step, f"samples/{number:02} {prompt}", encode_gif(frames, bucket.fps), frames.shape)
