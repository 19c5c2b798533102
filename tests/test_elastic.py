"""A checkpoint of any number of workers and any ZeRO stage goes on at any other, exactly."""

import itertools
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from groups import Job, run_jobs
from safetensors import safe_open
from test_training import CONFIG, WEIGHTS, make_task, write_latents

import pipeline.zero
from data.loader import Sample
from pipeline.agree import from_every_rank
from pipeline.checkpoint import Checkpoint, load_training_state, open_checkpoint, rank_file
from pipeline.metrics import read_metrics
from pipeline.train import build, train
from pipeline.train_dit import DiTTask, FlowBatch
from pipeline.workers import Worker

SAVED_STEPS, ALL_STEPS, GLOBAL_BATCH = 4, 24, 12
AVERAGES = WEIGHTS[1:]
KINDS = (*WEIGHTS, "exp_avg", "exp_avg_sq")


class Layout(NamedTuple):
    """How a state is cut."""

    world_size: int
    zero_stage: int

    @property
    def name(self) -> str:
        return f"w{self.world_size}-z{self.zero_stage}"


LAYOUTS = [Layout(world_size, stage) for world_size in (1, 2, 3, 4) for stage in (1, 2, 3)]
CUT = [  # every number of workers and every stage on both sides, stage 0 too
    (Layout(4, 2), Layout(3, 3)),
    (Layout(4, 2), Layout(1, 0)),
    (Layout(3, 3), Layout(2, 1)),
    (Layout(2, 0), Layout(4, 3)),
    (Layout(1, 1), Layout(2, 2)),
    (Layout(1, 3), Layout(3, 1)),
]


@dataclass(frozen=True)
class WatchedTask(DiTTask):
    """Writes down which sample stood at which position, a file per process."""

    log_dir: Path = Path()

    def prepare(self, samples: list[Sample]) -> FlowBatch:
        with (self.log_dir / f"keys-{os.getpid()}.jsonl").open("a") as file:
            file.writelines(json.dumps([sample.position, sample.row.key]) + "\n" for sample in samples)
        return super().prepare(samples)


def config_of(layout: Layout, steps: int):
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
    run_dir.mkdir(parents=True, exist_ok=True)
    return WatchedTask(**vars(make_task(data)), log_dir=run_dir)


def save_at(worker: Worker, data: Path, run_dir: Path, layout: Layout, steps: int) -> None:
    """Train from the beginning; the checkpoint after the last step is what matters."""
    pipeline.zero.PERSISTENT_PARAMETERS = 0
    train(watched(data, run_dir), config_of(layout, steps), run_dir, worker)


def go_on_at(worker: Worker, data: Path, run_dir: Path, layout: Layout) -> None:
    """Compare what this rank holds after loading with the whole saved state, then train on."""
    pipeline.zero.PERSISTENT_PARAMETERS = 0
    config, task = config_of(layout, ALL_STEPS), watched(data, run_dir)
    trainer, ema = build(task, config, worker)
    checkpoint = open_checkpoint(run_dir)
    assert load_training_state(checkpoint, trainer, ema) == []
    saved = {kind: whole_state(checkpoint, kind) for kind in KINDS}
    for held in trainer.holdings:
        for kind, tensor in held.tensors().items():
            assert torch.equal(tensor, saved[kind][held.name][held.start :][: tensor.numel()]), (kind, held.name)
    for fragment in trainer.fragments:
        for name in AVERAGES:
            average = ema.averages[name][fragment.name]
            assert torch.equal(average, saved[name][fragment.name][fragment.start :][: average.numel()]), fragment.name
    num_values = sum(fragment.master.numel() for fragment in trainer.fragments)
    assert sum(from_every_rank(num_values)) == sum(flat.numel() for flat in saved["master"].values())
    assert {float(state["step"]) for state in trainer.adam.state.values()} <= {float(SAVED_STEPS)}
    if layout.zero_stage < 3:  # and the network computes with the restored weights
        for name, parameter in trainer.engine.module.module.named_parameters():
            assert torch.equal(parameter.detach().flatten(), saved["master"][name]), name
    train(task, config, run_dir, worker)


def whole_state(checkpoint: Checkpoint, kind: str) -> dict[str, torch.Tensor]:
    """One kind of tensor, flattened, put together from every rank's file by other code than the product's."""
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


def keys_by_batch(run_dir: Path) -> dict[int, set[str]]:
    """The keys of each global batch that was trained on; what was only fetched ahead is left out."""
    batches: dict[int, set[str]] = {}
    for path in run_dir.glob("keys-*.jsonl"):
        for line in path.read_text().splitlines():
            position, key = json.loads(line)
            if position < ALL_STEPS * GLOBAL_BATCH:
                batches.setdefault(position // GLOBAL_BATCH, set()).add(f"{position} {key}")
    return batches


def check_cells(cells: list[tuple[Layout, Layout]], folder: Path) -> None:
    """Save in every layout on the left, go on from there in the one on the right, compare with an undisturbed run."""
    data, straight = folder / "data", folder / "straight"
    data.mkdir()
    write_latents(data)
    sources = sorted({source for source, _ in cells})
    saves = [Job(s.world_size, save_at, (data, folder / s.name, s, SAVED_STEPS)) for s in sources]
    reference = Layout(1, 2)
    run_jobs([*saves, Job(1, save_at, (data, straight, reference, ALL_STEPS))], folder)
    for path in folder.glob("store-*"):
        path.unlink()

    resumed = {cell: folder / f"{cell[0].name}-to-{cell[1].name}" for cell in cells}
    for (source, _), run_dir in resumed.items():
        shutil.copytree(folder / source.name, run_dir, ignore=shutil.ignore_patterns("tensorboard"))
    run_jobs([Job(there.world_size, go_on_at, (data, resumed[_, there], there)) for _, there in cells], folder)

    expected = [row["total"] for row in read_metrics(straight)]
    keys = keys_by_batch(straight)
    assert len(keys) == ALL_STEPS
    for cell, run_dir in resumed.items():
        losses = [row["total"] for row in read_metrics(run_dir)]
        np.testing.assert_allclose(losses, expected, rtol=1e-4, err_msg=str(cell))
        assert keys_by_batch(run_dir) == keys, cell
        record = open_checkpoint(run_dir).record
        assert (record.world_size, record.zero_stage, record.step) == (*cell[1], ALL_STEPS)


def test_a_checkpoint_goes_on_at_other_workers_and_stages(tmp_path):
    check_cells(CUT, tmp_path)


@pytest.mark.slow
def test_every_layout_of_up_to_two_workers_goes_on_at_every_other(tmp_path):
    small = [layout for layout in LAYOUTS if layout.world_size <= 2]
    check_cells(list(itertools.product(small, small)), tmp_path)


@pytest.mark.campaign
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_layout_goes_on_at_every_other(world_size, tmp_path):
    sources = [layout for layout in LAYOUTS if layout.world_size == world_size]
    check_cells(list(itertools.product(sources, LAYOUTS)), tmp_path)
