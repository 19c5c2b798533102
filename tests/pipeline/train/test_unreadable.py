"""A shard that is cut short while a training reads it: said at once, counted, and the end above a limit."""

import logging
import os
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data.files.jsonl import read_jsonl
from data.stream.loader import SkippedSample
from launch.config import load_config
from launch.stages import stages_of
from pipeline.checkpoint.read import open_checkpoint
from pipeline.distributed.process_group import Worker
from pipeline.distributed.torchrun import train_here
from pipeline.train.loop import train
from pipeline.train.monitor.events import read_events
from pipeline.train.stage import TrainStage
from pipeline.train.unreadable import SKIPPED_NAME, UnreadableError, num_replaced_samples
from testing.groups import Job, run_jobs
from testing.tiny import CONFIG, column, losses, make_task, write_latents

TOLERANT = CONFIG.model_copy(update={"max_unreadable_share": 0.3})


@pytest.fixture
def cut(tmp_path) -> Path:
    """Latents whose last three samples of ten are no longer readable, though every shard has its full size."""
    folder = tmp_path / "data"
    folder.mkdir()
    write_latents(folder)
    rows = make_task(folder).subsets()[0].rows
    start, size = rows[7].offset, (folder / rows[7].shard).stat().st_size
    os.truncate(folder / rows[7].shard, start)
    os.truncate(folder / rows[7].shard, size)  # as a shard that is written anew: zeros where samples were
    return folder


def replaced(run_dir: Path) -> list[tuple[int, str]]:
    """Position and key of each line of skipped.jsonl."""
    return [(line.position, line.key) for line in read_jsonl(run_dir / SKIPPED_NAME, SkippedSample)]


def stop_on_two(worker: Worker, folder: Path, run_dir: Path) -> None:
    """Both ranks raise, although one of them may have met no such sample."""
    with pytest.raises(UnreadableError) as caught:
        train(make_task(folder), CONFIG, run_dir, worker)
    (run_dir / f"told-{worker.rank}").write_text(str(caught.value))


def test_a_damaged_shard_ends_the_training_alike_on_every_rank(cut, tmp_path):
    with pytest.raises(UnreadableError, match=r"of 10 training samples .* more than train\.max_unreadable_share 0\.01"):
        train_here(partial(train, make_task(cut), CONFIG, tmp_path / "one"), 1)
    run_jobs([Job(2, stop_on_two, (cut, tmp_path / "two"))], tmp_path)
    told = [(tmp_path / "two" / f"told-{rank}").read_text() for rank in range(2)]
    assert told[0] == told[1]
    assert replaced(tmp_path / "two") == replaced(tmp_path / "one")
    assert len(losses(tmp_path / "one")) == len(losses(tmp_path / "two")) < CONFIG.steps


def test_below_the_limit_it_is_said_at_once_and_counted(cut, tmp_path):
    run_dir = tmp_path / "run"
    train_here(partial(train, make_task(cut), TOLERANT.model_copy(update={"log_every_steps": 8}), run_dir), 1)
    lines = replaced(run_dir)
    notes = [event for event in read_events(run_dir) if event.event == "unreadable"]
    assert notes[0].step == lines[0][0] // CONFIG.global_batch + 1  # the step that needed the first of them
    assert "of 10 training samples" in notes[0].note
    assert "the training stops above 30.00%" in notes[0].note
    assert len(notes) <= 2  # for the first, and whenever the number doubles
    assert len({key for _, key in lines}) == 3
    assert num_replaced_samples(run_dir) == len(lines) == column(run_dir, "skipped_samples")[-1]


def test_the_stage_counts_them_in_its_closing_line(cut, tmp_path, caplog):
    """In the summary that it ends with; before, it ended with "done" and the loss alone."""
    (stage,) = stages_of(load_config(Path("demo"), [f"dit.train.steps={CONFIG.steps}"]), ("train dit",))
    assert isinstance(stage, TrainStage)
    opened: Any = SimpleNamespace(folder=tmp_path)
    with caplog.at_level(logging.INFO):
        outcome = stage._watch(lambda: train_here(partial(train, make_task(cut), TOLERANT, tmp_path), 1), opened)
    assert outcome.summary["unreadable samples replaced"] == num_replaced_samples(tmp_path) > 0
    warning = next(record for record in caplog.records if "of 10 training samples" in record.getMessage())
    assert warning.levelno == logging.WARNING


def test_a_training_that_resumes_counts_as_one_that_was_never_stopped(cut, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    steady = TOLERANT.model_copy(update={"schedule": "constant"})
    train_here(partial(train, make_task(cut), steady, whole), 1)
    train_here(partial(train, make_task(cut), steady.model_copy(update={"steps": 7}), parts), 1)
    shutil.rmtree(parts / "checkpoints" / "step_0000007")  # killed after step 7, saved at step 4
    (parts / "latest").write_text("step_0000004\n")
    train_here(partial(train, make_task(cut), steady, parts), 1)
    assert replaced(parts) == replaced(whole)
    assert column(parts, "skipped_samples") == column(whole, "skipped_samples")
    assert losses(parts) == losses(whole)
    assert open_checkpoint(parts).record.cursor == open_checkpoint(whole).record.cursor


def test_once_the_files_are_restored_the_training_goes_on(cut, tmp_path):
    run_dir = tmp_path / "run"
    with pytest.raises(UnreadableError):
        train_here(partial(train, make_task(cut), CONFIG, run_dir), 1)
    shutil.rmtree(cut)
    cut.mkdir()
    write_latents(cut)
    train_here(partial(train, make_task(cut), CONFIG, run_dir), 1)
    assert num_replaced_samples(run_dir) == 0
    assert len(losses(run_dir)) == CONFIG.steps
