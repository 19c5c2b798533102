"""The lock of a folder: refused while held, taken over from a dead process."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from pipeline.checkpoint.read import open_checkpoint
from pipeline.checkpoint.resume import exclusive_access
from pipeline.distributed.process_group import Worker
from pipeline.distributed.torchrun import train_here
from pipeline.run import lock
from pipeline.run.lock import LockedError, locked, record_witnesses, witness
from pipeline.train.loop import train
from testing.paths import ROOT
from testing.tiny import CONFIG, make_task

HOLD = "import sys, time; from pathlib import Path; from pipeline.run.lock import locked\n"

HOLD += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


def hold(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "held\n"
    return process


def test_a_second_start_is_refused_and_the_lock_of_the_dead_is_taken_over(tmp_path):
    path = tmp_path / "run.lock"
    process = hold(path)
    with pytest.raises(LockedError, match=rf"{tmp_path} is in use by process {process.pid} on {socket.gethostname()} "):
        locked(path).__enter__()
    process.kill()
    process.wait()
    assert json.loads(path.read_text())["pid"] == process.pid  # it was killed while it held the lock
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
    """On a file system that does not carry flock between machines, only the file's content and age count."""
    path = tmp_path / "run.lock"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 7, "since": "noon"}))
    with pytest.raises(LockedError, match="process 7 on elsewhere since noon"):
        locked(path).__enter__()
    long_ago = time.time() - lock.STALE_SECONDS - 1
    os.utime(path, (long_ago, long_ago))
    with locked(path):
        pass


def test_machines_that_have_seen_the_lock_held_need_not_wait_for_it_to_go_stale(tmp_path, monkeypatch):
    """They have seen that the file system carries flock to them, so that a lock they can take is that of the dead."""
    path = tmp_path / "run.lock"
    process = hold(path)
    assert witness(path) is None  # on the holder's own machine
    monkeypatch.setattr(socket, "gethostname", lambda: "witness")
    assert witness(path) == "witness"
    record_witnesses(path, ["witness"])
    with pytest.raises(LockedError, match=f"process {process.pid} on"):  # it lives
        locked(path).__enter__()
    process.kill()
    process.wait()
    assert witness(path) is None  # nobody holds it
    monkeypatch.setattr(socket, "gethostname", lambda: "newcomer")
    with pytest.raises(LockedError, match=f"process {process.pid} on"):
        locked(path).__enter__()
    monkeypatch.setattr(socket, "gethostname", lambda: "witness")
    with locked(path):
        assert json.loads(path.read_text()) | {"since": ""} == {
            "host": "witness",
            "pid": os.getpid(),
            "since": "",
            "witnesses": [],
        }


def test_a_training_records_which_machines_see_its_lock(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.checkpoint.resume.witness", lambda path: f"beside {path.name}")
    seen = []

    def look(worker: Worker) -> None:
        with exclusive_access(tmp_path, worker.rank):
            seen.append(json.loads((tmp_path / "training.lock").read_text())["witnesses"])

    train_here(look, 1)
    assert seen == [["beside training.lock"]]


def test_a_training_whose_first_machine_died_goes_on_on_another(tiny_latents, tmp_path, monkeypatch):
    """Its lock was not released, and the restart comes before the file is stale: it waits for that."""
    monkeypatch.setattr(lock, "STALE_SECONDS", 2.0)
    monkeypatch.setattr("pipeline.checkpoint.resume.ORPHANS_LIVE_SECONDS", 0.0)
    (tmp_path / "training.lock").write_text(json.dumps({"host": "elsewhere", "pid": 7, "since": "noon"}))
    train_here(partial(train, make_task(tiny_latents), CONFIG, tmp_path), 1)
    assert open_checkpoint(tmp_path).record.step == CONFIG.steps


def test_two_trainings_in_one_folder(tiny_latents, tmp_path, monkeypatch):
    """The lock of the training itself, which outlives a killed driver as long as its workers do."""
    monkeypatch.setattr("pipeline.checkpoint.resume.ORPHANS_LIVE_SECONDS", 0.0)
    process = hold(tmp_path / "training.lock")
    with pytest.raises(LockedError, match=f"process {process.pid}"):
        train_here(partial(train, make_task(tiny_latents), CONFIG, tmp_path), 1)
    process.kill()
    process.wait()
    train_here(partial(train, make_task(tiny_latents), CONFIG, tmp_path), 1)
