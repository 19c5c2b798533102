"""Stop and save requests, by file, by signal and by time."""

import signal
import subprocess
import sys
import time
from functools import partial

from pipeline.checkpoint.read import open_checkpoint
from pipeline.checkpoint.record import step_folders
from pipeline.distributed.torchrun import train_here
from pipeline.run import precision
from pipeline.train.control import SAVE_NAME, STOP_NAME, ControlFiles, ControlFlags
from pipeline.train.loop import train
from pipeline.train.monitor.events import read_events
from testing.often_saved import MANY, StruckTask
from testing.paths import ROOT
from testing.tiny import CONFIG, losses, make_task


def test_a_precision_without_instructions_is_said_as_the_training_starts(tiny_latents, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "_cpu_flags", lambda: "flags: avx2 fma")
    config = CONFIG.model_copy(update={"steps": 1, "precision": "bf16"})
    train_here(partial(train, make_task(tiny_latents), config, tmp_path), 1)
    started = next(event for event in read_events(tmp_path) if event.event == "started")
    assert "precision is bf16, but this CPU has no instructions for it" in started.note


def test_a_checkpoint_on_request(tiny_latents, tmp_path):
    task = StruckTask(**vars(make_task(tiny_latents)), run_dir=tmp_path, strike=SAVE_NAME)
    train_here(partial(train, task, MANY, tmp_path), 1)
    steps = sorted(step_folders(tmp_path))
    assert len(steps) == 2
    assert 4 <= steps[0] < steps[1] == MANY.steps  # and it went on
    assert not (tmp_path / SAVE_NAME).exists()


def test_stop_on_request_and_go_on_without_a_trace(tiny_latents, tmp_path):
    often_saved, stopped = tmp_path / "straight", tmp_path / "stopped"
    stopped.mkdir()
    train_here(partial(train, make_task(tiny_latents), MANY, often_saved), 1)
    task = StruckTask(**vars(make_task(tiny_latents)), run_dir=stopped, strike=STOP_NAME)
    train_here(partial(train, task, MANY, stopped), 1)
    assert len(losses(stopped)) == open_checkpoint(stopped).record.step < MANY.steps
    assert not (stopped / STOP_NAME).exists()
    train_here(partial(train, make_task(tiny_latents), MANY, stopped), 1)
    assert losses(stopped) == losses(often_saved)


def test_a_wish_that_comes_after_the_look_is_not_taken_for_an_earlier_one(tmp_path):
    """Between the look and the checkpoint there may be minutes of validation, and a machine that is taken away."""
    control = ControlFiles(tmp_path, every_minutes=None)
    (tmp_path / SAVE_NAME).touch()
    flags = control.poll()
    assert flags == ControlFlags(save=True, stop=False)
    (tmp_path / STOP_NAME).touch()
    control.acknowledge(flags)
    assert [path.name for path in tmp_path.iterdir()] == [STOP_NAME]


def test_a_second_sigterm_means_what_it_always_means(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from pipeline.train.control import sigterm_stops\n"
        "with sigterm_stops(Path(sys.argv[1])): print('ready', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
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


def test_a_checkpoint_by_the_clock(tiny_latents, tmp_path):
    config = CONFIG.model_copy(update={"checkpoint_every_steps": 100, "checkpoint_every_minutes": 1e-9})
    train_here(partial(train, make_task(tiny_latents), config, tmp_path), 1)
    assert sorted(step_folders(tmp_path)) == [7, 8]  # one after every step, two of them kept
