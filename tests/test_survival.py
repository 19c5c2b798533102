"""What a night can do to a training's folder, and what the next start makes of it."""

import errno
import json
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from test_training import losses
from torch.multiprocessing.spawn import ProcessExitedException

from benchmarks.faults import FaultyTask
from data.files.publish import TEMPORARY_PREFIX
from data.stream import cache
from data.stream.cache import CacheError
from data.stream.config import CacheConfig
from data.stream.loader import Sample
from pipeline.checkpoint import retention
from pipeline.checkpoint import write as saving
from pipeline.checkpoint.read import load_weights, open_checkpoint
from pipeline.checkpoint.record import CheckpointError, rank_file, read_record, step_folders
from pipeline.checkpoint.retention import Retention, remove_superseded
from pipeline.checkpoint.tensor_files import write_tensors
from pipeline.checkpoint.write import SaveError
from pipeline.distributed.process_group import Worker
from pipeline.distributed.torchrun import train_here
from pipeline.run import lock
from pipeline.run.lock import LockedError, locked
from pipeline.train.control import SAVE_NAME, STOP_NAME, Requests, Wish, sigterm_stops
from pipeline.train.loop import train
from pipeline.train.monitor.events import read_events
from pipeline.train.tasks.flow import DiTTask, FlowBatch
from testing.groups import Job, run_jobs
from testing.tiny import CONFIG, WEIGHTS, make_task, write_latents

ROOT = Path(__file__).resolve().parent.parent
OFTEN = CONFIG.model_copy(update={"checkpoint_every_steps": 2, "keep_checkpoints": 3})  # steps 4, 6 and 8 stay


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_latents(folder)
    return folder


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """Eight steps that nothing disturbed, on one worker."""
    run_dir = tmp_path_factory.mktemp("straight")
    train_here(partial(train, make_task(data), OFTEN, run_dir), 1)
    return run_dir


@pytest.fixture
def run_dir(straight, tmp_path):
    """A copy of that run to be spoilt."""
    return Path(shutil.copytree(straight, tmp_path / "run"))


def go_on(data: Path, run_dir: Path, config=OFTEN) -> None:
    train_here(partial(train, make_task(data), config, run_dir), 1)


def step_folder(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step_{step:07d}"


# ------------------------------------------------------------------ which checkpoint


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def misstate(path: Path) -> None:
    """Still a record that can be read: of the files of no worker."""
    path.write_text(path.read_text().replace('"world_size": 1', '"world_size": 0'))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("file", "spoil", "told"),
    [
        (rank_file(0), flip, r"rank_00000.safetensors is damaged \(its checksum differs\)"),
        (rank_file(0), cut, r"rank_00000.safetensors is damaged \(it has \d+ of \d+ bytes\)"),
        (rank_file(0), Path.unlink, r"rank_00000.safetensors is missing"),
        ("autoencoder.safetensors", flip, r"autoencoder.safetensors is damaged"),
        ("checkpoint.json", cut, r"checkpoint.json is damaged"),
        ("checkpoint.json", misstate, r"checkpoint.json is damaged \(its checksum differs\)"),
        ("checkpoint.json", Path.unlink, r"checkpoint.json is missing: the checkpoint was never finished"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_one_before_a_damaged_checkpoint_is_used_and_it_is_said(data, straight, run_dir, file, spoil, told):
    """Holes 2, 4 and 5: a flipped bit, a torn file and a lost file are each found before anything is loaded."""
    newest = step_folder(run_dir, 8)
    attached = newest / file
    content = attached.read_bytes()
    attached.unlink()  # attachments are hard links
    attached.write_bytes(content)
    spoil(attached)
    go_on(data, run_dir)
    started = read_events(run_dir)[-2]
    assert (started.event, started.step) == ("started", 6)
    assert re.search(told, started.note)
    assert str(newest / file) in started.note
    assert started.note.endswith("resuming from step 6")
    assert losses(run_dir) == losses(straight)
    assert open_checkpoint(run_dir).record.step == 8  # made again in its place


@pytest.mark.parametrize("pointer", [None, "", "../../etc", "step_", "step_0000099"])
def test_a_lost_or_torn_pointer_never_means_a_start_from_the_beginning(data, straight, run_dir, pointer):
    """Hole 3: DeepSpeed warns and begins at step 0."""
    (run_dir / "latest").unlink()
    if pointer is not None:
        (run_dir / "latest").write_text(pointer)
    go_on(data, run_dir, OFTEN.model_copy(update={"steps": 9}))
    assert read_events(run_dir)[-2].step == 8


def test_an_older_checkpoint_can_be_pointed_to(data, straight, run_dir):
    (run_dir / "latest").write_text("step_0000004\n")
    go_on(data, run_dir)
    assert read_events(run_dir)[-2].step == 4
    assert losses(run_dir) == losses(straight)


def test_a_branch_that_was_left_is_neither_kept_nor_gone_on_from(data, run_dir):
    """Saved at other steps, its checkpoints would count as newer than those of the branch that goes on."""
    (run_dir / "latest").write_text("step_0000004\n")
    go_on(data, run_dir, OFTEN.model_copy(update={"steps": 5, "schedule": "constant"}))
    assert sorted(step_folders(run_dir)) == [4, 5]
    assert "step_0000006, step_0000008 will be set aside by the first save" in read_events(run_dir)[-2].note
    for step in (6, 8):  # nothing is lost: who went back by mistake gives it its name again
        aside = step_folder(run_dir, step)
        assert open_checkpoint(aside.with_name(f"{aside.name}.superseded-1")).record.step == step


def test_a_record_of_a_newer_program_is_told_from_damage(run_dir):
    path = step_folder(run_dir, 8) / "checkpoint.json"
    record = json.loads(path.read_text())
    del record["checksum"]
    path.write_text(json.dumps(record | {"schema_version": 99, "news": 1}))
    with pytest.raises(CheckpointError, match="schema 99, newer than this program's 1: use a newer reelflow"):
        read_record(path.parent)


def test_without_one_good_checkpoint_training_refuses_to_start_again(data, run_dir):
    for step in (4, 6, 8):
        cut(step_folder(run_dir, step) / rank_file(0))
    with pytest.raises(CheckpointError, match=r"no checkpoint to go on from: .*step_0000008/rank_00000.* move "):
        go_on(data, run_dir)
    assert sorted(step_folders(run_dir)) == [4, 6, 8]


def test_what_an_interrupted_save_left_never_merges_with_a_new_one(data, run_dir):
    """Hole 7: an orphan of two ranks, and a save of one rank at the same step."""
    orphan = run_dir / "checkpoints" / f"{TEMPORARY_PREFIX}step_0000010-deadbeef"
    shutil.copytree(step_folder(run_dir, 8), orphan)
    shutil.copy(orphan / rank_file(0), orphan / rank_file(1))
    go_on(data, run_dir, OFTEN.model_copy(update={"steps": 10}))
    assert {path.name for path in step_folder(run_dir, 10).iterdir()} == {
        "checkpoint.json", "autoencoder.safetensors", rank_file(0),
    }  # fmt: skip
    assert not list(run_dir.rglob(f"{TEMPORARY_PREFIX}*"))


class Exploit:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_in_a_checkpoint_is_never_opened(data, straight, run_dir, tmp_path):
    """Hole 14."""
    marker, newest = tmp_path / "executed", step_folder(run_dir, 8)
    attack = pickle.dumps(Exploit(marker))
    pickle.loads(attack)
    assert marker.exists()  # the weapon works
    marker.unlink()
    for name in ("model_states.pt", "rank_00000.pt", "optimizer.pkl", ".metadata", "latest.pt"):
        (newest / name).write_bytes(attack)
    load_weights(open_checkpoint(run_dir))
    (newest / rank_file(0)).write_bytes(attack)  # and in the place of a shard it is a damaged file
    with pytest.raises(CheckpointError, match="is damaged"):
        open_checkpoint(run_dir)
    go_on(data, run_dir)
    assert read_events(run_dir)[-2].step == 6
    assert not marker.exists()


def spoil_then_go_on(worker: Worker, data: Path, run_dir: Path) -> None:
    """Two workers; the file of one is damaged."""
    config = OFTEN.model_copy(update={"zero_stage": 3})
    train(make_task(data), config, run_dir, worker)
    torch.distributed.barrier()
    if worker.rank == 0:
        flip(step_folder(run_dir, 8) / rank_file(1))
    torch.distributed.barrier()
    train(make_task(data), config.model_copy(update={"steps": 9, "schedule": "constant"}), run_dir, worker)


def fail_to_write(worker: Worker, data: Path, run_dir: Path) -> None:
    """The disk of rank 1 is full at step 6; both ranks raise the same error, and neither waits for the other."""

    def write(path: Path, tensors, metadata):
        if worker.rank == 1 and "step_0000006" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_tensors(path, tensors, metadata)

    saving.write_tensors = write
    with pytest.raises(SaveError, match=r"step 6 was not saved: rank 1 cannot write .*No space left on device"):
        train(make_task(data), OFTEN, run_dir, worker)
    saving.write_tensors = write_tensors


def stop_by_signal(worker: Worker, data: Path, run_dir: Path) -> None:
    """SIGTERM reaches one process only, and not rank 0; all stop after the same step."""
    task = StruckTask(**vars(make_task(data)), run_dir=run_dir, strike="signal")
    with sigterm_stops(run_dir):
        train(task, MANY, run_dir, worker)


def lack_a_cache(worker: Worker, data: Path, run_dir: Path) -> None:
    """The cache's disk is too small on the machine of rank 1 alone; no rank waits for the other."""
    if worker.rank == 1:
        small = shutil.disk_usage(data)._replace(free=0)
        cache.shutil = SimpleNamespace(disk_usage=lambda _: small)
    caching = OFTEN.model_copy(update={"cache": CacheConfig(folder=run_dir.with_name("cache"), limit_gib=1e-3)})
    with pytest.raises(CacheError, match=rf"has room for 0\.0 GiB; .* \(on {socket.gethostname()}\)"):
        train(make_task(data), caching, run_dir, worker)
    cache.shutil = shutil


def test_on_two_workers_damage_failures_and_signals_reach_all_alike(data, tmp_path):
    """Holes 2, 9, 10 and 11."""
    names = ("damage", "full", "cache", "signal")
    functions = (spoil_then_go_on, fail_to_write, lack_a_cache, stop_by_signal)
    run_jobs([Job(2, function, (data, tmp_path / n)) for n, function in zip(names, functions, strict=True)], tmp_path)
    started = [event for event in read_events(tmp_path / "damage") if event.event == "started"]
    assert [event.step for event in started] == [0, 6]
    assert "step_0000008/rank_00001.safetensors is damaged" in started[1].note
    assert sorted(step_folders(tmp_path / "full")) == [2, 4]
    assert not list((tmp_path / "full").rglob(f"{TEMPORARY_PREFIX}*"))  # the full disk gets its space back
    assert [event.event for event in read_events(tmp_path / "signal")] == ["started", "stopped"]
    stopped = read_events(tmp_path / "signal")[-1].step
    assert 4 <= stopped < MANY.steps
    assert open_checkpoint(tmp_path / "signal").record.step == stopped


# ------------------------------------------------------------------ killed

KILLED = CONFIG.model_copy(update={"steps": 12, "checkpoint_every_steps": 3})


def train_until_killed(worker: Worker, task: FaultyTask, run_dir: Path) -> None:
    train(task, KILLED, run_dir, worker)


@pytest.fixture(scope="module")
def never_killed(data, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("never-killed")
    train_here(partial(train, make_task(data), KILLED, run_dir), 1)
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
def test_killed_at_any_instruction_it_goes_on_bit_for_bit(data, never_killed, tmp_path, fault, goes_on_from):
    """Holes 1 and 2: what counts as saved is on the disk, whole, before anything points to it."""
    task = FaultyTask(**vars(make_task(data)), strikes=(fault,), log_dir=tmp_path)
    run_dir = tmp_path / "run"
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        run_jobs([Job(1, train_until_killed, (task, run_dir))], tmp_path)
    train_here(partial(train, make_task(data), KILLED, run_dir), 1)
    assert [event.step for event in read_events(run_dir)] == [0, goes_on_from, 12]
    assert losses(run_dir) == losses(never_killed)
    for which in WEIGHTS:
        ours, theirs = (load_weights(open_checkpoint(run), which) for run in (run_dir, never_killed))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


# ------------------------------------------------------------------ when to save

MANY = CONFIG.model_copy(update={"steps": 200, "schedule": "constant", "checkpoint_every_steps": 200})


@dataclass(frozen=True)
class StruckTask(DiTTask):
    """Asks for something, from the loader's thread, when the tenth sample is fetched."""

    run_dir: Path = Path()
    strike: str = ""

    def prepare(self, samples: list[Sample]) -> FlowBatch:
        if samples[-1].position == 4 * 8 - 1:  # the last worker's part of global batch 8
            if self.strike == "signal":
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                (self.run_dir / self.strike).touch()
        return super().prepare(samples)


def test_a_checkpoint_on_request(data, tmp_path):
    task = StruckTask(**vars(make_task(data)), run_dir=tmp_path, strike=SAVE_NAME)
    train_here(partial(train, task, MANY, tmp_path), 1)
    steps = sorted(step_folders(tmp_path))
    assert len(steps) == 2
    assert 4 <= steps[0] < steps[1] == MANY.steps  # and it went on
    assert not (tmp_path / SAVE_NAME).exists()


def test_stop_on_request_and_go_on_without_a_trace(data, tmp_path):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    stopped.mkdir()
    train_here(partial(train, make_task(data), MANY, straight), 1)
    task = StruckTask(**vars(make_task(data)), run_dir=stopped, strike=STOP_NAME)
    train_here(partial(train, task, MANY, stopped), 1)
    assert len(losses(stopped)) == open_checkpoint(stopped).record.step < MANY.steps
    assert not (stopped / STOP_NAME).exists()
    train_here(partial(train, make_task(data), MANY, stopped), 1)
    assert losses(stopped) == losses(straight)


def test_a_wish_that_comes_after_the_look_is_not_taken_for_an_earlier_one(tmp_path):
    """Between the look and the checkpoint there may be minutes of validation, and a machine that is taken away."""
    requests = Requests(tmp_path, every_minutes=None)
    (tmp_path / SAVE_NAME).touch()
    wish = requests.look()
    assert wish == Wish(save=True, stop=False)
    (tmp_path / STOP_NAME).touch()
    requests.done(wish)
    assert [path.name for path in tmp_path.iterdir()] == [STOP_NAME]


def test_a_second_sigterm_means_what_it_always_means(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from pipeline.train.control import sigterm_stops\n"
        "with sigterm_stops(Path(sys.argv[1])): print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    while not (tmp_path / STOP_NAME).exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.1)
    assert process.poll() is None
    process.terminate()
    assert process.wait(30) == -signal.SIGTERM


def test_a_checkpoint_by_the_clock(data, tmp_path):
    config = CONFIG.model_copy(update={"checkpoint_every_steps": 100, "checkpoint_every_minutes": 1e-9})
    train_here(partial(train, make_task(data), config, tmp_path), 1)
    assert sorted(step_folders(tmp_path)) == [7, 8]  # one after every step, two of them kept


def test_a_slow_disk_holds_the_copy_of_its_own_step_while_training_goes_on(data, straight, tmp_path, monkeypatch):
    written_at = []

    def slow(path: Path, tensors, metadata):
        time.sleep(0.3)
        record = write_tensors(path, tensors, metadata)
        written_at.append(len(losses(tmp_path)))
        return record

    monkeypatch.setattr(saving, "write_tensors", slow)
    train_here(partial(train, make_task(data), OFTEN.model_copy(update={"checkpoint_every_steps": 4}), tmp_path), 1)
    assert written_at[0] > 4  # steps after the fourth were done before its checkpoint was on the disk
    assert losses(tmp_path) == losses(straight)
    for which in WEIGHTS:
        ours, theirs = (load_weights(open_checkpoint(step_folder(run, 4)), which) for run in (tmp_path, straight))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_blown_up_training_is_not_saved_over_a_good_one(data, run_dir):
    config = OFTEN.model_copy(
        update={"steps": 20, "learning_rate": 1e30, "log_every_steps": 1000, "checkpoint_every_steps": 1}
    )
    with pytest.raises(FloatingPointError):
        go_on(data, run_dir, config)
    assert all(torch.isfinite(tensor).all() for tensor in load_weights(open_checkpoint(run_dir), "master").values())


# ------------------------------------------------------------------ what stays on the disk


def test_the_newest_and_the_milestones_stay(data, tmp_path):
    config = CONFIG.model_copy(update={"steps": 12, "checkpoint_every_steps": 1, "keep_every_steps": 5})
    train_here(partial(train, make_task(data), config, tmp_path), 1)
    assert sorted(step_folders(tmp_path)) == [5, 10, 11, 12]


def test_damaged_checkpoints_do_not_count_as_kept(run_dir):
    cut(step_folder(run_dir, 8) / rank_file(0))
    (step_folder(run_dir, 6) / "checkpoint.json").unlink()
    remove_superseded(run_dir, 8, Retention(keep_last=1))
    assert open_checkpoint(step_folder(run_dir, 4)).record.step == 4  # the last good one


def test_a_disk_too_small_is_refused_before_the_first_step(data, tmp_path, monkeypatch):
    small = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(retention.shutil, "disk_usage", lambda _: small)
    with pytest.raises(CheckpointError, match=r"GB free, but its checkpoints need .*lower train\.keep_checkpoints"):
        train_here(partial(train, make_task(data), CONFIG, tmp_path), 1)
    assert losses(tmp_path) == []


def test_checkpoints_that_stay_for_good_make_no_room(data, tmp_path, monkeypatch):
    config = CONFIG.model_copy(update={"checkpoint_every_steps": 1, "keep_every_steps": 1})
    train_here(partial(train, make_task(data), config, tmp_path), 1)
    small = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(retention.shutil, "disk_usage", lambda _: small)
    with pytest.raises(CheckpointError, match="GB free, but its checkpoints need"):
        train_here(partial(train, make_task(data), config.model_copy(update={"steps": 9}), tmp_path), 1)


def test_before_one_is_written_none_makes_room(data, tmp_path, monkeypatch):
    many = CONFIG.model_copy(update={"checkpoint_every_steps": 1, "keep_checkpoints": 8})
    train_here(partial(train, make_task(data), many, tmp_path), 1)
    small = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(retention.shutil, "disk_usage", lambda _: small)
    with pytest.raises(CheckpointError, match="GB free, but its checkpoints need"):
        train_here(partial(train, make_task(data), CONFIG.model_copy(update={"steps": 9}), tmp_path), 1)


def test_a_disk_that_fills_up(data, tmp_path):
    """A real one, of eight megabytes: the error is clear, what was saved is intact, and it goes on later."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("no permission to mount a small file system")
    try:
        task = make_task(data)
        attachment = disk / "autoencoder.safetensors"  # hard links stay on one file system
        shutil.copy(data / attachment.name, attachment)
        task = DiTTask(**vars(task) | {"autoencoder_path": attachment})
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


@dataclass(frozen=True)
class FillingTask(DiTTask):
    """Fills the disk, but for what the metrics need, when training has begun."""

    filler: Path = Path()
    num_bytes: int = 0

    def prepare(self, samples: list[Sample]) -> FlowBatch:
        if not self.filler.exists():
            self.filler.write_bytes(bytes(self.num_bytes - 200_000))
        return super().prepare(samples)


# ------------------------------------------------------------------ out of it


@pytest.mark.parametrize("which", WEIGHTS)
def test_weights_leave_a_checkpoint_whole_without_ray_or_deepspeed(straight, tmp_path, which):
    output = tmp_path / "weights.safetensors"
    code = (
        "import sys; from pathlib import Path; from pipeline.checkpoint.read import open_checkpoint; "
        "from pipeline.checkpoint.export import export_weights; "
        "export_weights(open_checkpoint(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3]); "
        "print([name for name in ('ray', 'deepspeed') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(straight), str(output), which]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
    expected, exported = load_weights(open_checkpoint(straight), which), load_file(output)
    assert {f"network.{name}" for name in exported} == set(expected)
    assert all(torch.equal(exported[name.removeprefix("network.")], value) for name, value in expected.items())
    about = json.loads(output.with_suffix(".json").read_text())
    assert (about["kind"], about["weights"], about["step"]) == ("dit", which, 8)
    assert about["trained"]["flow"]["caption_drop"] == 0.3


# ------------------------------------------------------------------ one at a time

HOLD = "import sys, time; from pathlib import Path; from pipeline.run.lock import locked\n"
HOLD += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


def hold(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_start_is_refused_and_the_lock_of_the_dead_is_taken_over(tmp_path):
    """Hole 8."""
    path = tmp_path / "run.lock"
    process = hold(path)
    with pytest.raises(LockedError, match=rf"{tmp_path} is in use by process {process.pid} on {socket.gethostname()} "):
        locked(path).__enter__()
    process.kill()
    process.wait()
    assert json.loads(path.read_text())["pid"] == process.pid  # it had no time to let go
    with locked(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert path.read_text() == ""


def test_a_lock_is_waited_for_with_patience(tmp_path):
    path = tmp_path / "run.lock"
    process = hold(path)
    threading.Timer(1, process.kill).start()
    with locked(path, patience_seconds=30):
        assert process.wait(10) == -signal.SIGKILL


def test_a_holder_on_another_machine_counts_until_its_file_goes_stale(tmp_path):
    """Where the file system does not carry flock between machines, only the file tells."""
    path = tmp_path / "run.lock"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 7, "since": "noon"}))
    with pytest.raises(LockedError, match="process 7 on elsewhere since noon"):
        locked(path).__enter__()
    long_ago = time.time() - lock.STALE_SECONDS - 1
    os.utime(path, (long_ago, long_ago))
    with locked(path):
        pass


def test_a_training_whose_first_machine_died_goes_on_on_another(data, tmp_path, monkeypatch):
    """Nobody let go of its lock, and a restart comes before the file is stale: it waits instead of giving up."""
    monkeypatch.setattr(lock, "STALE_SECONDS", 2.0)
    monkeypatch.setattr("pipeline.checkpoint.resume.ORPHANS_LIVE_SECONDS", 0.0)
    (tmp_path / "training.lock").write_text(json.dumps({"host": "elsewhere", "pid": 7, "since": "noon"}))
    train_here(partial(train, make_task(data), CONFIG, tmp_path), 1)
    assert open_checkpoint(tmp_path).record.step == CONFIG.steps


def test_two_trainings_in_one_folder(data, tmp_path, monkeypatch):
    """The lock of the training itself, which outlives a killed driver as long as its workers do."""
    monkeypatch.setattr("pipeline.checkpoint.resume.ORPHANS_LIVE_SECONDS", 0.0)
    process = hold(tmp_path / "training.lock")
    with pytest.raises(LockedError, match=f"process {process.pid}"):
        train_here(partial(train, make_task(data), CONFIG, tmp_path), 1)
    process.kill()
    process.wait()
    train_here(partial(train, make_task(data), CONFIG, tmp_path), 1)
