"""Validation losses: independent of workers and ZeRO stage, and those of the saved weights."""

import json
import shutil
from collections import defaultdict
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from data.dataset.index import read_index
from data.dataset.reader import PayloadReader
from pipeline.checkpoint.read import load_weights, open_checkpoint
from pipeline.distributed.torchrun import train_here
from pipeline.train.monitor.validation import VALIDATION_NAME, ValidationRow, held_out, read_validation
from testing.records import SMALL
from testing.tiny import WEIGHTS
from testing.watched import STAGES, STILL, WATCHED, task_of, train_watched


@pytest.mark.slow
def test_validation_has_a_line_per_step_weights_bucket_and_bin(watched_runs):
    lines = read_validation(watched_runs / "watched-2")
    cells = [(line.step, line.weights, line.bucket, line.time_bin) for line in lines]
    bins = (None, 0, 1, 2, 3)
    expected = {
        (step, weights, bucket.name, time_bin)
        for step in (0, 3, 6, 8)
        for weights in WATCHED.validate_weights
        for bucket in (SMALL, STILL)
        for time_bin in bins
    }
    assert len(cells) == len(expected)
    assert set(cells) == expected
    assert {line.bucket: line.num_clips for line in lines} == {SMALL.name: 5, STILL.name: 2}
    for line in lines:
        parts = [
            part.loss for part in lines if replace(part, time_bin=None, loss=0) == replace(line, time_bin=None, loss=0)
        ]
        if line.time_bin is None:
            assert line.loss == pytest.approx(sum(parts[1:]) / 4, rel=1e-6)


@pytest.mark.slow
def test_validation_is_that_of_the_saved_weights(watched_runs):
    """The lines after the last step, computed again by a plain module from the checkpoint."""
    task, rows = task_of(watched_runs / "data"), held_out(read_index(watched_runs / "data", "validation"), 7)
    assert all(row.split == "validation" for row in rows)
    reader, checkpoint = PayloadReader(watched_runs / "data"), open_checkpoint(watched_runs / "watched-2")
    for weights, saved in zip(WATCHED.validate_weights, WEIGHTS, strict=True):
        module: Any = task.build()
        module.load_state_dict(load_weights(checkpoint, saved))
        losses = defaultdict(list)
        for row in rows:
            batch = task.validation_batch(row, reader.read(row))
            assert (batch.t * 4).long().tolist() == [0, 1, 2, 3]
            with torch.no_grad():
                x_t = module.path.at(batch.t, batch.x_1).point(batch.x_0, batch.x_1)
                error = (module.network(x_t, batch.t, batch.caption) - (batch.x_1 - batch.x_0)).square()
            for time_bin, loss in enumerate(error.flatten(1).mean(1).tolist()):
                losses[row.bucket, time_bin].append(loss)
        lines = [
            line for line in read_validation(watched_runs / "watched-2") if (line.step, line.weights) == (8, weights)
        ]
        for line in lines:
            if line.time_bin is not None:
                own = losses[line.bucket, line.time_bin]
                assert line.loss == pytest.approx(sum(own) / len(own), rel=1e-5)


@pytest.mark.slow
def test_validation_knows_nothing_of_the_number_of_workers_and_the_stage(watched_runs):
    def of(run: str) -> list[ValidationRow]:
        return read_validation(watched_runs / run)

    first = [line for line in of("alone") if line.step == 0]
    for stage in STAGES:  # of the same weights, the same numbers
        assert [line for line in of(f"watched-{stage}") if line.step == 0] == first
        for one, two in zip(of("alone"), of(f"watched-{stage}"), strict=True):
            assert replace(one, loss=0) == replace(two, loss=0)
            assert one.loss == pytest.approx(two.loss, rel=1e-4)


@pytest.mark.slow
def test_validation_of_clips_that_workers_share_is_that_of_one_worker(watched_runs):
    lines = {run: read_validation(watched_runs / run) for run in ("alone", "together")}
    for one, two in zip(*lines.values(), strict=True):
        assert replace(one, loss=0) == replace(two, loss=0)
        assert one.loss == pytest.approx(two.loss, rel=1e-4)


@pytest.mark.slow
def test_after_a_fallback_the_lines_are_those_of_an_undisturbed_run(watched_runs, tmp_path):
    straight, resumed = watched_runs / "alone", tmp_path / "resumed"
    shutil.copytree(straight / "checkpoints" / "step_0000004", resumed / "checkpoints" / "step_0000004")
    (resumed / "latest").write_text("step_0000004\n")
    lines = (straight / VALIDATION_NAME).read_text().splitlines(keepends=True)
    later = [json.dumps(json.loads(line) | {"loss": -1.0}) + "\n" for line in lines if json.loads(line)["step"] > 4]
    kept = lines[: len(lines) - len(later)]
    assert len(kept) == len(later) == 60
    (resumed / VALIDATION_NAME).write_text("".join(kept + later) + '{"step": 9, "wei')
    train_here(partial(train_watched, data=watched_runs / "data", run_dir=resumed, stage=2, config=WATCHED), 1)
    assert (resumed / VALIDATION_NAME).read_text() == "".join(lines)


@pytest.mark.slow
def test_held_out_clips_are_shared_out_over_the_buckets(watched_runs):
    rows = read_index(watched_runs / "data", "validation")
    chosen = held_out(rows[::-1], 4)
    assert [row.bucket for row in chosen] == [STILL.name, SMALL.name, STILL.name, SMALL.name]
    assert held_out(rows, 4) == chosen
    assert len(held_out(rows, 100)) == len(rows) == 7
