"""What a step is made of: pieces, blocks computed twice, updates left out; and what a training that fails tells."""

import json
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import pipeline.engine.zero
from data.files.checksums import file_sha256
from data.stream.loader import Stream
from launch.progress import following
from models.networks.dit import DiT
from pipeline.checkpoint.read import open_checkpoint
from pipeline.checkpoint.record import CheckpointError
from pipeline.distributed.config import WorldSizeError
from pipeline.distributed.process_group import Worker
from pipeline.distributed.torchrun import train_here
from pipeline.run.progress import bar
from pipeline.train.build import build
from pipeline.train.config import TrainConfig
from pipeline.train.loop import memory_advice, train
from pipeline.train.monitor.metrics import read_metrics
from pipeline.train.monitor.watchdog import stall_watch, stalls
from pipeline.train.tasks.flow import DiTTask, FlowBatch
from testing.groups import Job, run_jobs
from testing.records import SMALL
from testing.tiny import CONFIG, make_task, write_latents

STAGES = (0, 1, 2, 3)
STEPS = CONFIG.model_copy(update={"schedule": "constant", "accumulate": 1})
SETTINGS = {
    "plain": {},
    "pieces": {"accumulate": 2},
    "recomputed": {"activation_checkpointing": True},
    "guarded": {"bad_steps": "skip"},
    "poisoned": {"bad_steps": "skip"},
}
POISONED_STEP = 2  # from 0


@dataclass(frozen=True)
class PoisonedTask(DiTTask):
    """One sample of one step is not a number."""

    position: int = 4 * POISONED_STEP + 3

    def prepare(self, samples) -> FlowBatch:
        batch = super().prepare(samples)
        for number, sample in enumerate(samples):
            if sample.position == self.position:
                batch.x_1[number, 0, 0, 0, 0] = float("nan")
        return batch


def poisoned(folder: Path) -> PoisonedTask:
    return PoisonedTask(**{name: getattr(make_task(folder), name) for name in DiTTask.__dataclass_fields__})


def train_with(worker: Worker, data: Path, run_dir: Path, name: str, stage: int) -> None:
    pipeline.engine.zero.PERSISTENT_PARAMETERS = 0  # stage 3 with every parameter cut, however small
    task = poisoned(data) if name == "poisoned" else make_task(data)
    train(task, STEPS.model_copy(update={**SETTINGS[name], "zero_stage": stage}), run_dir, worker)


def nothing_moves(worker: Worker, data: Path, stage: int) -> None:
    """A step that is left out changes no weight, no moment and no count, and the next one is as if it had not been."""
    pipeline.engine.zero.PERSISTENT_PARAMETERS = 0
    task = poisoned(data)
    config = STEPS.model_copy(update={"bad_steps": "skip", "zero_stage": stage})
    trainer, _ = build(task, config, worker)
    stream = Stream(task.subsets(), {SMALL.name: 4}, seed=task.seed, rank=worker.rank, world_size=worker.world_size)
    batches = stream.batches(0, task.prepare, readers=0)

    def state() -> list[torch.Tensor]:
        counts = [state["step"].clone() for state in trainer.adam.state.values()]
        return counts + [t.clone() for fragment in trainer.fragments for t in fragment.tensors().values()]

    for step in range(POISONED_STEP + 2):
        before = state()
        trainer.step([next(batches)], 1e-3)
        assert trainer.skipped == (step == POISONED_STEP)
        same = [torch.equal(old, new) for old, new in zip(before, state(), strict=True)]
        assert all(same) == trainer.skipped
    assert trainer.num_skipped == 1
    assert np.isfinite(trainer.gradient_norm())
    for norm, skipped in ((float("inf"), True), (float("nan"), True), (1e30, False)):
        trainer._norm = norm
        assert trainer.skipped == skipped
    batches.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder, data = tmp_path_factory.mktemp("steps"), tmp_path_factory.mktemp("data")
    write_latents(data)
    cells = [(name, stage) for name in SETTINGS for stage in STAGES]
    jobs = [Job(2, train_with, (data, folder / f"{name}-{stage}", name, stage)) for name, stage in cells]
    jobs += [Job(2, nothing_moves, (data, stage)) for stage in STAGES]
    run_jobs(jobs, folder)
    return data, {cell: folder / f"{cell[0]}-{cell[1]}" for cell in cells}


def column(run_dir: Path, name: str) -> list[float]:
    return [row[name] for row in read_metrics(run_dir)]


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_in_pieces_is_the_step(runs, stage):
    _, folders = runs
    for name in ("total", "gradient_norm"):
        whole, pieces = column(folders["plain", stage], name), column(folders["pieces", stage], name)
        np.testing.assert_allclose(pieces, whole, rtol=1e-5)
    assert open_checkpoint(folders["pieces", stage]).record.cursor == 8 * 4


@pytest.mark.parametrize("stage", STAGES)
def test_blocks_computed_again_change_no_bit(runs, stage):
    _, folders = runs
    assert column(folders["recomputed", stage], "total") == column(folders["plain", stage], "total")


def test_recomputing_keeps_less(runs):
    data, _ = runs
    task = make_task(data)
    kept = {}
    for recompute in (False, True):
        module = task.build()
        module.get_submodule("network.blocks").recompute = recompute
        sizes = []
        stream = Stream(task.subsets(), {SMALL.name: 4}, seed=0, rank=0, world_size=1)
        batch = next(stream.batches(0, task.prepare, readers=0))
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            module(batch)
        kept[recompute] = sum(sizes)
    assert kept[True] < 0.7 * kept[False]


@pytest.mark.parametrize("stage", STAGES)
def test_a_guard_changes_no_bit_and_measures_the_same_norm(runs, stage):
    _, folders = runs
    assert column(folders["guarded", stage], "total") == column(folders["plain", stage], "total")
    norms = [column(folders[name, stage], "gradient_norm") for name in ("guarded", "plain")]
    np.testing.assert_allclose(*norms, rtol=1e-5)
    assert column(folders["guarded", stage], "skipped_updates") == [0] * 8
    assert not (folders["guarded", stage] / "bad_steps.jsonl").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_a_bad_step_is_skipped_counted_and_its_samples_are_listed(runs, stage):
    data, folders = runs
    run_dir = folders["poisoned", stage]
    assert column(run_dir, "skipped_updates") == [0, 0, 1, 1, 1, 1, 1, 1]
    losses = column(run_dir, "total")
    assert [np.isfinite(loss) for loss in losses] == [step != POISONED_STEP for step in range(8)]
    np.testing.assert_allclose(losses, column(folders["poisoned", 0], "total"), rtol=1e-5)
    assert losses[:POISONED_STEP] == column(folders["plain", stage], "total")[:POISONED_STEP]
    lines = [json.loads(line) for line in (run_dir / "bad_steps.jsonl").read_text().splitlines()]
    assert sorted((line["step"], line["rank"], line["outcome"]) for line in lines) == [
        (3, 0, "skipped"),
        (3, 1, "skipped"),
    ]
    task = make_task(data)
    for line in lines:
        stream = Stream(task.subsets(), {SMALL.name: 4}, seed=task.seed, rank=line["rank"], world_size=2)
        assert line["keys"] == [row.key for row in stream.rows(POISONED_STEP)]
    assert open_checkpoint(run_dir).record.num_skipped_updates == 1


def test_a_run_that_skipped_resumes_bit_for_bit(runs, tmp_path):
    data, _ = runs
    config = STEPS.model_copy(update={"bad_steps": "skip"})
    for steps in (4, 8):
        train_here(partial(train, poisoned(data), config.model_copy(update={"steps": steps}), tmp_path / "two"), 1)
    train_here(partial(train, poisoned(data), config, tmp_path / "one"), 1)
    assert column(tmp_path / "one", "total")[3:] == column(tmp_path / "two", "total")[3:]
    names = [path.name for path in (tmp_path / "one" / "checkpoints" / "step_0000008").glob("rank_*")]
    for name in names:
        one, two = (file_sha256(open_checkpoint(tmp_path / run).folder / name) for run in ("one", "two"))
        assert one == two


def test_stopping_names_the_first_bad_step_and_its_samples(runs, tmp_path):
    data, _ = runs
    config = STEPS.model_copy(update={"log_every_steps": 4})
    with pytest.raises(FloatingPointError, match=r"at step 3; its samples are in .*bad_steps\.jsonl"):
        train_here(partial(train, poisoned(data), config, tmp_path), 1)
    (line,) = [json.loads(line) for line in (tmp_path / "bad_steps.jsonl").read_text().splitlines()]
    assert (line["step"], line["outcome"], len(line["keys"])) == (3, "stopped", 4)
    assert not (tmp_path / "latest").exists()


def test_a_gradient_beyond_the_limit_is_bad(runs, tmp_path):
    data, folders = runs
    norms = column(folders["plain", 0], "gradient_norm")
    limit = sorted(norms)[-1] * 0.999
    with pytest.raises(
        FloatingPointError, match=rf"beyond train\.max_norm {limit:g} at step {norms.index(max(norms)) + 1}"
    ):
        train_here(partial(train, make_task(data), STEPS.model_copy(update={"max_norm": limit}), tmp_path), 1)


def test_a_bad_step_between_two_logged_ones_is_not_passed_over(runs, tmp_path):
    data, folders = runs
    norms = column(folders["plain", 0], "gradient_norm")
    worst = norms.index(max(norms[:3])) + 1  # of the first three; the log looks at the fourth
    config = STEPS.model_copy(update={"log_every_steps": 4, "max_norm": max(norms[:3]) * 0.999})
    with pytest.raises(FloatingPointError, match=rf"at step {worst}; its samples"):
        train_here(partial(train, make_task(data), config, tmp_path), 1)


def test_other_batches_than_those_that_were_counted_are_refused(runs, tmp_path):
    data, _ = runs
    train_here(partial(train, make_task(data), STEPS.model_copy(update={"steps": 4}), tmp_path), 1)
    with pytest.raises(CheckpointError, match=r"after 4 steps and 16 samples, but .* taken 32: restore train.global"):
        train_here(partial(train, make_task(data), STEPS.model_copy(update={"global_batch": 8}), tmp_path), 1)


def test_pieces_that_do_not_divide_are_refused(runs):
    data, _ = runs
    worker = Worker(0, 1, torch.device("cpu"))
    with pytest.raises(WorldSizeError, match=r"1 workers must divide it, in 3 pieces each .*: use 3"):
        build(make_task(data), STEPS.model_copy(update={"accumulate": 3}), worker)


def test_where_the_weights_come_from(runs, tmp_path):
    data, _ = runs
    origins = []
    for steps in (4, 8):
        train_here(partial(train, make_task(data), STEPS.model_copy(update={"steps": steps}), tmp_path), 1)
        origins.append(open_checkpoint(tmp_path))
    first, second = (checkpoint.record.provenance for checkpoint in origins)
    assert first.dataset == second.dataset == file_sha256(data / "index.parquet")
    assert first.lineage == []
    assert second.lineage == [origins[0].fingerprint]
    assert first.code == second.code
    assert first.versions["torch"] == torch.__version__


# ------------------------------------------------------------------ what people are told


def test_a_rank_that_hangs_says_where(tmp_path):
    def wait_for_nothing() -> None:
        time.sleep(1.0)

    with stall_watch(tmp_path, 3, 0.2) as moved:
        moved()
        wait_for_nothing()
    path = tmp_path / "stalls" / f"rank_00003-{os.getpid()}.txt"
    assert stalls(tmp_path) == {path: 3}
    text = path.read_text()
    assert text.startswith("rank 3, process ")
    assert "wait_for_nothing" in text


def test_a_rank_that_moves_leaves_nothing(tmp_path):
    with stall_watch(tmp_path, 0, 60) as moved:
        moved()
    with stall_watch(tmp_path, 0, None) as moved:
        moved()
    assert stalls(tmp_path) == {}
    assert list((tmp_path / "stalls").iterdir()) == []


def test_the_person_who_waits_is_told_of_a_stall(tmp_path):
    said: list[str] = []
    with bar("train", 2, "steps") as progress, following(tmp_path, progress, said.append):
        (tmp_path / "stalls").mkdir()
        for process in (7, 8):  # started again, it hangs again
            (tmp_path / "stalls" / f"rank_00001-{process}.txt").write_text("rank 1\nFile x\n")
    assert said == [
        f"  rank 1 has made no step for long; where it hangs is in {tmp_path / 'stalls' / f'rank_00001-{process}.txt'}"
        for process in (7, 8)
    ]


def test_too_little_memory_names_the_knobs():
    worker = Worker(1, 2, torch.device("cpu"))
    with (
        pytest.raises(
            torch.OutOfMemoryError, match=r"rank 1 .* 16 clips .* stage 2; set train\.accumulate=2 or .*=true or"
        ),
        memory_advice(TrainConfig(), worker, 32),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nmore")


def test_compiled_networks_are_checkpointed_alike():
    """The names of a compiled module are those of the module: a checkpoint of either serves both."""
    module = DiT(make_task(Path()).model, 4)
    names = list(module.state_dict())
    module.compile()
    assert list(module.state_dict()) == names
