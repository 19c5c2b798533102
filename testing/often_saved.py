"""A training with a checkpoint every two steps, ways to resume it and to damage its files."""

import os
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data.stream.loader import Sample
from pipeline.distributed.torchrun import train_here
from pipeline.train.config import TrainConfig
from pipeline.train.loop import train
from pipeline.train.tasks.flow import FlowTask
from pipeline.train.tasks.flow_batch import FlowBatch
from testing.tiny import CONFIG, make_task

OFTEN = CONFIG.model_copy(update={"checkpoint_every_steps": 2, "keep_checkpoints": 3})  # steps 4, 6 and 8 stay


def resume(tiny_latents: Path, run_dir: Path, config: TrainConfig = OFTEN) -> None:
    """Resume the training in `run_dir`, on one worker in this process."""
    train_here(partial(train, make_task(tiny_latents), config, run_dir), 1)


def step_folder(run_dir: Path, step: int) -> Path:
    """The folder of the checkpoint after `step`."""
    return run_dir / "checkpoints" / f"step_{step:07d}"


def truncate(path: Path) -> None:
    """Truncate a file to half of its size."""
    os.truncate(path, path.stat().st_size // 2)


MANY = CONFIG.model_copy(update={"steps": 80, "schedule": "constant", "checkpoint_every_steps": 80})


@dataclass(frozen=True)
class StruckTask(FlowTask):
    """Requests a save or a stop from the loader's thread, by a file or by SIGTERM, once global batch 7 is collated."""

    run_dir: Path = Path()
    strike: str = ""

    def collate(self, samples: list[Sample]) -> FlowBatch:
        """Collate; at the end of global batch 7, touch the file `strike` or send SIGTERM."""
        if samples[-1].position == 4 * 8 - 1:  # the last worker's share of global batch 7, counted from 0
            if self.strike == "signal":
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                (self.run_dir / self.strike).touch()
        return super().collate(samples)
