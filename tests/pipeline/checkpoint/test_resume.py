"""What a restart does after damage, full disks, signals and killed processes."""

import errno
import os
import pickle
import re
import shutil
import socket
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.multiprocessing.spawn import ProcessExitedException

from data.files.publish import TEMPORARY_PREFIX
from data.stream import cache
from data.stream.cache import CacheError
from data.stream.config import CacheConfig
from pipeline.checkpoint import write as saving
from pipeline.checkpoint.read import load_weights, open_checkpoint
from pipeline.checkpoint.record import CheckpointError, rank_file, step_folders
from pipeline.checkpoint.tensor_files import write_tensors
from pipeline.checkpoint.write import CheckpointSaver, SaveError
from pipeline.distributed.process_group import Worker
from pipeline.distributed.torchrun import train_here
from pipeline.train.control import sigterm_stops
from pipeline.train.loop import train
from pipeline.train.monitor.events import read_events
from testing.faults import FaultyTask
from testing.groups import Job, run_jobs
from testing.often_saved import MANY, OFTEN, StruckTask, resume, step_folder, truncate
from testing.tiny import CONFIG, WEIGHTS, losses, make_task


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def misstate(path: Path) -> None:
    """A record that is valid but lists no worker's files."""
    path.write_text(path.read_text().replace('"world_size": 1', '"world_size": 0'))


@pytest.mark.parametrize(
    ("file", "spoil", "told"),
    [
        (rank_file(0), flip, r"rank_00000.safetensors is damaged \(its checksum differs\)"),
        (rank_file(0), truncate, r"rank_00000.safetensors is damaged \(it has \d+ of \d+ bytes\)"),
        (rank_file(0), Path.unlink, r"rank_00000.safetensors is missing"),
        ("autoencoder.safetensors", flip, r"autoencoder.safetensors is damaged"),
        ("checkpoint.json", truncate, r"checkpoint.json is damaged"),
        ("checkpoint.json", misstate, r"checkpoint.json is damaged \(its checksum differs\)"),
        ("checkpoint.json", Path.unlink, r"checkpoint.json is missing: the checkpoint was never finished"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_one_before_a_damaged_checkpoint_is_used_and_it_is_said(
    tiny_latents, often_saved, run_dir, file, spoil, told
):
    """A flipped bit, a torn file and a lost file are each found before anything is loaded."""
    newest = step_folder(run_dir, 8)
    attached = newest / file
    content = attached.read_bytes()
    attached.unlink()  # attachments are hard links
    attached.write_bytes(content)
    spoil(attached)
    resume(tiny_latents, run_dir)
    started = read_events(run_dir)[-2]
    assert (started.event, started.step) == ("started", 6)
    assert re.search(told, started.note)
    assert str(newest / file) in started.note
    assert started.note.endswith("resuming from step 6")
    assert losses(run_dir) == losses(often_saved)
    assert open_checkpoint(run_dir).record.step == 8  # made again in its place


@pytest.mark.parametrize("pointer", [None, "", "../../etc", "step_", "step_0000099"])
def test_a_lost_or_torn_pointer_never_means_a_start_from_the_beginning(tiny_latents, often_saved, run_dir, pointer):
    """DeepSpeed warns and begins at step 0."""
    (run_dir / "latest").unlink()
    if pointer is not None:
        (run_dir / "latest").write_text(pointer)
    resume(tiny_latents, run_dir, OFTEN.model_copy(update={"steps": 9}))
    assert read_events(run_dir)[-2].step == 8


def test_an_older_checkpoint_can_be_pointed_to(tiny_latents, often_saved, run_dir):
    (run_dir / "latest").write_text("step_0000004\n")
    resume(tiny_latents, run_dir)
    assert read_events(run_dir)[-2].step == 4
    assert losses(run_dir) == losses(often_saved)


def test_a_branch_that_was_left_is_neither_kept_nor_gone_on_from(tiny_latents, run_dir):
    """Checkpoints of later steps would count as newer than those of the training that resumed."""
    (run_dir / "latest").write_text("step_0000004\n")
    resume(tiny_latents, run_dir, OFTEN.model_copy(update={"steps": 5, "schedule": "constant"}))
    assert sorted(step_folders(run_dir)) == [4, 5]
    assert "step_0000006, step_0000008 will be archived by the first save" in read_events(run_dir)[-2].note
    for step in (6, 8):  # nothing is deleted: renaming the folder restores it
        aside = step_folder(run_dir, step)
        assert open_checkpoint(aside.with_name(f"{aside.name}.superseded-1")).record.step == step


def test_without_one_good_checkpoint_training_refuses_to_start_again(tiny_latents, run_dir):
    for step in (4, 6, 8):
        truncate(step_folder(run_dir, step) / rank_file(0))
    with pytest.raises(CheckpointError, match=r"no checkpoint to resume from: .*step_0000008/rank_00000.* move "):
        resume(tiny_latents, run_dir)
    assert sorted(step_folders(run_dir)) == [4, 6, 8]


def test_checkpoints_that_are_gone_never_mean_a_start_from_the_beginning(tiny_latents, often_saved, run_dir):
    """A disk that is not mounted: neither the folder nor the pointer is there, but the history is."""
    for evidence in ("last_save.json", "events.jsonl"):  # versions before last_save.json left only the events
        (run_dir / evidence).rename(run_dir / f"{evidence}.hidden")
        shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
        (run_dir / "latest").unlink(missing_ok=True)
        with pytest.raises(CheckpointError, match=r"one was saved at step 8: .*checkpoints and .*latest are missing"):
            resume(tiny_latents, run_dir)
        (run_dir / f"{evidence}.hidden").rename(run_dir / evidence)
    assert losses(run_dir) == losses(often_saved)  # no line of the history was thrown away


def test_a_training_killed_before_its_first_save_begins_again_and_says_so(tiny_latents, often_saved, run_dir):
    started = (run_dir / "events.jsonl").read_text().splitlines()[0]
    (run_dir / "events.jsonl").write_text(started + "\n")
    shutil.rmtree(run_dir / "checkpoints")
    for name in ("latest", "last_save.json"):
        (run_dir / name).unlink()
    resume(tiny_latents, run_dir)
    assert read_events(run_dir)[1].note == "no checkpoint had been saved: training begins with step 0 again"
    assert losses(run_dir) == losses(often_saved)


class Exploit:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_in_a_checkpoint_is_never_opened(tiny_latents, often_saved, run_dir, tmp_path):
    marker, newest = tmp_path / "executed", step_folder(run_dir, 8)
    attack = pickle.dumps(Exploit(marker))
    pickle.loads(attack)
    assert marker.exists()  # the attack works with pickle
    marker.unlink()
    for name in ("model_states.pt", "rank_00000.pt", "optimizer.pkl", ".metadata", "latest.pt"):
        (newest / name).write_bytes(attack)
    load_weights(open_checkpoint(run_dir))
    (newest / rank_file(0)).write_bytes(attack)  # in place of a rank's file it counts as damaged
    with pytest.raises(CheckpointError, match="is damaged"):
        open_checkpoint(run_dir)
    resume(tiny_latents, run_dir)
    assert read_events(run_dir)[-2].step == 6
    assert not marker.exists()


def spoil_then_go_on(worker: Worker, tiny_latents: Path, run_dir: Path) -> None:
    """Two workers; the file of one is damaged."""
    config = OFTEN.model_copy(update={"zero_stage": 3})
    train(make_task(tiny_latents), config, run_dir, worker)
    torch.distributed.barrier()
    if worker.rank == 0:
        flip(step_folder(run_dir, 8) / rank_file(1))
    torch.distributed.barrier()
    train(make_task(tiny_latents), config.model_copy(update={"steps": 9, "schedule": "constant"}), run_dir, worker)


def fail_to_write(worker: Worker, tiny_latents: Path, run_dir: Path) -> None:
    """The disk of rank 1 is full at step 6; both ranks raise the same error, and neither waits for the other."""

    def write(path: Path, tensors, metadata):
        if worker.rank == 1 and "step_0000006" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_tensors(path, tensors, metadata)

    saving.write_tensors = write
    with pytest.raises(SaveError, match=r"step 6 was not saved: rank 1 cannot write .*No space left on device"):
        train(make_task(tiny_latents), OFTEN, run_dir, worker)
    saving.write_tensors = write_tensors


def stop_by_signal(worker: Worker, tiny_latents: Path, run_dir: Path) -> None:
    """SIGTERM reaches one process only, and not rank 0; all stop after the same step."""
    task = StruckTask(**vars(make_task(tiny_latents)), run_dir=run_dir, strike="signal")
    with sigterm_stops(run_dir):
        train(task, MANY, run_dir, worker)


def lack_a_cache(worker: Worker, tiny_latents: Path, run_dir: Path) -> None:
    """The cache's disk is too small on the machine of rank 1 alone; no rank waits for the other."""
    if worker.rank == 1:
        small = shutil.disk_usage(tiny_latents)._replace(free=0)
        cache.shutil = SimpleNamespace(disk_usage=lambda _: small)
    caching = OFTEN.model_copy(update={"cache": CacheConfig(folder=run_dir.with_name("cache"), limit_gib=1e-3)})
    with pytest.raises(CacheError, match=rf"has room for 0\.0 GiB; .* \(on {socket.gethostname()}\)"):
        train(make_task(tiny_latents), caching, run_dir, worker)
    cache.shutil = shutil


def test_on_two_workers_damage_failures_and_signals_reach_all_alike(tiny_latents, tmp_path):
    names = ("damage", "full", "cache", "signal")
    functions = (spoil_then_go_on, fail_to_write, lack_a_cache, stop_by_signal)
    run_jobs(
        [Job(2, function, (tiny_latents, tmp_path / n)) for n, function in zip(names, functions, strict=True)], tmp_path
    )
    started = [event for event in read_events(tmp_path / "damage") if event.event == "started"]
    assert [event.step for event in started] == [0, 6]
    assert "step_0000008/rank_00001.safetensors is damaged" in started[1].note
    assert sorted(step_folders(tmp_path / "full")) == [2, 4]
    assert not list((tmp_path / "full").rglob(f"{TEMPORARY_PREFIX}*"))  # its space on the full disk is freed
    assert [event.event for event in read_events(tmp_path / "signal")] == ["started", "stopped"]
    stopped = read_events(tmp_path / "signal")[-1].step
    assert 4 <= stopped < MANY.steps
    assert open_checkpoint(tmp_path / "signal").record.step == stopped


KILLED = CONFIG.model_copy(update={"steps": 12, "checkpoint_every_steps": 3})


def train_until_killed(worker: Worker, task: FaultyTask, run_dir: Path) -> None:
    """Each save is written before the next step begins: it is known which checkpoint is the newest in step 8."""
    begin = CheckpointSaver.begin

    def begin_and_write(saver: CheckpointSaver, step: int, cursor: int) -> None:
        begin(saver, step, cursor)
        while saver.busy:
            time.sleep(0.001)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointSaver, "begin", begin_and_write)
        train(task, KILLED, run_dir, worker)


@pytest.fixture(scope="module")
def never_killed(tiny_latents, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("never-killed")
    train_here(partial(train, make_task(tiny_latents), KILLED, run_dir), 1)
    return run_dir


@pytest.mark.parametrize(
    ("fault", "goes_on_from"),
    [
        ("worker killed in step", 6),
        ("worker killed in backward", 6),
        ("worker killed during save", 3),
        ("worker killed between save and publish", 3),
        ("worker killed between publish and latest", 3),
    ],
)
def test_killed_at_any_instruction_it_goes_on_bit_for_bit(tiny_latents, never_killed, tmp_path, fault, goes_on_from):
    """A checkpoint is completely on the disk before `latest` names it."""
    task = FaultyTask(**vars(make_task(tiny_latents)), strikes=(fault,), log_dir=tmp_path, step_seconds=0)
    run_dir = tmp_path / "run"
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        run_jobs([Job(1, train_until_killed, (task, run_dir))], tmp_path)
    train_here(partial(train, make_task(tiny_latents), KILLED, run_dir), 1)
    assert [event.step for event in read_events(run_dir)] == [0, goes_on_from, 12]
    assert losses(run_dir) == losses(never_killed)
    for which in WEIGHTS:
        ours, theirs = (load_weights(open_checkpoint(run), which) for run in (run_dir, never_killed))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
