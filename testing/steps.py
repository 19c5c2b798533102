"""Jobs for worker processes: trainings with every setting of a step, and one with a non-finite gradient."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import pipeline.engine.zero
from data.stream.loader import Sample, Stream
from pipeline.distributed.process_group import Worker
from pipeline.train.build import build
from pipeline.train.loop import train
from pipeline.train.tasks.flow import FlowTask
from pipeline.train.tasks.flow_batch import FlowBatch
from testing.records import SMALL
from testing.tiny import CONFIG, make_task

STAGES = (0, 1, 2, 3)

STEPS = CONFIG.model_copy(update={"schedule": "constant", "gradient_accumulation_steps": 1})

SETTINGS = {
    "plain": {},
    "accumulated": {"gradient_accumulation_steps": 2},
    "recomputed": {"activation_checkpointing": True},
    "guarded": {"non_finite_steps": "skip"},
    "poisoned": {"non_finite_steps": "skip"},
}

POISONED_STEP = 2  # from 0


@dataclass(frozen=True)
class PoisonedTask(FlowTask):
    """One latent of the sample at `position` is NaN."""

    position: int = 4 * POISONED_STEP + 3

    def collate(self, samples: list[Sample]) -> FlowBatch:
        """Collate, with NaN in the sample at `position`."""
        batch = super().collate(samples)
        for number, sample in enumerate(samples):
            if sample.position == self.position:
                batch.x_1[number, 0, 0, 0, 0] = float("nan")
        return batch


def poisoned(folder: Path) -> PoisonedTask:
    """The small task with one NaN, in step `POISONED_STEP`."""
    return PoisonedTask(**{name: getattr(make_task(folder), name) for name in FlowTask.__dataclass_fields__})


def train_with(worker: Worker, data: Path, run_dir: Path, name: str, stage: int) -> None:
    """Train with the settings called `name`."""
    pipeline.engine.zero.PERSISTENT_PARAMETERS = 0  # ZeRO-3 partitions every parameter, however small
    task = poisoned(data) if name == "poisoned" else make_task(data)
    train(task, STEPS.model_copy(update={**SETTINGS[name], "zero_stage": stage}), run_dir, worker)


def nothing_moves(worker: Worker, data: Path, stage: int) -> None:
    """A skipped step changes no weight, no Adam moment and no step count; the step after it updates as usual."""
    pipeline.engine.zero.PERSISTENT_PARAMETERS = 0
    task = poisoned(data)
    config = STEPS.model_copy(update={"non_finite_steps": "skip", "zero_stage": stage})
    trainer, _ = build(task, config, worker)
    stream = Stream(task.subsets(), {SMALL.name: 4}, seed=task.seed, rank=worker.rank, world_size=worker.world_size)
    batches = stream.batches(0, task.collate, readers=0)

    def state() -> list[torch.Tensor]:
        counts = [state["step"].clone() for state in trainer.adam.state.values()]
        return counts + [t.clone() for fragment in trainer.fragments for t in fragment.tensors().values()]

    for step in range(POISONED_STEP + 2):
        before = state()
        trainer.step([next(batches)], 1e-3)
        assert trainer.guard.skipped == (step == POISONED_STEP)
        same = [torch.equal(old, new) for old, new in zip(before, state(), strict=True)]
        assert all(same) == trainer.guard.skipped
    assert trainer.guard.num_skipped == 1
    assert np.isfinite(trainer.guard.gradient_norm())
    for norm, skipped in ((float("inf"), True), (float("nan"), True), (1e30, False)):
        trainer.guard.norm = norm
        assert trainer.guard.skipped == skipped
    batches.close()
