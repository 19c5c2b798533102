"""Steps with a non-finite gradient: skipped, counted, listed, or the end of the training."""

import json
from functools import partial

import numpy as np
import pytest

from data.files.checksums import file_sha256
from data.stream.loader import Stream
from pipeline.checkpoint.read import open_checkpoint
from pipeline.distributed.torchrun import train_here
from pipeline.train.loop import train
from pipeline.train.non_finite_steps import NonFiniteError
from testing.records import SMALL
from testing.steps import POISONED_STEP, STAGES, STEPS, poisoned
from testing.tiny import column, make_task


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_bad_step_is_skipped_counted_and_its_samples_are_listed(step_runs, stage):
    data, folders = step_runs
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


@pytest.mark.slow
def test_a_run_that_skipped_resumes_bit_for_bit(step_runs, tmp_path):
    data, _ = step_runs
    config = STEPS.model_copy(update={"non_finite_steps": "skip"})
    for steps in (4, 8):
        train_here(partial(train, poisoned(data), config.model_copy(update={"steps": steps}), tmp_path / "two"), 1)
    train_here(partial(train, poisoned(data), config, tmp_path / "one"), 1)
    assert column(tmp_path / "one", "total")[3:] == column(tmp_path / "two", "total")[3:]
    names = [path.name for path in (tmp_path / "one" / "checkpoints" / "step_0000008").glob("rank_*")]
    for name in names:
        one, two = (file_sha256(open_checkpoint(tmp_path / run).folder / name) for run in ("one", "two"))
        assert one == two


@pytest.mark.slow
def test_stopping_names_the_first_bad_step_and_its_samples(step_runs, tmp_path):
    data, _ = step_runs
    config = STEPS.model_copy(update={"log_every_steps": 4})
    with pytest.raises(FloatingPointError, match=r"at step 3; its samples are in .*bad_steps\.jsonl"):
        train_here(partial(train, poisoned(data), config, tmp_path), 1)
    (line,) = [json.loads(line) for line in (tmp_path / "bad_steps.jsonl").read_text().splitlines()]
    assert (line["step"], line["outcome"], len(line["keys"])) == (3, "stopped", 4)
    assert not (tmp_path / "latest").exists()


@pytest.mark.slow
def test_what_was_saved_before_a_bad_step_is_told_as_it_is(step_runs, tmp_path):
    data, _ = step_runs
    with pytest.raises(NonFiniteError, match=r"No checkpoint had been saved: .* start again, from the beginning"):
        train_here(partial(train, poisoned(data), STEPS, tmp_path), 1)
    saving = STEPS.model_copy(update={"checkpoint_every_steps": 1})
    with pytest.raises(NonFiniteError, match=r"The checkpoint of step 1 is intact: .* and resume with --allow-change"):
        train_here(partial(train, poisoned(data), saving, tmp_path / "saved"), 1)


@pytest.mark.slow
def test_a_gradient_beyond_the_limit_is_bad(step_runs, tmp_path):
    data, folders = step_runs
    norms = column(folders["plain", 0], "gradient_norm")
    limit = sorted(norms)[-1] * 0.999
    with pytest.raises(
        FloatingPointError, match=rf"beyond train\.max_norm {limit:g} at step {norms.index(max(norms)) + 1}"
    ):
        train_here(partial(train, make_task(data), STEPS.model_copy(update={"max_norm": limit}), tmp_path), 1)


@pytest.mark.slow
def test_a_bad_step_between_two_logged_ones_is_not_passed_over(step_runs, tmp_path):
    data, folders = step_runs
    norms = column(folders["plain", 0], "gradient_norm")
    worst = norms.index(max(norms[:3])) + 1  # of the first three; the log looks at the fourth
    config = STEPS.model_copy(update={"log_every_steps": 4, "max_norm": max(norms[:3]) * 0.999})
    with pytest.raises(FloatingPointError, match=rf"at step {worst}; its samples"):
        train_here(partial(train, make_task(data), config, tmp_path), 1)
