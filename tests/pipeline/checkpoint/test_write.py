"""Saving while training continues, on slow and full disks, and after an interrupted save."""

import errno
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

from data.files.publish import TEMPORARY_PREFIX
from data.stream.loader import Sample
from pipeline.checkpoint import write as saving
from pipeline.checkpoint.read import load_weights, open_checkpoint
from pipeline.checkpoint.record import CheckpointError, rank_file
from pipeline.checkpoint.tensor_files import write_tensors
from pipeline.checkpoint.write import SaveError
from pipeline.distributed.torchrun import train_here
from pipeline.train.loop import train
from pipeline.train.tasks.flow import FlowTask
from pipeline.train.tasks.flow_batch import FlowBatch
from testing.often_saved import OFTEN, resume, step_folder
from testing.tiny import CONFIG, WEIGHTS, losses, make_task


def test_what_an_interrupted_save_left_never_merges_with_a_new_one(tiny_latents, run_dir):
    """A folder left by an interrupted save of two ranks, then a save by one rank at the same step."""
    orphan = run_dir / "checkpoints" / f"{TEMPORARY_PREFIX}step_0000010-deadbeef"
    shutil.copytree(step_folder(run_dir, 8), orphan)
    shutil.copy(orphan / rank_file(0), orphan / rank_file(1))
    resume(tiny_latents, run_dir, OFTEN.model_copy(update={"steps": 10}))
    assert {path.name for path in step_folder(run_dir, 10).iterdir()} == {
        "checkpoint.json", "autoencoder.safetensors", rank_file(0),
    }  # fmt: skip
    assert not list(run_dir.rglob(f"{TEMPORARY_PREFIX}*"))


def test_a_slow_disk_holds_the_copy_of_its_own_step_while_training_goes_on(
    tiny_latents, often_saved, tmp_path, monkeypatch
):
    deadline = time.monotonic() + 60

    def slow(path: Path, tensors, metadata):
        """Write the first checkpoint once a step after it is done."""
        while len(losses(tmp_path)) <= 4:
            assert time.monotonic() < deadline, "training waits for the save"
            time.sleep(0.01)
        return write_tensors(path, tensors, metadata)

    monkeypatch.setattr(saving, "write_tensors", slow)
    train_here(
        partial(train, make_task(tiny_latents), OFTEN.model_copy(update={"checkpoint_every_steps": 4}), tmp_path), 1
    )
    assert losses(tmp_path) == losses(often_saved)
    for which in WEIGHTS:
        ours, theirs = (load_weights(open_checkpoint(step_folder(run, 4)), which) for run in (tmp_path, often_saved))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_blown_up_training_is_not_saved_over_a_good_one(tiny_latents, run_dir):
    config = OFTEN.model_copy(
        update={"steps": 20, "learning_rate": 1e30, "log_every_steps": 1000, "checkpoint_every_steps": 1}
    )
    with pytest.raises(FloatingPointError):
        resume(tiny_latents, run_dir, config)
    assert all(torch.isfinite(tensor).all() for tensor in load_weights(open_checkpoint(run_dir), "master").values())


def test_a_disk_that_fills_up(tiny_latents, tmp_path):
    """A real disk of 8 MB: the error is clear, earlier checkpoints are intact, training resumes later."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("no permission to mount a small file system")
    try:
        task = make_task(tiny_latents)
        attachment = disk / "autoencoder.safetensors"  # hard links stay on one file system
        shutil.copy(tiny_latents / attachment.name, attachment)
        task = FlowTask(**vars(task) | {"autoencoder_path": attachment})
        run_dir, filler = disk / "run", disk / "filler"
        train_here(partial(train, task, CONFIG.model_copy(update={"steps": 4, "schedule": "constant"}), run_dir), 1)
        free = shutil.disk_usage(disk).free
        config = CONFIG.model_copy(update={"schedule": "constant"})
        with pytest.raises(SaveError, match="No space left on device") as caught:
            train_here(partial(train, FillingTask(**vars(task), filler=filler, num_bytes=free), config, run_dir), 1)
        assert "rank 0 cannot write" in str(caught.value)
        assert open_checkpoint(run_dir).record.step == 4
        filler.unlink()
        train_here(partial(train, task, config, run_dir), 1)
        assert open_checkpoint(run_dir).record.step == 8
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("number", "way_out"),
    [
        (errno.ENOSPC, "free some space and start again"),
        (errno.EROFS, "make the folder writable and start again"),
        (errno.EIO, "repair the disk, or set runs_dir to another one, and start again"),
    ],
)
def test_a_save_that_fails_says_what_was_saved_before_and_what_helps(
    tiny_latents, run_dir, tmp_path, monkeypatch, number, way_out
):
    def refuse(path: Path, tensors, metadata):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(saving, "write_tensors", refuse)
    with pytest.raises(SaveError) as none:
        resume(tiny_latents, tmp_path / "new")
    assert str(none.value).endswith(f": {os.strerror(number)}. No checkpoint had been saved before it: {way_out}")
    with pytest.raises(SaveError) as some:
        resume(tiny_latents, run_dir, OFTEN.model_copy(update={"steps": 10}))
    assert str(some.value).endswith(f": {os.strerror(number)}. The checkpoint of step 8 is intact: {way_out}")


@pytest.mark.parametrize("obstacle", ["file", "link", "read-only folder"])
def test_a_folder_that_cannot_be_written_is_refused_before_the_first_step(tiny_latents, tmp_path, obstacle):
    """Not even root may write to a folder of the kernel, such as /sys/kernel."""
    folder = tmp_path / "run" / "checkpoints"
    folder.parent.mkdir()
    if obstacle == "file":
        folder.touch()
    else:
        folder.symlink_to({"link": tmp_path / "not-mounted", "read-only folder": "/sys/kernel"}[obstacle])
    reason = {
        "file": r"Not a directory|File exists",
        "link": r"it is a link to .*not-mounted, which is missing",
        "read-only folder": r"Permission denied|Operation not permitted|Read-only file system",
    }
    with pytest.raises(CheckpointError, match=rf"cannot be written to .* by rank 0 on .* \(({reason[obstacle]})\)"):
        resume(tiny_latents, tmp_path / "run")
    assert losses(tmp_path / "run") == []


@dataclass(frozen=True)
class FillingTask(FlowTask):
    """Fills the disk once training has begun, except for what the metrics need."""

    filler: Path = Path()
    num_bytes: int = 0

    def collate(self, samples: list[Sample]) -> FlowBatch:
        if not self.filler.exists():
            self.filler.write_bytes(bytes(self.num_bytes - 200_000))
        return super().collate(samples)
