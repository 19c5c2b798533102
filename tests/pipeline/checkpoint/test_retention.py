"""Which checkpoints are removed, and when a disk is too small."""

import shutil
from functools import partial

import pytest

from pipeline.checkpoint import retention
from pipeline.checkpoint.read import open_checkpoint
from pipeline.checkpoint.record import CheckpointError, rank_file, step_folders
from pipeline.checkpoint.retention import Retention, remove_superseded
from pipeline.distributed.torchrun import train_here
from pipeline.train.loop import train
from testing.often_saved import step_folder, truncate
from testing.tiny import CONFIG, losses, make_task


def test_the_newest_and_the_milestones_stay(tiny_latents, tmp_path):
    config = CONFIG.model_copy(update={"steps": 12, "checkpoint_every_steps": 1, "keep_every_steps": 5})
    train_here(partial(train, make_task(tiny_latents), config, tmp_path), 1)
    assert sorted(step_folders(tmp_path)) == [5, 10, 11, 12]


def test_damaged_checkpoints_do_not_count_as_kept(run_dir):
    truncate(step_folder(run_dir, 8) / rank_file(0))
    (step_folder(run_dir, 6) / "checkpoint.json").unlink()
    remove_superseded(run_dir, 8, Retention(keep_last=1))
    assert open_checkpoint(step_folder(run_dir, 4)).record.step == 4  # the last good one


def test_a_disk_too_small_is_refused_before_the_first_step(tiny_latents, tmp_path, monkeypatch):
    small = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(retention.shutil, "disk_usage", lambda _: small)
    with pytest.raises(CheckpointError, match=r"GB free, but its checkpoints need .*lower train\.keep_checkpoints"):
        train_here(partial(train, make_task(tiny_latents), CONFIG, tmp_path), 1)
    assert losses(tmp_path) == []


def test_checkpoints_that_stay_for_good_make_no_room(tiny_latents, tmp_path, monkeypatch):
    config = CONFIG.model_copy(update={"checkpoint_every_steps": 1, "keep_every_steps": 1})
    train_here(partial(train, make_task(tiny_latents), config, tmp_path), 1)
    small = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(retention.shutil, "disk_usage", lambda _: small)
    with pytest.raises(CheckpointError, match="GB free, but its checkpoints need"):
        train_here(partial(train, make_task(tiny_latents), config.model_copy(update={"steps": 9}), tmp_path), 1)


def test_before_one_is_written_none_makes_room(tiny_latents, tmp_path, monkeypatch):
    many = CONFIG.model_copy(update={"checkpoint_every_steps": 1, "keep_checkpoints": 8})
    train_here(partial(train, make_task(tiny_latents), many, tmp_path), 1)
    small = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(retention.shutil, "disk_usage", lambda _: small)
    with pytest.raises(CheckpointError, match="GB free, but its checkpoints need"):
        train_here(partial(train, make_task(tiny_latents), CONFIG.model_copy(update={"steps": 9}), tmp_path), 1)


def test_only_the_newest_checkpoints_are_kept(straight, tmp_path):
    task, _, _ = straight
    train_here(partial(train, task, CONFIG.model_copy(update={"checkpoint_every_steps": 2}), tmp_path), 1)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step_0000006", "step_0000008"]
    assert (tmp_path / "checkpoints" / "step_0000008" / "autoencoder.safetensors").is_file()
