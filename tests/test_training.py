"""The training loop, checkpoints and resume, on a real DeepSpeed engine."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from data.dataset.manifest import LatentStats
from data.dataset.reader import PayloadReader
from data.errors import DatasetError
from data.stream.loader import Sample, Stream
from pipeline.checkpoint.read import load_weights, open_checkpoint
from pipeline.checkpoint.record import CheckpointError
from pipeline.distributed.config import WorldSizeError
from pipeline.distributed.process_group import Worker
from pipeline.distributed.torchrun import train_here
from pipeline.encode.statistics import denormalize, normalize
from pipeline.run import randomness
from pipeline.train.build import build
from pipeline.train.config import TrainConfig
from pipeline.train.loop import train
from pipeline.train.monitor.metrics import read_metrics
from pipeline.train.schedule import learning_rate
from testing.records import SMALL
from testing.tiny import CONFIG, SHAPE, WEIGHTS, make_task, write_latents

ROOT = Path(__file__).resolve().parent.parent


def train_in_processes(folder: Path, run_dir: Path, world_size: int, steps: int, *settings: str) -> None:
    """Real worker processes under torchrun, as on any cluster without Ray."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}",
        str(Path(__file__).parent / "train_worker.py"), str(folder), str(run_dir), str(steps), *settings,
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Eight steps on one worker in one go."""
    folder = tmp_path_factory.mktemp("data")
    run_dir = tmp_path_factory.mktemp("straight")
    write_latents(folder)
    task = make_task(folder)
    train_here(partial(train, task, CONFIG, run_dir), 1)
    return task, folder, run_dir


def losses(run_dir: Path) -> list[float]:
    return [row["total"] for row in read_metrics(run_dir)]


@pytest.mark.slow
def test_compiled_blocks_train_alike(straight, tmp_path):
    """Needs a C++ compiler. In a process of its own, without the tests' checks of shapes."""
    _, folder, run_dir = straight
    train_in_processes(folder, tmp_path, 1, CONFIG.steps, "compile")
    np.testing.assert_allclose(losses(tmp_path), losses(run_dir), rtol=1e-4)


def test_loss_is_logged_and_the_first_is_that_of_zero_velocity(straight):
    """adaLN-zero predicts 0, so the first loss is the mean of |x_1 - x_0|^2 over the batch."""
    task, _, run_dir = straight
    stream = Stream(task.subsets(), {SMALL.name: 4}, seed=task.seed, rank=0, world_size=1)
    batch = next(stream.batches(0, task.prepare, readers=0))
    assert losses(run_dir)[0] == pytest.approx((batch.x_1 - batch.x_0).square().mean().item(), rel=1e-5)
    assert [row["step"] for row in read_metrics(run_dir)] == list(range(1, 9))


def test_stop_and_resume_is_bit_identical(straight, tmp_path):
    task, _, run_dir = straight
    often = tmp_path / "often"
    train_here(partial(train, task, CONFIG.model_copy(update={"checkpoint_every_steps": 3}), often), 1)
    assert losses(often) == losses(run_dir)  # saving changes nothing
    resumed = tmp_path / "resumed"  # as if it had stopped after step 4
    shutil.copytree(run_dir / "checkpoints" / "step_0000004", resumed / "checkpoints" / "step_0000004")
    (resumed / "latest").write_text("step_0000004\n")
    shutil.copy(run_dir / "metrics.jsonl", resumed / "metrics.jsonl")
    train_here(partial(train, task, CONFIG, resumed), 1)
    assert losses(resumed) == losses(run_dir)
    for which in WEIGHTS:
        one, two = (load_weights(open_checkpoint(folder), which) for folder in (run_dir, resumed))
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_two_workers_see_the_same_samples_and_reach_the_same_losses(straight, tmp_path):
    _, folder, run_dir = straight
    train_in_processes(folder, tmp_path, world_size=2, steps=8)
    np.testing.assert_allclose(losses(tmp_path), losses(run_dir), rtol=2e-5)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.record.world_size == 2
    assert checkpoint.record.cursor == 32
    one, two = load_weights(open_checkpoint(run_dir)), load_weights(checkpoint)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-4)


def test_a_checkpoint_of_two_workers_resumes_on_one(straight, tmp_path):
    task, folder, run_dir = straight
    train_in_processes(folder, tmp_path, world_size=2, steps=8)
    shutil.rmtree(tmp_path / "checkpoints" / "step_0000008")  # as if it had stopped after step 4
    (tmp_path / "latest").write_text("step_0000004\n")
    before = load_weights(open_checkpoint(tmp_path), "master")
    train_here(partial(train, task, CONFIG, tmp_path), 1)
    np.testing.assert_allclose(losses(tmp_path), losses(run_dir), rtol=2e-5)
    after = load_weights(open_checkpoint(tmp_path), "master")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_fragments_tile_every_parameter_once(straight, tmp_path):
    _, folder, _ = straight
    train_in_processes(folder, tmp_path, world_size=2, steps=1)
    checkpoint = open_checkpoint(tmp_path)
    covered = {
        name: torch.zeros(int(np.prod(shape)), dtype=torch.int) for name, shape in checkpoint.record.parameters.items()
    }
    sizes = []
    for path in sorted(checkpoint.folder.glob("rank_*.safetensors")):
        with safe_open(path, framework="pt") as file:
            starts = json.loads(file.metadata()["starts"])
            sizes.append(sum(file.get_slice(f"master/{n}").get_shape()[0] for n in starts))
            for name, start in starts.items():
                covered[name][start : start + file.get_slice(f"power-0.10/{name}").get_shape()[0]] += 1
    assert all(bool((count == 1).all()) for count in covered.values())
    assert abs(sizes[0] - sizes[1]) < 0.1 * sum(sizes)  # and the ranks share fairly


def test_damage_is_noticed_and_named(straight, tmp_path):
    _, _, run_dir = straight
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    shard = copy / "checkpoints" / "step_0000008" / "rank_00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"rank_00000\.safetensors is damaged"):
        open_checkpoint(copy)
    shard.unlink()
    with pytest.raises(CheckpointError, match=r"rank_00000\.safetensors is missing"):
        open_checkpoint(copy)
    (copy / "latest").write_text("../../etc")
    with pytest.raises(CheckpointError, match="instead of a checkpoint's name"):
        open_checkpoint(copy)
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        open_checkpoint(tmp_path)


def test_another_architecture_is_refused_by_name(straight, tmp_path):
    task, _, run_dir = straight
    shutil.copytree(run_dir, tmp_path / "run")
    wider = replace(task, model=task.model.model_copy(update={"depth": 2}))
    with pytest.raises(CheckpointError, match=r"another architecture: network\.blocks\.1\."):
        train_here(partial(train, wider, CONFIG, tmp_path / "run"), 1)


def test_only_the_newest_checkpoints_are_kept(straight, tmp_path):
    task, _, _ = straight
    train_here(partial(train, task, CONFIG.model_copy(update={"checkpoint_every_steps": 2}), tmp_path), 1)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step_0000006", "step_0000008"]
    assert (tmp_path / "checkpoints" / "step_0000008" / "autoencoder.safetensors").is_file()


def test_a_loss_that_is_not_finite_stops_with_advice(straight, tmp_path):
    task, _, _ = straight
    with pytest.raises(FloatingPointError, match=r"at step 2; its samples .* lower train\.learning_rate"):
        train_here(partial(train, task, CONFIG.model_copy(update={"learning_rate": 1e30}), tmp_path), 1)


def test_a_batch_that_the_workers_cannot_share_is_refused(straight, tmp_path):
    task, _, _ = straight
    worker = Worker(rank=0, world_size=3, device=torch.device("cpu"))
    with pytest.raises(WorldSizeError, match="global_batch is 4, but 3 workers must divide it: use 3"):
        build(task, CONFIG, worker)


def test_learning_rate_schedule():
    config = TrainConfig(steps=110, warmup_steps=10, learning_rate=1.0)
    assert learning_rate(0, config) == pytest.approx(0.1)
    assert learning_rate(9, config) == learning_rate(10, config) == pytest.approx(1.0)
    assert learning_rate(60, config) == pytest.approx(0.55)
    assert learning_rate(110, config) == pytest.approx(0.1)
    assert learning_rate(60, config.model_copy(update={"schedule": "constant"})) == 1.0


def test_addressed_randomness():
    one = randomness.normal(1, "noise", [3, 4, 5], (2, 2))
    assert torch.equal(one[1:], randomness.normal(1, "noise", [4, 5], (2, 2)))
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one, randomness.normal(1, "time", [3, 4, 5], (2, 2)))
    assert not torch.equal(one, randomness.normal(2, "noise", [3, 4, 5], (2, 2)))
    many = randomness.uniform(0, "caption-drop", range(2000))
    assert abs(float(many.mean()) - 0.5) < 0.03


def test_normalize_and_denormalize_are_inverse():
    stats = LatentStats(mean=[0.3, -1.0], std=[2.0, 0.5])
    x = torch.randn(2, 2, 1, 3, 3)
    torch.testing.assert_close(denormalize(normalize(x, stats), stats), x)
    assert float(normalize(torch.tensor([2.3, -0.5])[None, :, None, None, None], stats).sum()) == pytest.approx(2.0)


def test_caption_drop_is_per_sample_and_at_the_configured_rate(straight):
    task, folder, _ = straight
    rows = task.subsets()[0].rows
    content = PayloadReader(folder).read(rows[0])
    batch = task.prepare([Sample(position, rows, 0, content) for position in range(400)])
    dropped = (batch.caption.mask.sum(1) == 1).float().mean()
    assert abs(float(dropped) - 0.3) < 0.07


def test_times_per_frame_belong_to_their_position(straight):
    task, folder, _ = straight
    rows = task.subsets()[0].rows
    content = PayloadReader(folder).read(rows[0])
    per_frame = replace(task, flow=task.flow.model_copy(update={"times_per": "frame"}))
    t = per_frame.prepare([Sample(position, rows, 0, content) for position in range(400)]).t
    assert t.shape == (400, 1, SHAPE[1])
    assert torch.equal(per_frame.prepare([Sample(7, rows, 0, content)]).t, t[7:8])
    assert len(t.unique()) == t.numel()


def test_an_unreadable_sample_is_skipped_counted_and_listed(straight, tmp_path, monkeypatch):
    task, _, whole = straight
    bad, read = task.subsets()[0].rows[2].key, PayloadReader.read_into

    def refuse(self, row, buffer):
        if row.key == bad:
            raise DatasetError(f"{row.key} is damaged")
        return read(self, row, buffer)

    monkeypatch.setattr(PayloadReader, "read_into", refuse)
    train_here(partial(train, task, CONFIG, tmp_path), 1)
    rows = read_metrics(tmp_path)
    listed = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert {line["key"] for line in listed} == {bad}
    assert rows[-1]["skipped_samples"] >= 1
    assert len(listed) >= rows[-1]["skipped_samples"]
    assert all(0 <= row["data_wait"] <= 1 for row in rows)
    assert "skipped.jsonl" not in [path.name for path in whole.iterdir()]
