"""Resume checkpoints at another number of workers and another ZeRO stage: state, losses and batches are compared.

A layout is a number of workers, 1 to 4, and a ZeRO stage, 1 to 3: 144 pairs, in worker processes over gloo.
`python -m benchmarks.elastic` runs them all.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from safetensors import safe_open

import pipeline.engine.zero
from data.files.jsonl import append_lines, read_jsonl
from data.stream.loader import Sample
from pipeline.checkpoint.read import open_checkpoint
from pipeline.checkpoint.record import Checkpoint, rank_file
from pipeline.checkpoint.restore import load_training_state
from pipeline.distributed.collectives import from_every_rank
from pipeline.distributed.process_group import Worker
from pipeline.train.build import build
from pipeline.train.config import TrainConfig
from pipeline.train.loop import train
from pipeline.train.monitor.metrics import read_metrics
from pipeline.train.tasks.flow import FlowTask
from pipeline.train.tasks.flow_batch import FlowBatch
from testing.groups import Job, run_jobs
from testing.tiny import CONFIG, WEIGHTS, make_task, write_latents

SAVED_STEPS, ALL_STEPS, GLOBAL_BATCH = 4, 24, 12
AVERAGES = WEIGHTS[1:]
KINDS = (*WEIGHTS, "exp_avg", "exp_avg_sq")
COMPARED_NAME = "compared.json"


class Layout(NamedTuple):
    """How a training state is partitioned."""

    world_size: int
    zero_stage: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"w{self.world_size}-z{self.zero_stage}"


LAYOUTS = [Layout(world_size, stage) for world_size in (1, 2, 3, 4) for stage in (1, 2, 3)]


@dataclass(frozen=True)
class FedSample:
    """A sample that was fed to a network."""

    position: int
    key: str


@dataclass(frozen=True)
class WatchedTask(FlowTask):
    """Logs the key of the sample at each position, one file per process."""

    log_dir: Path = Path()

    def collate(self, samples: list[Sample]) -> FlowBatch:
        """Collate and log the keys."""
        fed = [FedSample(sample.position, sample.row.key) for sample in samples]
        append_lines(self.log_dir / f"keys-{os.getpid()}.jsonl", fed)
        return super().collate(samples)


def config_of(layout: Layout, steps: int) -> TrainConfig:
    """The settings of the same training in any layout, with one checkpoint after its last step."""
    return CONFIG.model_copy(
        update={
            "steps": steps,
            "schedule": "constant",
            "global_batch": GLOBAL_BATCH,
            "zero_stage": layout.zero_stage,
            "checkpoint_every_steps": steps,
        }
    )


def watched(data: Path, run_dir: Path) -> WatchedTask:
    """The task, with its logs in the folder of the training."""
    run_dir.mkdir(parents=True, exist_ok=True)
    return WatchedTask(**vars(make_task(data)), log_dir=run_dir)


def save_at(worker: Worker, data: Path, run_dir: Path, layout: Layout, steps: int) -> None:
    """Train from the beginning and save a checkpoint after the last step."""
    pipeline.engine.zero.PERSISTENT_PARAMETERS = 0
    train(watched(data, run_dir), config_of(layout, steps), run_dir, worker)


def go_on_at(worker: Worker, data: Path, run_dir: Path, layout: Layout) -> None:
    """Compare the fragments of this rank after loading with the whole saved state, then resume the training."""
    pipeline.engine.zero.PERSISTENT_PARAMETERS = 0
    config, task = config_of(layout, ALL_STEPS), watched(data, run_dir)
    trainer, ema = build(task, config, worker)
    checkpoint = open_checkpoint(run_dir)
    assert load_training_state(checkpoint, trainer, ema) == []
    saved = {kind: whole_state(checkpoint, kind) for kind in KINDS}
    num_equal = 0
    for held in trainer.local_fragments:
        for kind, tensor in held.tensors().items():
            assert torch.equal(tensor, saved[kind][held.name][held.start :][: tensor.numel()]), (kind, held.name)
    for fragment in trainer.fragments:
        num_equal += len(fragment.tensors()) * fragment.master.numel()
        for name in AVERAGES:
            average = ema.averages[name][fragment.name]
            assert torch.equal(average, saved[name][fragment.name][fragment.start :][: average.numel()]), fragment.name
            num_equal += average.numel()
    num_equal = sum(from_every_rank(num_equal))
    assert num_equal == sum(flat.numel() for kind in KINDS for flat in saved[kind].values())
    if worker.rank == 0:
        (run_dir / COMPARED_NAME).write_text(json.dumps(num_equal), encoding="utf-8")
    assert {float(state["step"]) for state in trainer.adam.state.values()} <= {float(SAVED_STEPS)}
    if layout.zero_stage < 3:  # and the network computes with the restored weights
        for name, parameter in trainer.engine.module.module.named_parameters():
            assert torch.equal(parameter.detach().flatten(), saved["master"][name]), name
    train(task, config, run_dir, worker)


def whole_state(checkpoint: Checkpoint, kind: str) -> dict[str, torch.Tensor]:
    """One kind of tensor, flattened, assembled from every rank's file without the code of the product."""
    record = checkpoint.record
    flat = {name: torch.full((int(np.prod(shape)),), torch.nan) for name, shape in record.parameters.items()}
    for rank in range(record.world_size):
        with safe_open(checkpoint.folder / rank_file(rank), framework="pt") as file:
            for name, start in json.loads(file.metadata()["starts"]).items():
                part = file.get_tensor(f"{kind}/{name}")
                assert flat[name][start : start + part.numel()].isnan().all()  # written once
                flat[name][start : start + part.numel()] = part
    assert not any(values.isnan().any() for values in flat.values())  # and all of it
    return flat


def fed_samples(log_dir: Path, num_samples: int) -> set[FedSample]:
    """The samples that any process was fed, without those from position `num_samples` on, which were only prefetched.

    A line that a killed process left unfinished is left out: its batch is fed again.
    """
    paths = log_dir.glob("keys-*.jsonl")
    logged = (fed for path in paths for fed in read_jsonl(path, FedSample, skip_damaged=True))
    return {fed for fed in logged if fed.position < num_samples}


class Pair(BaseModel):
    """The result of resuming a checkpoint of one layout in another."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    saved_by: Layout
    gone_on_by: Layout
    num_values_compared: int  # of weights, moments and averages, all bit-identical
    largest_relative_difference: float  # between the losses after resuming and those of an uninterrupted run
    batches_identical: bool  # by the key at each position


def run_pairs(pairs: Sequence[tuple[Layout, Layout]], folder: Path) -> list[Pair]:
    """Save in the first layout of each pair, resume in the second, and compare with an uninterrupted run.

    Raises:
        ProcessRaisedException: a loaded state differs from the saved one.
    """
    data, straight = folder / "data", folder / "straight"
    data.mkdir()
    write_latents(data)
    sources = sorted({source for source, _ in pairs})
    saves = [Job(s.world_size, save_at, (data, folder / s.name, s, SAVED_STEPS)) for s in sources]
    reference = Layout(1, 2)
    run_jobs([*saves, Job(1, save_at, (data, straight, reference, ALL_STEPS))], folder)
    for path in folder.glob("store-*"):
        path.unlink()

    resumed = {pair: folder / f"{pair[0].name}-to-{pair[1].name}" for pair in pairs}
    for (source, _), run_dir in resumed.items():
        shutil.copytree(folder / source.name, run_dir, ignore=shutil.ignore_patterns("tensorboard"))
    run_jobs([Job(there.world_size, go_on_at, (data, resumed[_, there], there)) for _, there in pairs], folder)
    return [_compare(pair, run_dir, straight) for pair, run_dir in resumed.items()]


def _compare(pair: tuple[Layout, Layout], run_dir: Path, straight: Path) -> Pair:
    losses, expected = ([row["total"] for row in read_metrics(run)] for run in (run_dir, straight))
    record, fed = open_checkpoint(run_dir).record, fed_samples(straight, ALL_STEPS * GLOBAL_BATCH)
    assert (record.world_size, record.zero_stage, record.step) == (*pair[1], ALL_STEPS)
    assert len(fed) == ALL_STEPS * GLOBAL_BATCH
    return Pair(
        saved_by=pair[0],
        gone_on_by=pair[1],
        num_values_compared=json.loads((run_dir / COMPARED_NAME).read_text(encoding="utf-8")),
        largest_relative_difference=float(np.abs(np.divide(losses, expected) - 1).max()),
        batches_identical=fed_samples(run_dir, ALL_STEPS * GLOBAL_BATCH) == fed,
    )
