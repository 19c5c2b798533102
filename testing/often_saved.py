"""A training that saves every two steps, and what damages its checkpoints."""

import os
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data.stream.loader import Sample
from pipeline.distributed.torchrun import train_here
from pipeline.train.loop import train
from pipeline.train.tasks.flow import FlowBatch, FlowTask
from testing.tiny import CONFIG, make_task

OFTEN = CONFIG.model_copy(update={"checkpoint_every_steps": 2, "keep_checkpoints": 3})  # steps 4, 6 and 8 stay


def go_on(tiny_latents: Path, run_dir: Path, config=OFTEN) -> None:
    train_here(partial(train, make_task(tiny_latents), config, run_dir), 1)


def step_folder(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step_{step:07d}"


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


MANY = CONFIG.model_copy(update={"steps": 200, "schedule": "constant", "checkpoint_every_steps": 200})


@dataclass(frozen=True)
class StruckTask(FlowTask):
    """Asks for something, from the loader's thread, when the tenth sample is fetched."""

    run_dir: Path = Path()
    strike: str = ""

    def collate(self, samples: list[Sample]) -> FlowBatch:
        if samples[-1].position == 4 * 8 - 1:  # the last worker's part of global batch 8
            if self.strike == "signal":
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                (self.run_dir / self.strike).touch()
        return super().collate(samples)
